# SPDX-License-Identifier: Apache-2.0
"""Several networks on a node, several a container, in both families: what reaches what."""

from __future__ import annotations

import pytest
from netkit import Node, misses, reaches, show

from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.network_types import Attachment, Interface, NetworkConfig
from orchestrator.agent.network.node_network import NodeNetwork
from orchestrator.cni.netlink import namespaces

pytestmark = pytest.mark.root


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


async def test_a_fixed_address_in_another_nodes_subnet_is_found(nodes: list[Node]) -> None:
    one, two = nodes
    asked = Interface(ip="10.1.7.9", mac="02:00:00:00:00:09")
    fixed = await one.network.attach("a", "fixed", asked)
    assert (fixed.address, fixed.address6) == ("10.1.7.9", "fd00:1:0:7::9")
    assert fixed.mac == "02:00:00:00:00:09"
    neighbour = await one.network.attach("a", "neighbour")
    other = await two.network.attach("a", "other")
    assert misses(other.netns, fixed.netns, fixed.address)
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
    with pytest.raises(NetworkError, match="not received the network from a manager yet"):
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
