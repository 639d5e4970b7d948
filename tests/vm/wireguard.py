# SPDX-License-Identifier: Apache-2.0
"""Encrypted networks in a kernel that has WireGuard: hosts are namespaces, keys are told by hand.

Started as `pytest tests/vm/wireguard.py`, inside a virtual machine. `between_hosts` has the same
with managers and agents, in machines of their own.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[1] / "unit"
sys.path[:0] = [str(UNIT / "cni"), str(UNIT / "agent/network")]

from netkit import network, reaches, show  # noqa: E402
from nsfixtures import hosts, netns_folder  # noqa: E402
from nshosts import NsHost, within  # noqa: E402

from orchestrator.agent.network.helper_process import NetworkError  # noqa: E402
from orchestrator.agent.network.network_types import Attachment, Peer  # noqa: E402
from orchestrator.agent.network.node_network import (  # noqa: E402
    NodeNetwork,
    TunnelHost,
    Tunnels,
)
from orchestrator.cni.firewall.tunnelguard import PREFIX  # noqa: E402
from orchestrator.cni.overlay import tunnelkeys  # noqa: E402

__all__ = ["hosts", "netns_folder"]
pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]

ETH_ALL = 3
IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
WAITS = 60.0
"""Seconds that something may take where a processor is emulated."""


@dataclass
class Node:
    """A host, and what a manager would tell it: everybody's keys, as they were at the last pass."""

    host: NsHost
    number: int
    network: NodeNetwork
    others: list[Node] = field(default_factory=list)
    told: Tunnels = field(default_factory=Tunnels)
    rotation: int = 0

    async def passes(self) -> None:
        """Have tunnels and network as the others' words are now."""
        hosts = [TunnelHost(other.host.address, other.told.keys) for other in self.others]
        self.told = await self.network.tunnels(
            self.host.address, hosts, rotation=self.rotation, most_age=0
        )
        peers = []
        for other in self.others:
            if address := self.told.hosts.get(other.host.address):
                config = network(other.host, other.number, "a")
                peers.append(Peer(config.subnet, address, config.subnet6))
        await self.network.apply(network(self.host, self.number, "a", *peers, encrypted=True))


async def settle(nodes: list[Node]) -> None:
    """Two rounds: each tells its key, then each knows them all."""
    for _ in range(2):
        for node in nodes:
            await node.passes()


@pytest.fixture
async def nodes(hosts: list[NsHost]) -> AsyncIterator[list[Node]]:
    async with AsyncExitStack() as stack:
        made = []
        for number, host in enumerate(hosts[1:], start=1):
            entered = NodeNetwork(host.state, host.run, command=host.helper)
            made.append(Node(host, number, await stack.enter_async_context(entered)))
        for node in made:
            node.others = [other for other in made if other is not node]
        await settle(made)
        yield made
        for node in made:
            await node.network.remove("a")
            await node.network.remove_tunnels()
            await node.network.collect([])
            (node.host.state / "tunnel.json").unlink()


@contextmanager
def wire(host: NsHost) -> Iterator[socket.socket]:
    """What is on a host's uplink, both ways."""

    def opened() -> socket.socket:
        found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_ALL))
        found.bind(("uplink", ETH_ALL))
        return found

    with within(host.netns, opened) as sock:
        sock.setblocking(False)
        yield sock


