# SPDX-License-Identifier: Apache-2.0
"""One pass repairs manual changes, on the host and between hosts, and changes nothing else."""

from __future__ import annotations

import re

import pytest
from netkit import BEYOND, Node, misses, monitored, reaches, shell, show
from nshosts import NsHost, wait_for

from orchestrator.agent.network.network_types import Attachment, Interface, Peer

pytestmark = pytest.mark.root


def host_end(node: Node, attachment: Attachment) -> str:
    """The end on the bridge."""
    return str(attachment.result["interfaces"][1]["name"])


async def test_manual_changes_are_repaired(nodes: list[Node], hosts: list[NsHost]) -> None:
    one, two = nodes
    a = await one.network.attach("a", "a1")
    fixed = await one.network.attach("a", "fixed", Interface(ip="10.1.7.9"))
    far = await two.network.attach("a", "a2")
    b = await one.network.attach("b", "b1")
    await two.apply("a", fixed.address, fixed.address6)
    end = host_end(one, a)
    for damage in (
        f"ip link del {end}",
        f"ip link set {end} nomaster",
        f"ip link set {end} down",
        f"bridge link set dev {end} isolated {'off' if isolated(one, end) else 'on'}",
        f"bridge link set dev {end} state 0",
        f"bridge fdb del {a.mac} dev {end} master",
        f"ip neigh replace {a.address} lladdr 02:00:00:00:00:01 dev orcbr1 nud permanent",
        f"ip neigh del {a.address6} dev orcbr1",
        "ip link del orcbr1",
        "ip link set orcbr1 down",
        "ip link set orcbr1 address 02:00:00:00:00:01",
        "ip link set orcbr1 mtu 1300",
        "ip addr flush dev orcbr1",
        f"ip route del {fixed.address}/32 dev orcbr1",
        "ip link del orcvx1",
        "ip -6 route del fd00:1:0:2::/64",
        "ip -6 neigh del fd00:1:0:2:: dev orcvx1",
        "ip addr flush dev orcvx1",
        "nft flush table inet orc",
        "nft delete table inet orc",
        "nft flush set inet orc members",
        "nft flush set inet orc ways",
        "nft flush set inet orc itself4",
        "nft flush chain inet orc forward",
        "sysctl -qw net.ipv6.conf.all.forwarding=0",
    ):
        one.host.shell(*damage.split())
        await one.apply("a")
        await one.apply("b")
        for mine in (a, fixed):
            assert reaches(far.netns, mine.netns, mine.address) == far.address, damage
            assert reaches(far.netns, mine.netns, mine.address6) == far.address6, damage
            assert reaches(mine.netns, far.netns, far.address6) == mine.address6, damage
        assert reaches(a.netns, fixed.netns, fixed.address) == a.address, damage
        assert reaches(a.netns, hosts[0].netns, BEYOND) == one.host.address, damage
        assert misses(a.netns, b.netns, b.address), damage
        assert isolated(one, end) == isolated(one, host_end(one, b)), damage
        await one.network.check("a", "a1")
    assert [link["mtu"] for link in one.host.ip("link", "show", "orcbr1")] == [1450]


def isolated(node: Node, end: str) -> bool:
    (link,) = node.host.ip("link", "show", end)
    return bool(link["linkinfo"]["info_slave_data"]["isolated"])


async def test_a_pass_without_drift_changes_nothing(nodes: list[Node]) -> None:
    one = nodes[0]
    await one.network.attach("a", "a1", Interface(ip="10.1.7.9"))
    foreign = (
        "ip link add mine type bridge",
        "ip link set mine up",
        "ip addr add 203.0.113.1/24 dev mine",
        "ip route add 203.0.114.0/24 dev mine",
        "ip route add 203.0.115.0/24 via 10.1.7.9 dev orcbr1 onlink",
        "nft add table inet mine",
        "nft add chain inet mine c { type filter hook forward priority 5 ; }",
        "nft add rule inet mine c ip saddr 192.0.2.99 counter drop",
    )
    for command in foreign:
        one.host.shell(*command.split())
    try:
        await one.apply("a")

        def picture() -> list[str]:
            ports = one.host.shell("bridge", "-details", "link")
            return [
                one.host.shell("ip", "address"),
                # Which multicast groups a port's container has joined is learned, not configured.
                re.sub(r"mcast_n_groups \d+", "", ports),
                one.host.shell("ip", "route"),
                one.host.shell("ip", "-6", "route"),
                one.host.shell("ip", "neigh", "show", "nud", "permanent"),
                one.host.shell("bridge", "fdb"),
                one.host.shell("nft", "list", "ruleset"),
            ]

        wait_for(lambda: "tentative" not in one.host.shell("ip", "address"))
        before = picture()
        assert "203.0.115.0/24" in before[2]
        async with monitored(one.host) as changes:
            await one.apply("a")
        assert picture() == before
        assert changes() == ""
    finally:
        one.host.shell("ip", "link", "del", "mine")
        one.host.shell("nft", "delete", "table", "inet", "mine")


async def test_a_node_whose_address_changes(nodes: list[Node]) -> None:
    one, two = nodes
    a = await one.network.attach("a", "a1")
    far = await two.network.attach("a", "a2")
    new = "192.0.2.77"
    one.host.shell("ip", "addr", "add", f"{new}/24", "dev", "uplink")
    try:
        await one.apply("a", node_address=new)
        (link,) = one.host.ip("link", "show", "orcvx1")
        assert link["linkinfo"]["info_data"]["local"] == new
        moved = [Peer("10.1.1.0/24", new, "fd00:1:0:1::/64")]
        await two.apply("a", peers=moved)
        assert reaches(far.netns, a.netns, a.address) == far.address
        assert reaches(a.netns, far.netns, far.address6) == a.address6
    finally:
        one.host.shell("ip", "addr", "del", f"{new}/24", "dev", "uplink")
        await one.apply("a")


async def test_a_veth_pair_is_restored_only_while_the_container_runs(
    nodes: list[Node],
) -> None:
    one = nodes[0]
    a = await one.network.attach("a", "a1", Interface(mac="02:00:00:00:00:09"))
    shell(a.netns, "ip", "link", "del", "eth0")
    await one.apply("a")
    (link,) = show(a.netns, "link", "show", "eth0")
    assert link["address"] == "02:00:00:00:00:09"
    shell(a.netns, "ip", "link", "del", "eth0")
    one.host.shell("umount", a.netns)
    await one.apply("a")
    assert not [x for x in one.host.ip("link") if x["ifname"] == host_end(one, a)]
    await one.network.detach("a1")
