"""Several networks on a node, several a container, in both families: what reaches what."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from nshosts import NsHost, within

from orchestrator.agent.network import (
    Attachment,
    Interface,
    NetworkConfig,
    NetworkError,
    NodeNetwork,
    Peer,
)
from orchestrator.cni import namespaces

pytestmark = pytest.mark.root

BEYOND = "198.51.100.1"


def network(host: NsHost, number: int, name: str, *peers: Peer, **more: object) -> NetworkConfig:
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
        node_address=host.address,
        peers=peers,
        **more,  # type: ignore[arg-type]
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

    async def apply(self, name: str, *addresses: str, **more: object) -> NetworkConfig:
        """Have a network; the first other node has these addresses besides its part."""
        peers = self.peers(name)
        if addresses:
            peers[0] = Peer(peers[0].subnet, peers[0].address, peers[0].subnet6, addresses)
        config = network(self.host, self.number, name, *peers, **more)
        await self.network.apply(config)
        return config


@pytest.fixture
async def nodes(hosts: list[NsHost]) -> AsyncIterator[list[Node]]:
    """Two nodes that have both networks."""
    async with AsyncExitStack() as stack:
        made = []
        for number, host in enumerate(hosts[1:3], start=1):
            node = NodeNetwork(host.state, host.run, command=host.helper)
            made.append(Node(host, number, await stack.enter_async_context(node)))
        for node in made:
            node.others = [other for other in made if other is not node]
            for name in "ab":
                await node.apply(name)
        yield made
        for node in made:
            for name in await node.network.networks():
                await node.network.remove(name)
            await node.network.collect([])


def reaches(client: str | Path, server: str | Path, address: str, source: str = "") -> str:
    """Whom a UDP listener sees that a client sends to at an address; empty if nothing arrives."""
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET

    def opened() -> socket.socket:
        return socket.socket(kind, socket.SOCK_DGRAM)

    with within(server, opened) as receiver, within(client, opened) as sender:
        receiver.bind((address if address != BEYOND else "", 0))
        receiver.settimeout(0.15)
        if source:
            sender.bind((source, 0))
        try:
            sender.sendto(b"?", (address, receiver.getsockname()[1]))
            return str(receiver.recvfrom(1)[1][0])
        except OSError:
            return ""


def show(netns: str | Path, *argv: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(
        NsHost(Path(netns), "", Path(), Path()).shell("ip", "-json", *argv) or "[]"
    )
    return found


async def both(node: Node, container: str) -> tuple[Attachment, Attachment]:
    a = await node.network.attach("a", container)
    return a, await node.network.attach("b", container, Interface("eth1", default_route=False))


async def test_a_container_in_two_networks(nodes: list[Node]) -> None:
    one, two = nodes
    a, b = await both(one, "c1")
    assert (a.ifname, a.address, a.address6) == ("eth0", "10.1.1.2", "fd00:1:0:1::2")
    assert (b.ifname, b.address, b.address6) == ("eth1", "10.2.1.2", "fd00:2:0:1::2")
    in_a = await two.network.attach("a", "c2")
    in_b = await two.network.attach("b", "c3")
    for mine, other in ((a, in_a), (b, in_b)):
        assert reaches(mine.netns, other.netns, other.address) == mine.address
        assert reaches(mine.netns, other.netns, other.address6) == mine.address6
        assert reaches(other.netns, mine.netns, mine.address6) == other.address6
    defaults = [way["dev"] for way in show(a.netns, "route", "show", "default")]
    assert defaults == ["eth0"]
    await one.network.disconnect("a", "c1")
    assert reaches(b.netns, in_b.netns, in_b.address) == b.address
    assert {link["ifname"] for link in show(b.netns, "link")} == {"lo", "eth1"}
    await one.network.attach("b", "c1", Interface("eth1"))
    defaults = [way["dev"] for way in show(b.netns, "route", "show", "default")]
    assert defaults == ["eth1"], "another network is the way out now"
    await one.network.detach("c1")
    assert not namespaces.exists(b.netns)


async def test_a_fixed_address_of_another_nodes_part_is_found(nodes: list[Node]) -> None:
    one, two = nodes
    asked = Interface(ip="10.1.7.9", mac="02:00:00:00:00:09")
    fixed = await one.network.attach("a", "fixed", asked)
    assert (fixed.address, fixed.address6) == ("10.1.7.9", "fd00:1:0:7::9")
    assert fixed.mac == "02:00:00:00:00:09"
    neighbour = await one.network.attach("a", "neighbour")
    other = await two.network.attach("a", "other")
    assert reaches(other.netns, fixed.netns, fixed.address) == ""
    await two.apply("a", fixed.address, fixed.address6)
    for client in (neighbour, other):
        assert reaches(client.netns, fixed.netns, fixed.address) == client.address
        assert reaches(client.netns, fixed.netns, fixed.address6) == client.address6
        assert reaches(fixed.netns, client.netns, client.address) == fixed.address
    await one.network.detach("fixed")
    moved = await two.network.attach("a", "fixed", asked)
    # The other node's list is old for a moment: it must not send the packets away again.
    await two.apply("a", fixed.address, fixed.address6)
    assert reaches(other.netns, moved.netns, moved.address) == other.address
    with pytest.raises(NetworkError, match=r"10\.1\.7\.9 is in use by container fixed"):
        await two.network.attach("a", "again", asked)
    await two.network.detach("fixed")
    await two.apply("a")
    assert not [way for way in two.host.ip("route") if way["dst"] == "10.1.7.9"]


async def test_networks_are_remembered_and_removed_without_their_configuration(
    nodes: list[Node],
) -> None:
    one = nodes[0]
    await both(one, "c1")
    async with NodeNetwork(one.host.state, one.host.run, command=one.host.helper) as later:
        assert await later.networks() == ["a", "b"]
        await later.remove("b")
        assert await later.networks() == ["a"]
        await later.collect(["c1"])
    links = {link["ifname"] for link in one.host.ip("link")}
    assert {"orcbr1", "orcvx1"} <= links
    assert not {"orcbr2", "orcvx2"} & links
    assert {link["ifname"] for link in show(one.host.run / "netns" / "c1", "link")} == {
        "lo",
        "eth0",
    }
    with pytest.raises(NetworkError, match="not got the network yet"):
        await later.attach("b", "c2")


async def test_a_network_of_one_node_alone(nodes: list[Node]) -> None:
    one, two = nodes
    local = NetworkConfig(
        id="local0123456789abcdef",
        name="bridge",
        vni=0,
        cluster_cidr="172.30.0.0/16",
        subnet="172.30.0.0/16",
        gateway="172.30.0.10",
        mtu=1400,
        node_address="",
    )
    assert local.bridge == "orcbr-local0123"
    for node in nodes:
        await node.network.apply(local)
    mine = await one.network.attach(local.id, "c1")
    theirs = await two.network.attach(local.id, "c2")
    assert (mine.address, mine.gateway, theirs.address) == (
        "172.30.0.1",
        "172.30.0.10",
        "172.30.0.1",
    )
    neighbour = await one.network.attach(local.id, "c3")
    assert reaches(mine.netns, neighbour.netns, neighbour.address) == mine.address
    assert [link["mtu"] for link in show(mine.netns, "link", "show", "eth0")] == [1400]
