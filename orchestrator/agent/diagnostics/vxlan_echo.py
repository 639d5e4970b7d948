# SPDX-License-Identifier: Apache-2.0
"""Echoes that travel as containers' packets do: in VXLAN (RFC 7348), from node to node.

Many a firewall drops pings and lets UDP port 4789 through, as it must for networks to be. Such an
echo is put into its frame here, by an ordinary socket, since of what the kernel's own tunnel sends
neither the size nor the "don't fragment" bit is ours to say. The other node's kernel takes it for
what it is, and its answer comes back through the tunnel.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Self

from orchestrator.agent.diagnostics.echo import IP_MTU_DISCOVER, IP_PMTUDISC_PROBE, Echo, request
from orchestrator.agent.network.network_types import NetworkConfig
from orchestrator.cni.netconf import DEFAULT_PORT, OVERHEAD
from orchestrator.cni.peers import vtep_address, vtep_mac

_VXLAN = struct.Struct("!B3xI")
_VNI_IS_VALID = 8
_ETHERNET = struct.Struct("!6s6sH")
_IPV4, _ICMP = 0x0800, 1
_HEADER = struct.Struct("!BBHHHBBH4s4s")
_TTL = 64


class VxlanEcho(Echo):
    """Sends echoes to the underlay addresses of a network's nodes, through its tunnel.

    Sizes are those of the packets between the nodes. The network must not be encrypted.
    """

    def __init__(self, config: NetworkConfig) -> None:
        own = IPv4Network(config.subnet)
        super().__init__(str(vtep_address(own)))
        self._node = config.node_address
        self._head = _VXLAN.pack(_VNI_IS_VALID, config.vni << 8)
        self._mac = _mac(own)
        self._peers: Mapping[str, IPv4Network] = {
            peer.address: IPv4Network(peer.subnet) for peer in config.peers
        }

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self._wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._wire.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
            self._wire.bind((self._node, 0))
        except BaseException:
            super().__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._wire.close()
        super().__exit__()

    def knows(self, address: str) -> bool:
        """Whether a node of the network has that address."""
        return address in self._peers

    def _answerer(self, address: str) -> str:
        return str(vtep_address(self._peers[address]))

    def _send(self, address: str, number: int, size: int) -> None:
        peer = self._peers[address]
        packet = request(self._id, number, size - OVERHEAD)
        frame = _ETHERNET.pack(_mac(peer), self._mac, _IPV4)
        frame += _ip_header(IPv4Address(self._source), vtep_address(peer), len(packet))
        self._wire.sendto(self._head + frame + packet, (address, DEFAULT_PORT))


def _mac(subnet: IPv4Network) -> bytes:
    return bytes.fromhex(vtep_mac(subnet).replace(":", ""))


def _ip_header(source: IPv4Address, target: IPv4Address, length: int) -> bytes:
    """An IPv4 header without options (RFC 791) before that number of bytes of ICMP."""

    def packed(checksum: int) -> bytes:
        total = _HEADER.size + length
        return _HEADER.pack(
            0x45, 0, total, 0, 0, _TTL, _ICMP, checksum, source.packed, target.packed
        )

    total = sum(struct.unpack("!10H", packed(0)))
    total = (total & 0xFFFF) + (total >> 16)
    return packed(~(total + (total >> 16)) & 0xFFFF)