def packets(sock: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(sock.recv(65535))
        except BlockingIOError:
            return found


def in_the_clear(frame: bytes) -> bool:
    """Whether it is neither WireGuard's nor what a link needs to find its neighbours."""
    kind = int.from_bytes(frame[12:14], "big")
    if kind == IPV4:
        return frame[23] != socket.IPPROTO_UDP or (
            int.from_bytes(frame[36:38], "big") not in tunnelkeys.PORTS
        )
    return kind != ARP and not (kind == IPV6 and frame[20] in (0, socket.IPPROTO_ICMPV6))


async def connected(one: Node, two: Node) -> tuple[Attachment, Attachment]:
    return await one.network.attach("a", "c1"), await two.network.attach("a", "c2")


async def test_only_wireguard_is_on_the_wire(nodes: list[Node]) -> None:
    one, two, _ = nodes
    mine, other = await connected(one, two)
    with wire(two.host) as sock:
        assert reaches(mine.netns, other.netns, other.address, seconds=WAITS) == mine.address
        assert reaches(other.netns, mine.netns, mine.address6, seconds=WAITS) == other.address6
        seen = packets(sock)
    assert [frame for frame in seen if in_the_clear(frame)] == []
    assert any(frame[12:14] == b"\x08\x00" for frame in seen)
    # Underlay 1500, WireGuard 60, VXLAN over IPv6 70.
    assert show(mine.netns, "link", "show", "eth0")[0]["mtu"] == 1370
    assert [link["ifname"] for link in one.host.ip("link", "show", "type", "wireguard")] == [
        "orcwg0"
    ]
    await one.passes()
    (session,) = [each for each in one.told.sessions if each.address == two.host.address]
    assert session.handshake > 0
    assert min(session.received, session.sent) > 0


class Stream:
    """Numbered datagrams from one container to another, as fast as the loop turns."""

    def __init__(self, client: Attachment, server: Attachment) -> None:
        self._client, self._server = client, server
        self.sent, self.lost = 0, set[int]()

    async def run(self, until: asyncio.Event) -> None:
        """Send until told to end; then `lost` are those that have not arrived."""

        def opened() -> socket.socket:
            return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

        with within(self._server.netns, opened) as receiver:
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            receiver.bind(("", 0))
            receiver.setblocking(False)
            with within(self._client.netns, opened) as sender:
                to = self._server.address, receiver.getsockname()[1]
                while not until.is_set():
                    sender.sendto(self.sent.to_bytes(8, "big"), to)
                    self.lost.add(self.sent)
                    self.sent += 1
                    self._take(receiver)
                    await asyncio.sleep(0.01)
                for _ in range(100):
                    self._take(receiver)
                    if not self.lost:
                        break
                    await asyncio.sleep(0.1)

    def _take(self, receiver: socket.socket) -> None:
        for number in packets(receiver):
            self.lost.discard(int.from_bytes(number, "big"))


async def passes(nodes: list[Node], seconds: float) -> None:
    """As agents do, one after the other, for a while."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while loop.time() < until:
        for node in nodes:
            await node.passes()
            await asyncio.sleep(0.5)


async def test_keys_are_replaced_and_no_packet_is_lost(nodes: list[Node]) -> None:
    one, two, _ = nodes
    mine, other = await connected(one, two)
    assert reaches(mine.netns, other.netns, other.address, seconds=WAITS)
    before = one.told.keys, two.told.keys
    end = asyncio.Event()
    there, back = Stream(mine, other), Stream(other, mine)
    async with asyncio.TaskGroup() as group:
        group.create_task(there.run(end))
        group.create_task(back.run(end))
        # One of them, then both at once, of which one is at its second change.
        for rotating in ([one], [one, two]):
            for node in rotating:
                node.rotation += 1
            await one.passes()
            assert len(one.told.keys) == 2
            async with asyncio.timeout(300):
                while any(len(node.told.keys) != 1 for node in nodes):
                    await passes(nodes, 5)
        end.set()
    assert (there.lost, back.lost) == (set(), set())
    assert there.sent > 1000
    after = one.told.keys, two.told.keys
    assert not {key.public for keys in before for key in keys} & {
        key.public for keys in after for key in keys
    }
    # One device again, and the old key answers nothing.
    for node in (one, two):
        assert len(node.host.ip("link", "show", "type", "wireguard")) == 1
        assert len(json.loads((node.host.state / "tunnel.json").read_text())["keys"]) == 1
        assert (node.host.state / "tunnel.json").stat().st_mode & 0o777 == 0o600


async def test_a_host_that_lost_its_devices_has_them_again_with_the_same_key(
    nodes: list[Node],
) -> None:
    one, two, _ = nodes
    mine, other = await connected(one, two)
    assert reaches(mine.netns, other.netns, other.address, seconds=WAITS)
    before = two.told.keys
    two.host.shell("ip", "link", "del", "orcwg0")
    two.host.shell("ip", "link", "del", "orcvx1")
    await two.passes()
    assert two.told.keys == before
    # Its first packet shakes hands anew, so nobody waits for the other's session to run out.
    assert reaches(mine.netns, other.netns, other.address, seconds=WAITS)


async def test_without_its_tunnel_a_network_is_silent(nodes: list[Node]) -> None:
    """Also where the host has a default route of IPv6, which would lead there in the clear."""
    one, two, three = nodes
    mine, other = await connected(one, two)
    assert reaches(mine.netns, other.netns, other.address, seconds=WAITS)
    one.host.shell("ip", "addr", "add", "fd00:ffff::1/64", "dev", "uplink", "nodad")
    one.host.shell("ip", "-6", "route", "add", "default", "via", "fd00:ffff::2", "dev", "uplink")
    one.host.shell(
        "ip", "-6", "neigh", "add", "fd00:ffff::2", "lladdr", "02:00:00:00:00:02", "dev", "uplink"
    )
    try:
        one.host.shell("ip", "link", "del", "orcwg0")
        with wire(one.host) as sock:
            assert reaches(mine.netns, other.netns, other.address, seconds=2) == ""
            assert [frame for frame in packets(sock) if in_the_clear(frame)] == []
        # It is the rules that held it back: by its address, and by its VNI.
        for chain in ("sealed_out", "sealed_out_orcbr1"):
            with wire(one.host) as sock:
                assert reaches(mine.netns, other.netns, other.address, seconds=1) == ""
                assert [frame for frame in packets(sock) if in_the_clear(frame)] == []
            one.host.shell("nft", "flush", "chain", "inet", "orc", chain)
        with wire(one.host) as sock:
            assert reaches(mine.netns, other.netns, other.address, seconds=2) == ""
            assert [frame for frame in packets(sock) if in_the_clear(frame)] != []
    finally:
        one.host.shell("ip", "addr", "del", "fd00:ffff::1/64", "dev", "uplink")
        one.host.shell("ip", "-6", "route", "flush", "default")
    await one.passes()
    assert reaches(mine.netns, other.netns, other.address, seconds=WAITS)
    assert three.told.keys


def vxlan(vni: int, inner: bytes) -> bytes:
    """A frame in VXLAN (RFC 7348, section 5)."""
    return b"\x08\0\0\0" + vni.to_bytes(3, "big") + b"\0" + inner


async def test_unencrypted_traffic_is_dropped(nodes: list[Node]) -> None:
    """A stranger on the underlay, who knows VNI, MACs and addresses, speaks to a container."""
    one, two, three = nodes
    mine, other = await connected(one, two)
    assert reaches(mine.netns, other.netns, other.address, seconds=WAITS)
    with within(other.netns, _listener) as listener:
        mac = two.host.ip("link", "show", "orcvx1")[0]["address"]
        address = two.host.ip("addr", "show", "orcwg0")[0]["addr_info"][0]["local"]
        frame = vxlan(1, _datagram(mac, mine.address, other.address, listener.getsockname()[1]))

        def v4() -> socket.socket:
            return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

        def v6() -> socket.socket:
            return socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)

        # The same frame from one of the cluster's hosts, by the tunnel, is let in.
        listener.settimeout(10)
        with within(three.host.netns, v6) as sender:
            sender.sendto(frame, (address, 4789))
            assert listener.recv(16) == b"?"
        listener.settimeout(1)
        # By the underlay it is not: neither over IPv4, nor over IPv6 to the tunnel's address. The
        # cluster's hosts do not even send it.
        with within(three.host.netns, v4) as sender, pytest.raises(PermissionError):
            sender.sendto(frame, (two.host.address, 4789))
        router = Path(str(three.host.netns).replace("h3", "router"))
        with within(router, v4) as sender:
            sender.sendto(frame, (two.host.address, 4789))
            with pytest.raises(TimeoutError):
                listener.recv(16)
        hop = two.host.ip("link", "show", "uplink")[0]["address"]
        _route(router, address, hop)
        with within(router, v6) as sender:
            sender.sendto(frame, (address, 4789))
            with pytest.raises(TimeoutError):
                listener.recv(16)
        rules = two.host.shell("nft", "list", "chain", "inet", "orc", "sealed_in_orcbr1")
        assert "@th,96,24 0x1 drop" in rules or "vni 1 drop" in rules


def _listener() -> socket.socket:
    found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    found.bind(("", 0))
    return found


def _route(router: Path, address: str, mac: str) -> None:
    host = NsHost(router, "", router, router)
    host.shell("ip", "-6", "addr", "add", "fd00:ffff::9/64", "dev", "under", "nodad")
    host.shell("ip", "-6", "route", "add", f"{address}/128", "dev", "under")
    host.shell("ip", "-6", "neigh", "add", address, "lladdr", mac, "dev", "under")


def _datagram(mac: str, source: str, destination: str, port: int) -> bytes:
    """An Ethernet frame with `?` in UDP, which has no checksum."""
    udp = b"\x12\x34" + port.to_bytes(2, "big") + (9).to_bytes(2, "big") + b"\0\0?"
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    head = b"\x45\0" + (20 + len(udp)).to_bytes(2, "big") + b"\0\0\0\0\x40\x11"
    total = sum(int.from_bytes((head + addresses)[n : n + 2], "big") for n in range(0, 18, 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    ip = head + (total ^ 0xFFFF).to_bytes(2, "big") + addresses
    return bytes.fromhex(mac.replace(":", "")) + b"\x02\0\0\0\0\x09" + b"\x08\0" + ip + udp


async def test_container_cannot_reach_other_hosts_inside_the_tunnels(nodes: list[Node]) -> None:
    """What it sends to another host's address inside the tunnels does not get there."""
    one, two, _ = nodes
    mine, other = await connected(one, two)
    assert reaches(mine.netns, other.netns, other.address, seconds=WAITS)
    address = one.told.hosts[two.host.address]
    assert address in str(PREFIX) or address.startswith("fd6f:7263:")
    assert reaches(mine.netns, two.host.netns, address, seconds=2) == ""


async def test_a_port_that_is_taken_is_named(nodes: list[Node]) -> None:
    one = nodes[0]

    def taken() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    one.host.shell("ip", "link", "del", "orcwg0")
    with within(one.host.netns, taken) as sock:
        sock.bind(("0.0.0.0", tunnelkeys.PORTS[0]))
        with pytest.raises(NetworkError, match="UDP port 51840 of this host, which its tunnel"):
            await one.passes()
    await one.passes()
