# SPDX-License-Identifier: Apache-2.0
"""Two nodes with two networks each, and what shows which packets arrive."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from forging import datagram
from nshosts import NsHost, within

from orchestrator.agent.network.network_types import NetworkConfig, Peer
from orchestrator.agent.network.node_network import NodeNetwork
from orchestrator.cni.peers import vtep_mac

LEARNED = {"REACHABLE", "STALE", "DELAY", "PROBE", "INCOMPLETE", "FAILED"}
"""States of neighbors that were learned, not configured."""
BEYOND = "198.51.100.1"


def network(host: NsHost, number: int, name: str, *peers: Peer, **more: Any) -> NetworkConfig:
    """Network `a` is 10.1.0.0/16 and fd00:1::/48, `b` is 10.2.0.0/16; a part for each host."""
    place = "ab".index(name) + 1
    return NetworkConfig(
        id=name,
        name=name,
        vni=place,
        cluster_cidr=f"10.{place}.0.0/16",
        subnet=f"10.{place}.{number}.0/24",
        subnet6=f"fd00:{place}:0:{number}::/64",
        cluster_cidr6=f"fd00:{place}::/48",
        mtu=0,
        node_address=more.pop("node_address", host.address),
        peers=peers,
        **more,
    )


@dataclass
class Node:
    host: NsHost
    number: int
    network: NodeNetwork
    others: list[Node] = field(default_factory=list)

    def peers(self, name: str) -> list[Peer]:
        configs = [network(other.host, other.number, name) for other in self.others]
        return [Peer(one.subnet, one.node_address, one.subnet6) for one in configs]

    async def apply(self, name: str, *addresses: str, **more: Any) -> NetworkConfig:
        """Have a network; the first other node has these addresses besides its part."""
        peers = self.peers(name)
        if addresses:
            peers[0] = Peer(peers[0].subnet, peers[0].address, peers[0].subnet6, addresses)
        peers = more.pop("peers", peers)
        config = network(self.host, self.number, name, *peers, **more)
        await self.network.apply(config)
        return config


def reaches(
    client: str | Path, server: str | Path, address: str, port: int = 0, seconds: float = 60.0
) -> str:
    """Whom a UDP listener sees that a client sends to at an address; empty if nothing arrives.

    `port` is the one that is asked for, if it is not the listener's. What is sent is said again
    until it arrives: a bridge's port forwards a moment after it is up, and drops until then.
    """
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET

    def opened() -> socket.socket:
        return socket.socket(kind, socket.SOCK_DGRAM)

    with within(server, opened) as receiver, within(client, opened) as sender:
        receiver.bind(("", 53 if port else 0))
        receiver.settimeout(0.05)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with suppress(TimeoutError):
                try:
                    sender.sendto(b"?", (address, port or receiver.getsockname()[1]))
                except OSError:
                    return ""  # there is no way, or it is refused
                return str(receiver.recvfrom(1)[1][0])
        return ""


def misses(client: str | Path, server: str | Path, address: str, port: int = 0) -> bool:
    """Whether such a packet does not arrive."""
    return reaches(client, server, address, port, seconds=0.2) == ""


def forged_frame(node: Node, name: str, address: str, port: int, data: bytes) -> bytes:
    """What a host would send in UDP to a node for a container of its network: VXLAN (RFC 7348)."""
    config = network(node.host, node.number, name)
    mac = bytes.fromhex(vtep_mac(IPv4Network(config.subnet)).replace(":", ""))
    inside = datagram(config.subnet.replace(".0/24", ".99"), address, port, data)
    frame = mac + b"\x02\0\0\0\0\x01" + b"\x08\0" + inside
    return struct.pack("!B3xI", 8, config.vni << 8) + frame


def forged(sender: str | Path, node: Node, name: str, victim: str | Path, address: str) -> bool:
    """Whether a packet gets to a container of a node's network that comes in VXLAN to the node's
    own address, made by somebody in a namespace."""

    def opened() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    with within(victim, opened) as receiver, within(sender, opened) as wire:
        receiver.bind(("", 0))
        receiver.settimeout(0.5)
        data = forged_frame(node, name, address, receiver.getsockname()[1], b"!")
        wire.sendto(data, (node.host.address, 4789))
        try:
            return receiver.recv(1) == b"!"
        except TimeoutError:
            return False


@contextmanager
def listening(netns: Path, address: str, port: int) -> Iterator[None]:
    """A server that accepts connections and sends nothing."""
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    with within(netns, lambda: socket.socket(kind, socket.SOCK_STREAM)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen()
        yield


def connects(netns: str | Path, address: str, port: int) -> bool:
    """Whether a connection is made; one that is closed is refused, not lost."""
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    with within(netns, lambda: socket.socket(kind, socket.SOCK_STREAM)) as sock:
        sock.settimeout(20)
        try:
            sock.connect((address, port))
        except TimeoutError:
            raise
        except OSError:
            return False
        return True


def shell(netns: str | Path, *argv: str) -> str:
    """Run a command in a container's network namespace."""
    return NsHost(Path(netns), "", Path(), Path()).shell(*argv)


def show(netns: str | Path, *argv: str) -> list[dict[str, Any]]:
    """What `ip` shows of a container."""
    found: list[dict[str, Any]] = json.loads(shell(netns, "ip", "-json", *argv) or "[]")
    return found


def claim(netns: str | Path, address: str, owner: str, own: str) -> None:
    """Frames of a thief: `address` is at its MAC `own`, and the MAC `owner` is at its port."""
    with within(netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as sock:
        sock.bind(("eth0", 0))
        ip, everybody = socket.inet_aton(address), b"\xff" * 6
        for source in (own, owner):
            mac = bytes.fromhex(source.replace(":", ""))
            arp = bytes.fromhex("0001080006040002") + mac + ip + everybody + ip
            sock.send(everybody + mac + b"\x08\x06" + arp)


@asynccontextmanager
async def monitored(host: NsHost) -> AsyncIterator[Callable[[], str]]:
    """What the kernel tells of changes to links, addresses, routes and neighbors of a host
    meanwhile, but for what it learns and forgets of neighbors by itself."""
    command = host.command("ip", "-oneline", "monitor", "link", "address", "route", "neigh")
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    said: list[str] = []
    mark = "198.18.0.0/24"

    async def until_mark() -> None:
        while True:
            # It shows that the listener listens, and that all before has been heard.
            host.shell("ip", "route", "replace", mark, "dev", "uplink")
            host.shell("ip", "route", "del", mark)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    while True:
                        line = (await process.stdout.readline()).decode()
                        if line.startswith(f"Deleted {mark}"):
                            return
                        if not (line.startswith(mark) or set(line.split()) & LEARNED):
                            said.append(line)

    try:
        await until_mark()
        said.clear()
        yield lambda: "".join(said)
        await until_mark()
    finally:
        process.kill()
        await process.wait()
