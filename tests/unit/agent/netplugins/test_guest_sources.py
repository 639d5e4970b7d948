# SPDX-License-Identifier: Apache-2.0
"""A container on a network of CNI plugins that forges its source: where the plugin leaves an end of
its veth pair on the host, nothing of that arrives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
from chainkit import Bench, config, eth, shell, shown
from forging import (
    ADVERTISEMENT,
    EVERYBODY,
    arp,
    datagram,
    ear,
    link_local,
    neighbour,
    router_advertisement,
    say,
    wire,
)

from orchestrator.agent.netplugins.cni_chains import Chains
from orchestrator.agent.network.network_types import Attachment, Exposure, NetworkConfig
from orchestrator.agent.network.node_network import NodeNetwork

pytestmark = pytest.mark.root

NOBODY, NOBODY6 = "10.77.0.200", "fd77::200"
GATEWAY, GATEWAY6 = "10.77.0.1", "fd77::1"
STRANGE = "02:00:00:00:00:99"


@dataclass
class Place:
    """A host with a chain's network, and the helper that checks sources."""

    bench: Bench
    chains: Chains
    helper: NodeNetwork
    config: NetworkConfig

    async def attach(self, name: str) -> Attachment:
        netns = self.bench.container(name)
        return await self.chains.attach(self.config, name, eth(), netns)

    async def check(self) -> None:
        """What the agent does before a container starts, and with each pass."""
        await self.helper.expose(Exposure(checked=tuple(self.chains.checked())))

    def next_hop(self, attachment: Attachment) -> str:
        """The hardware address to which a container sends what is for others."""
        say(attachment.netns, GATEWAY, 9, b"who are you?")
        known = shown(attachment.netns, "neigh", "show", GATEWAY)
        return str(known[0]["lladdr"])

    def heard(
        self, thief: Attachment, victim: Attachment, forgeries: Collection[tuple[str, str]]
    ) -> list[str]:
        """Which forged sources (MAC, address) a victim hears, or the host itself."""
        goals = self.next_hop(thief), victim.mac
        found = set[str]()
        for netns, four, six in (
            (victim.netns, victim.address, victim.address6),
            (str(self.bench.host.netns), GATEWAY, GATEWAY6),
        ):
            with ear(netns) as listener, wire(thief.netns) as veth:
                for mac, source in forgeries:
                    to = six if ":" in source else four
                    forged = datagram(source, to, listener.port, f"{mac} {source}".encode())
                    for goal in goals:
                        veth.send(goal, mac, forged)
                # In each family after the forged ones: a datagram that waits for the discovery of
                # its next hop arrives after those of the other family.
                for last, address in ((b"own", four), (b"own6", six)):
                    say(thief.netns, address, listener.port, last)
                    found |= {one.decode() for one in listener.until(last)}
                found -= {"own", "own6"}
        return sorted(found)


def chain(bench: Bench, kind: str, **more: Any) -> NetworkConfig:
    bench.install(kind, "host-local")
    ranges = [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]]
    ways = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    plugin = {"type": kind, "ipam": bench.ipam(ranges=ranges, routes=ways), **more}
    return config(bench.conflist(plugin))


