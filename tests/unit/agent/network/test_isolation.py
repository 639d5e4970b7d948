# SPDX-License-Identifier: Apache-2.0
"""Isolation of networks and of packets, with a real kernel, on two hosts."""

from __future__ import annotations

import pytest
from netkit import BEYOND, Node, claim, forged, misses, reaches, shell
from nshosts import NsHost

from orchestrator.agent.network.network_types import Interface, PortMapping

pytestmark = pytest.mark.root


async def test_no_packet_of_a_network_enters_another(nodes: list[Node]) -> None:
    one, two = nodes
    a = await one.network.attach("a", "a1")
    for node in nodes:
        b = await node.network.attach("b", f"b{node.number}")
        for address in (b.address, b.address6):
            assert misses(a.netns, b.netns, address), "by the way out"
            assert misses(b.netns, a.netns, a.address6)
    # A host that has only one of the networks sends the packet to its own way out.
    await one.network.remove("b")
    b2 = await two.network.attach("b", "b2")
    assert misses(a.netns, b2.netns, b2.address)


async def test_no_container_can_spoof_a_host(nodes: list[Node]) -> None:
    one, two = nodes
    a = await one.network.attach("a", "a1")
    for node in nodes:
        b = await node.network.attach("b", f"b{node.number}")
        assert not forged(a.netns, node, "b", b.netns, b.address)
    assert forged(one.host.netns, two, "b", b.netns, b.address), "one would get through"


async def test_an_external_host_reaches_only_published_ports(
    nodes: list[Node], hosts: list[NsHost]
) -> None:
    router, (one, two) = hosts[0], nodes
    ports = (PortMapping(5300, 53, "udp"),)
    a = await one.network.attach("a", "a1", Interface(ports=ports))
    b = await one.network.attach("b", "b1")
    router.shell("ip", "route", "add", "10.1.1.0/24", "via", one.host.address)
    try:
        assert misses(router.netns, a.netns, a.address), "by a route to the node"
        assert reaches(a.netns, router.netns, BEYOND) == one.host.address, "answers come back"
        for client, seen in ((router, router.address), (two.host, two.host.address)):
            assert reaches(client.netns, a.netns, one.host.address, 5300) == seen
        assert reaches(b.netns, a.netns, one.host.address, 5300) == "10.1.1.1", "as any stranger"
        assert reaches(a.netns, a.netns, one.host.address, 5300) == "10.1.1.1", "itself"
    finally:
        router.shell("ip", "route", "del", "10.1.1.0/24")


async def test_published_ports_in_ipv6(nodes: list[Node]) -> None:
    one, two = nodes
    for node in nodes:
        node.host.shell(
            "ip", "addr", "add", f"2001:db8:1::{node.number}/64", "dev", "uplink", "nodad"
        )
    try:
        ports = (PortMapping(5300, 53, "udp"), PortMapping(5301, 53, "udp", "2001:db8:1::1"))
        a = await one.network.attach("a", "a1", Interface(ports=ports))
        for port in (5300, 5301):
            assert reaches(two.host.netns, a.netns, "2001:db8:1::1", port) == "2001:db8:1::2"
        assert misses(two.host.netns, a.netns, one.host.address, 5301)
        out = await two.network.attach("a", "a2")
        assert reaches(out.netns, one.host.netns, "2001:db8:1::1") == "2001:db8:1::2", "masqueraded"
    finally:
        for node in nodes:
            node.host.shell("ip", "addr", "del", f"2001:db8:1::{node.number}/64", "dev", "uplink")


async def test_an_internal_network_has_no_way_out_and_none_in(
    nodes: list[Node], hosts: list[NsHost]
) -> None:
    router, (one, two) = hosts[0], nodes
    for node in nodes:
        await node.apply("a", internal=True)
    ports = (PortMapping(5300, 53, "udp"),)
    a = await one.network.attach("a", "a1", Interface(ports=ports))
    other = await two.network.attach("a", "a2")
    b = await one.network.attach("b", "b1")
    # What its program may do, with the right to.
    shell(a.netns, "ip", "route", "add", "default", "via", a.gateway)
    assert misses(a.netns, router.netns, BEYOND)
    assert misses(a.netns, one.host.netns, one.host.address), "its host"
    assert misses(a.netns, two.host.netns, two.host.address)
    assert misses(router.netns, a.netns, one.host.address, 5300), "no published port"
    assert misses(b.netns, a.netns, one.host.address, 5300)
    assert reaches(a.netns, other.netns, other.address) == a.address
    assert reaches(other.netns, a.netns, a.address6) == other.address6
    assert reaches(a.netns, one.host.netns, a.gateway, 53) == a.address, "its name server"
    assert reaches(one.host.netns, a.netns, a.address) == a.gateway, "its host reaches it"
    await one.apply("a")
    assert reaches(a.netns, router.netns, BEYOND) == one.host.address, "open again"


@pytest.mark.parametrize("bridged_pass_rules", ["0", "1"])
async def test_an_address_claimed_twice_stays_with_its_owner(
    nodes: list[Node], bridged_pass_rules: str
) -> None:
    one, two = nodes
    for setting in ("iptables", "ip6tables"):
        name = f"net.bridge.bridge-nf-call-{setting}"
        one.host.shell("sysctl", "-qw", f"{name}={bridged_pass_rules}")
    owner = await one.network.attach("a", "owner")
    thief = await one.network.attach("a", "thief")
    third = await one.network.attach("a", "third")
    for address in (f"{owner.address}/24", f"{owner.address6}/64"):
        shell(thief.netns, "ip", "addr", "add", address, "dev", "eth0", "nodad")
    claim(thief.netns, owner.address, owner.mac, thief.mac)
    remote = await two.network.attach("a", "remote")
    for client in (third.netns, remote.netns, one.host.netns):
        for address in (owner.address, owner.address6):
            assert reaches(client, owner.netns, address)
            assert misses(client, thief.netns, address)
