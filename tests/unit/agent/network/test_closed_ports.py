# SPDX-License-Identifier: Apache-2.0
"""Ports of hosts, and metadata services of clouds, that are closed to containers."""

from __future__ import annotations

from pathlib import Path

import pytest
from netkit import Node, connects, listening, reaches
from nshosts import NsHost

from orchestrator.agent.network.network_types import Exposure, Interface, PortMapping

pytestmark = pytest.mark.root

METADATA, METADATA6 = "169.254.169.254", "fd00:ec2::254"
CLOSED = Exposure(
    hosts=("192.0.2.1", "192.0.2.11", "192.0.2.12"),
    ports=(7420, 7424),
    addresses=(METADATA, METADATA6),
)


async def test_ports_of_the_clusters_hosts(nodes: list[Node], hosts: list[NsHost]) -> None:
    """Of a node, of its own node by whatever address, and of a manager that is no node."""
    router, (one, two) = hosts[0], nodes
    mine = await one.network.attach("a", "a1")
    places = [
        (one.host.netns, one.host.address),
        (one.host.netns, "10.1.1.1"),
        (one.host.netns, "fd00:1:0:1::1"),
        (two.host.netns, two.host.address),
        (router.netns, router.address),
    ]
    for netns, address in places:
        for port in (7420, 7424, 8000):
            with listening(netns, address, port):
                await one.network.expose(Exposure(hosts=CLOSED.hosts))
                assert connects(mine.netns, address, port), (address, port)
                await one.network.expose(CLOSED)
                assert connects(mine.netns, address, port) is (port == 8000), (address, port)
                assert connects(netns, address, port)
    for netns, address in places[3:]:
        with listening(netns, address, 7420):
            assert connects(one.host.netns, address, 7420), "hosts among each other"
    # An unrelated server has that port, too.
    with listening(router.netns, "198.51.100.1", 7420):
        assert connects(mine.netns, "198.51.100.1", 7420)


async def test_a_port_published_at_a_closed_port_is_open(nodes: list[Node]) -> None:
    one, _ = nodes
    ports = (PortMapping(7420, 53, "tcp"), PortMapping(53, 53, "udp"))
    server = await one.network.attach("a", "server", Interface(ports=ports))
    client = await one.network.attach("a", "client")
    await one.network.expose(CLOSED)
    with listening(Path(server.netns), "0.0.0.0", 53):
        assert connects(client.netns, one.host.address, 7420)
    assert reaches(client.netns, one.host.netns, client.gateway, 53) == client.address


async def test_manually_opened_ports_are_reported_and_closed_again(nodes: list[Node]) -> None:
    one = nodes[0]
    mine = await one.network.attach("a", "a1")
    assert await one.network.unexposed() == []
    await one.network.expose(CLOSED)
    assert await one.network.unexposed() == []
    inet = "inet orc"
    for damage, words in (
        (f"nft flush set {inet} closed_ports", "closed_ports (control-plane ports closed to"),
        (f"nft delete element {inet} hosts {{ 192.0.2.1 }}", "hosts (hosts of the cluster) has"),
        (f"nft add element {inet} guests4 {{ 10.9.9.9 }}", "guests4 (containers on networks of"),
        (f"nft add element {inet} closed4 {{ 10.9.9.9 }}", "closed4 (addresses closed to"),
        (f"nft flush set {inet} sources", "sources (interfaces to hosts of the cluster) has 0"),
    ):
        one.host.shell(*damage.split())
        assert words in "; ".join(await one.network.unexposed()), damage
        await one.network.expose(CLOSED)
        assert await one.network.unexposed() == [], damage
        with listening(one.host.netns, "10.1.1.1", 7420):
            assert not connects(mine.netns, "10.1.1.1", 7420), damage


async def test_metadata_services_are_closed(nodes: list[Node], hosts: list[NsHost]) -> None:
    router, (one, two) = hosts[0], nodes
    mine = await one.network.attach("a", "a1")
    for address, device in ((METADATA, "32"), (METADATA6, "128")):
        router.shell("ip", "addr", "add", f"{address}/{device}", "dev", "lo")
    for node, number in ((one, 1), (two, 2)):
        node.host.shell("ip", "addr", "add", f"2001:db8:5::{number}/64", "dev", "uplink", "nodad")
    router.shell("ip", "addr", "add", "2001:db8:5::99/64", "dev", "under", "nodad")
    one.host.shell("ip", "-6", "route", "add", "default", "via", "2001:db8:5::99")
    try:
        for address in (METADATA, METADATA6):
            with listening(router.netns, address, 80):
                assert connects(mine.netns, address, 80)
                await one.network.expose(CLOSED)
                assert not connects(mine.netns, address, 80)
                assert connects(one.host.netns, address, 80), "its host reaches it"
                await one.network.expose(Exposure(hosts=CLOSED.hosts))
        # A proxy on the host itself, as some have it.
        one.host.shell("ip", "addr", "add", f"{METADATA}/32", "dev", "lo")
        with listening(one.host.netns, METADATA, 80):
            await one.network.expose(CLOSED)
            assert not connects(mine.netns, METADATA, 80)
    finally:
        one.host.shell("ip", "-6", "route", "del", "default")
        one.host.shell("ip", "addr", "del", f"{METADATA}/32", "dev", "lo")
        router.shell("ip", "addr", "del", "2001:db8:5::99/64", "dev", "under")
        for address, device in ((METADATA, "32"), (METADATA6, "128")):
            router.shell("ip", "addr", "del", f"{address}/{device}", "dev", "lo")
        for node, number in ((one, 1), (two, 2)):
            node.host.shell("ip", "addr", "del", f"2001:db8:5::{number}/64", "dev", "uplink")
