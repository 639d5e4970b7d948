# SPDX-License-Identifier: Apache-2.0
"""Drift is described in words, and a check repairs nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from netkit import Node, network

from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.network_types import Interface

pytestmark = pytest.mark.root

DAMAGES = [
    # (manual change, its description)
    ("ip link del {end}", "interface eth0 is gone from the container"),
    ("ip link set {end} nomaster", "{end} is not a port of bridge orcbr1"),
    ("ip link set {end} down", "or its peer {end} is down"),
    ("ip link del orcbr1", "bridge orcbr1 is gone"),
    ("ip link set orcbr1 down", "interface orcbr1 is down"),
    ("ip link set orcbr1 address 02:00:00:00:00:01", "instead of 02:62:0a:01:01:01"),
    ("ip link set orcbr1 mtu 1300", "interface orcbr1 has the MTU 1300 instead of 1450"),
    ("ip addr flush dev orcbr1", "interface orcbr1 has lost the address 10.1.1.1/24"),
    ("ip link del orcvx1", "tunnel orcvx1 is gone"),
    ("ip addr flush dev orcvx1", "interface orcvx1 has lost the address 10.1.1.0/32"),
    ("ip route del 10.1.2.0/24", "the route to 10.1.2.0/24 is missing on orcvx1"),
    ("ip neigh del 10.1.2.0 dev orcvx1", "the neighbour 10.1.2.0 at 02:76:0a:01:02:00 is missing"),
    (
        "bridge fdb del 02:76:0a:01:02:00 dev orcvx1",
        "the forwarding entry (FDB) of 02:76:0a:01:02:00 to 192.0.2.12 is missing on orcvx1",
    ),
    ("ip route add 10.1.77.0/24 dev orcvx1", "the route to 10.1.77.0/24 does not belong on orcvx1"),
    ("nft delete table inet orc", "nftables: inet orc forward is gone"),
    ("nft flush chain inet orc forward", "inet orc forward has 0 entries instead of 11"),
    ("nft flush set inet orc members", "set inet orc members has lost the devices"),
    ("sysctl -qw net.ipv6.conf.all.forwarding=0", "net.ipv6.conf.all.forwarding is switched off"),
]


async def test_drift_is_reported_and_not_repaired(nodes: list[Node]) -> None:
    one = nodes[0]
    await nodes[1].apply("a")
    attachment = await one.network.attach("a", "a1", Interface())
    end = str(attachment.result["interfaces"][1]["name"])
    assert await one.network.deviations("a") == []
    for damage, words in DAMAGES:
        one.host.shell(*damage.format(end=end).split())
        said = await one.network.deviations("a")
        assert words.format(end=end) in "; ".join(said), damage
        assert await one.network.deviations("a") == said, damage
        await one.apply("a")
        await one.apply("b")
        assert await one.network.deviations("a") == [], damage
    assert await one.network.deviations("b") == []


async def test_an_error_that_would_end_the_pass_is_raised(nodes: list[Node]) -> None:
    one = nodes[0]
    found = await one.network.underlay("a")
    assert (found.mtu, found.tunnel) == (1500, 1450)
    one.host.shell("ip", "link", "set", "uplink", "mtu", "1400")
    try:
        with pytest.raises(NetworkError, match="mtu 1450 is too large"):
            await one.network.apply(replace(network(one.host, 1, "a"), mtu=1450))
        with pytest.raises(NetworkError, match="mtu 1450 is too large"):
            await one.network.deviations("a")
    finally:
        one.host.shell("ip", "link", "set", "uplink", "mtu", "1500")