@pytest.fixture(params=["bridge", "ptp"])
async def place(bench: Bench, request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    more = {"bridge": "apps0", "isGateway": True} if request.param == "bridge" else {}
    made = chain(bench, request.param, **more)
    chains = bench.chains()
    await chains.apply(made)
    bench.host.shell("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    async with NodeNetwork(
        bench.host.state / "own", bench.host.run, command=bench.host.helper
    ) as helper:
        yield Place(bench, chains, helper, made)
        for name in ("thief", "victim", "third"):
            await chains.detach(name)


async def test_no_forged_source_arrives(place: Place) -> None:
    thief, victim = await place.attach("thief"), await place.attach("victim")
    third = await place.attach("third")
    forgeries = [(thief.mac, source) for source in (NOBODY, "9.9.9.9", third.address, NOBODY6)]
    forgeries += [(third.mac, third.address), (STRANGE, thief.address)]
    assert place.heard(thief, victim, forgeries) == sorted(map(" ".join, forgeries))
    await place.check()
    assert place.heard(thief, victim, forgeries) == []
    told = await place.helper.forgeries()
    assert [(each.network, each.container) for each in told] == [("n1", "thief")]
    assert told[0].packets >= 2 * len(forgeries)
    # Another one's right is not touched, and a new one has its own.
    await place.chains.detach("third")
    await place.check()
    fourth = await place.attach("third")
    await place.check()
    assert place.heard(fourth, victim, [(fourth.mac, thief.address)]) == []
    assert place.heard(thief, victim, forgeries) == []


async def test_a_forged_neighbour_entry_is_ignored(place: Place) -> None:
    thief, victim = await place.attach("thief"), await place.attach("victim")
    place.next_hop(victim)
    await place.check()
    own = {thief.address, thief.address6, link_local(thief.mac)}
    for address in (NOBODY, NOBODY6):
        with suppress(OSError):  # of ptp the host has ways to its containers only
            say(place.bench.host.netns, address, 9, b"?")
    with wire(thief.netns) as veth:
        for to in (EVERYBODY, victim.mac, place.next_hop(thief)):
            for operation in (1, 2):
                for sender, target in ((NOBODY, GATEWAY), (GATEWAY, victim.address)):
                    veth.send(to, thief.mac, arp(operation, thief.mac, sender, target))
                    veth.send(to, thief.mac, arp(operation, STRANGE, thief.address, target))
            for source in (link_local(thief.mac), thief.address6):
                for goal in ("ff02::1", GATEWAY6, victim.address6):
                    claimed = neighbour(ADVERTISEMENT, thief.mac, source, goal, NOBODY6)
                    veth.send(to, thief.mac, claimed)
            veth.send(to, thief.mac, router_advertisement(link_local(thief.mac)))
    assert place.heard(thief, victim, []) == []
    for netns in (str(place.bench.host.netns), victim.netns):
        entries = [
            entry
            for family in ("-4", "-6")
            for entry in shown(netns, family, "neigh", "show")
            if entry.get("lladdr") in (thief.mac, STRANGE)
        ]
        assert {entry["dst"] for entry in entries} <= own
        assert STRANGE not in {entry["lladdr"] for entry in entries}
    assert len(shown(victim.netns, "-6", "route", "show", "default")) == 1


async def test_its_own_neighbour_discovery_passes(place: Place) -> None:
    thief, victim = await place.attach("thief"), await place.attach("victim")
    await place.check()
    for netns in (thief.netns, victim.netns, str(place.bench.host.netns)):
        shell(netns, "ip", "neigh", "flush", "all")
        shell(netns, "ip", "-6", "neigh", "flush", "all")
    for address in (victim.address, victim.address6):
        with ear(victim.netns) as listener:
            say(thief.netns, address, listener.port, b"own")
            assert listener.until(b"own") == []


async def test_manually_removed_rules_are_restored(place: Place) -> None:
    thief, victim = await place.attach("thief"), await place.attach("victim")
    await place.check()
    forgeries = [(thief.mac, NOBODY)]
    assert await place.helper.unexposed() == []
    for damage in ("nft delete table netdev orc_guests", "nft flush table netdev orc_guests"):
        place.bench.host.shell(*damage.split())
        told = await place.helper.unexposed()
        assert len([line for line in told if "netdev orc_guests port" in line]) == 2
        await place.check()
        assert await place.helper.unexposed() == []
        assert place.heard(thief, victim, forgeries) == []


async def test_a_network_may_have_no_source_check(place: Place) -> None:
    thief, victim = await place.attach("thief"), await place.attach("victim")
    await place.check()
    forgeries = [(thief.mac, NOBODY), (thief.mac, NOBODY6)]
    assert place.heard(thief, victim, forgeries) == []
    unchecked = replace(place.config, source_check=False)
    await place.chains.apply(unchecked)
    await place.check()
    assert place.heard(thief, victim, forgeries) == sorted(map(" ".join, forgeries))
    assert "orc_guests" not in place.bench.host.shell("nft", "list", "tables")
    # Also for an agent that has been started again and has no order yet.
    assert place.bench.chains().checked() == []


async def test_a_network_may_allow_further_sources(place: Place) -> None:
    thief, victim = await place.attach("thief"), await place.attach("victim")
    allowed = ("10.77.0.200/32", "172.30.0.0/24", "fd77::200/128")
    await place.chains.apply(replace(place.config, allowed_sources=allowed))
    await place.check()
    good = [(thief.mac, source) for source in (NOBODY, "172.30.0.9", NOBODY6)]
    bad = [(thief.mac, "10.77.0.201"), (STRANGE, NOBODY), (thief.mac, "fd77::201")]
    assert place.heard(thief, victim, [*good, *bad]) == sorted(map(" ".join, good))
    await place.chains.apply(place.config)
    await place.check()
    assert place.heard(thief, victim, good) == []


async def test_an_interface_without_an_end_on_the_host_is_left_alone(bench: Bench) -> None:
    bench.host.shell("ip", "link", "add", "wire", "type", "veth", "peer", "plug")
    for name in ("wire", "plug"):
        bench.host.shell("ip", "link", "set", name, "up")
    made = chain(bench, "macvlan", master="wire", mode="bridge")
    chains = bench.chains()
    await chains.apply(made)
    async with NodeNetwork(
        bench.host.state / "own", bench.host.run, command=bench.host.helper
    ) as helper:
        place = Place(bench, chains, helper, made)
        one, two = await place.attach("thief"), await place.attach("victim")
        await place.check()
        assert "orc_guests" not in bench.host.shell("nft", "list", "tables")
        with ear(two.netns) as listener:
            say(one.netns, two.address, listener.port, b"own")
            assert listener.until(b"own") == []
        for name in ("thief", "victim"):
            await chains.detach(name)
