# SPDX-License-Identifier: Apache-2.0
"""A container that forges its source with raw sockets: nothing of that arrives anywhere."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
from forging import (
    ADVERTISEMENT,
    EVERYBODY,
    SOLICITATION,
    arp,
    datagram,
    ear,
    link_local,
    multicast_report,
    neighbour,
    router_advertisement,
    say,
    wire,
)
from netkit import BEYOND, Node, reaches, shell, show
from nshosts import NsHost

from orchestrator.agent.network.network_types import Attachment, Forgery, Interface

pytestmark = pytest.mark.root

GATEWAY_MAC = "02:62:0a:01:01:01"


@pytest.fixture(params=["", "ip", "ip ip6"])
async def bridged_pass_rules(request: pytest.FixtureRequest, nodes: list[Node]) -> None:
    """Of which families bridged packets pass the rules (br_netfilter), as on a host with Docker."""
    families = request.param.split()
    for node in nodes:
        for family, setting in (("ip", "iptables"), ("ip6", "ip6tables"), ("ip", "arptables")):
            on = int(family in families)
            node.host.shell("sysctl", "-qw", f"net.bridge.bridge-nf-call-{setting}={on}")
        for name in "ab":
            await node.apply(name)


@pytest.fixture
def strict_paths(hosts: list[NsHost]) -> Iterator[None]:
    """Hosts that drop what comes from where they would not send it to."""
    for host in hosts[1:]:
        host.shell("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1")
    yield
    for host in hosts[1:]:
        host.shell("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0")


def heard(
    thief: Attachment, victim: Attachment, forgeries: Collection[tuple[str, str]]
) -> list[str]:
    """Which forged sources (MAC, address) a victim hears; each is sent by the gateway, and straight
    to the victim's hardware address."""
    with ear(victim.netns) as listener, wire(thief.netns) as veth:
        for mac, source in forgeries:
            to = victim.address6 if ":" in source else victim.address
            forged = datagram(source, to, listener.port, f"{mac} {source}".encode())
            veth.send(GATEWAY_MAC, mac, forged)
            veth.send(victim.mac, mac, forged)
        for address in (victim.address, victim.address6):
            say(thief.netns, address, listener.port, address.encode())
        found = listener.until(victim.address6.encode())
        assert victim.address.encode() in found, "what is not forged arrives"
        return sorted({one.decode() for one in found if one != victim.address.encode()})


@pytest.mark.usefixtures("bridged_pass_rules")
async def test_no_forged_source_arrives(nodes: list[Node]) -> None:
    one, two = nodes
    thief = await one.network.attach("a", "thief")
    allowed = await one.network.attach("a", "allowed")
    local = await one.network.attach("a", "local")
    remote = await two.network.attach("a", "remote")
    other = await one.network.attach("b", "other")
    sources = [
        allowed.address,
        remote.address,
        other.address,
        one.host.address,
        two.host.address,
        "10.1.1.1",
        "10.1.1.77",
        "9.9.9.9",
        allowed.address6,
        remote.address6,
        "2001:db8:9::9",
        "fd00:1:0:1::77",
        link_local(allowed.mac),
    ]
    for victim in (local, remote):
        forgeries = [(thief.mac, source) for source in sources if source != victim.address]
        # Another one's pair, which is right but for where it comes from, and a strange MAC.
        forgeries += [(allowed.mac, allowed.address), (allowed.mac, allowed.address6)]
        forgeries += [("02:00:00:00:00:99", thief.address), ("02:00:00:00:00:99", thief.address6)]
        assert heard(thief, victim, forgeries) == []


async def test_addresses_added_by_a_container_are_not_its_own(nodes: list[Node]) -> None:
    one, two = nodes
    keeper = await one.network.attach("a", "keeper")
    victim = await two.network.attach("a", "victim")
    shell(keeper.netns, "ip", "addr", "add", "10.1.1.77/24", "dev", "eth0")
    shell(
        keeper.netns, "ip", "route", "replace", "10.1.2.0/24", "via", "10.1.1.1", "src", "10.1.1.77"
    )
    with ear(victim.netns) as listener:
        say(keeper.netns, victim.address, listener.port, b"as another")
        shell(keeper.netns, "ip", "route", "del", "10.1.2.0/24")
        say(keeper.netns, victim.address, listener.port, b"as itself")
        assert listener.until(b"as itself") == []


@pytest.mark.usefixtures("bridged_pass_rules")
async def test_a_host_hears_no_broadcast_without_a_source(nodes: list[Node]) -> None:
    one = nodes[0]
    thief = await one.network.attach("a", "thief")
    neighbour_ = await one.network.attach("a", "neighbour")
    for place in (one.host.netns, neighbour_.netns):
        with ear(place, 67) as listener, wire(thief.netns) as veth:
            veth.send(EVERYBODY, thief.mac, datagram("0.0.0.0", "255.255.255.255", 67, b"DHCP"))
            to = "10.1.1.1" if place == one.host.netns else neighbour_.address
            say(thief.netns, to, 67, b"own")
            assert listener.until(b"own") == []


def told(node: Node, thief: Attachment) -> None:
    """Until the host has taken in all that the container sent before."""
    with ear(node.host.netns) as listener:
        say(thief.netns, "10.1.1.1", listener.port, b"own")
        listener.until(b"own")


def known(netns: str | Path, device: str) -> dict[str, str]:
    return {
        entry["dst"]: entry.get("lladdr", "")
        for family in ("-4", "-6")
        for entry in show(netns, family, "neigh", "show", "dev", device)
    }


@pytest.mark.usefixtures("bridged_pass_rules")
async def test_a_forged_neighbour_entry_is_ignored(nodes: list[Node]) -> None:
    one = nodes[0]
    thief = await one.network.attach("a", "thief")
    victim = await one.network.attach("a", "victim")
    before = known(victim.netns, "eth0")
    # The host looks for addresses that nobody has.
    for address in ("10.1.1.77", "fd00:1:0:1::77"):
        say(one.host.netns, address, 9, b"?")
    local = link_local(thief.mac)
    with wire(thief.netns) as veth:
        for to in (EVERYBODY, GATEWAY_MAC, victim.mac):
            for sender, target in (
                ("10.1.1.77", "10.1.1.77"),
                ("10.1.1.78", "10.1.1.1"),
                ("10.1.1.78", victim.address),
                ("10.1.1.1", victim.address),
                (victim.address, "10.1.1.1"),
            ):
                for operation in (1, 2):
                    veth.send(to, thief.mac, arp(operation, thief.mac, sender, target))
            for source, target in (
                (local, "fd00:1:0:1::77"),
                (thief.address6, "fd00:1:0:1::77"),
                ("fd00:1:0:1::77", "fd00:1:0:1::77"),
                (local, "fd00:1:0:1::1"),
            ):
                for goal in ("ff02::1", "fd00:1:0:1::1", victim.address6):
                    claimed = neighbour(ADVERTISEMENT, thief.mac, source, goal, target)
                    veth.send(to, thief.mac, claimed)
            for goal in ("fd00:1:0:1::1", victim.address6):
                asked = neighbour(SOLICITATION, thief.mac, "fd00:1:0:1::79", goal, goal)
                veth.send(to, thief.mac, asked)
    told(one, thief)
    entries = known(one.host.netns, "orcbr1")
    stolen = {address for address, mac in entries.items() if mac == thief.mac}
    assert stolen <= {thief.address, thief.address6, local}
    assert known(victim.netns, "eth0") == before


async def test_a_container_is_no_router(nodes: list[Node]) -> None:
    one = nodes[0]
    thief = await one.network.attach("a", "thief")
    one.host.shell("sysctl", "-qw", "net.ipv6.conf.orcbr1.accept_ra=2")
    with wire(thief.netns) as veth:
        for source in (link_local(thief.mac), "fe80::1"):
            veth.send("33:33:00:00:00:01", thief.mac, router_advertisement(source))
    told(one, thief)
    assert show(one.host.netns, "-6", "route", "show", "default") == []


async def test_packets_with_own_addresses_pass(nodes: list[Node], hosts: list[NsHost]) -> None:
    """Fixed addresses, an own MAC, its own neighbour discovery, a second network, the way out."""
    one, two = nodes
    asked = Interface(ip="10.1.0.20", ip6="fd00:1::20", mac="02:aa:00:00:00:01")
    fixed = await one.network.attach("a", "fixed", asked)
    await two.apply("a", "10.1.0.20", "fd00:1::20")
    far = await two.network.attach("a", "far")
    second = await one.network.attach("b", "fixed", Interface(ifname="eth1", default_route=False))
    b = await two.network.attach("b", "b2")
    assert reaches(fixed.netns, far.netns, far.address) == fixed.address
    assert reaches(fixed.netns, far.netns, far.address6) == fixed.address6
    assert reaches(far.netns, fixed.netns, fixed.address) == far.address
    assert reaches(fixed.netns, b.netns, b.address) == second.address
    assert reaches(fixed.netns, hosts[0].netns, BEYOND) == one.host.address
    # It forgets who its gateway is, and asks.
    shell(fixed.netns, "ip", "neigh", "flush", "nud", "permanent", "dev", "eth0")
    shell(fixed.netns, "ip", "-6", "neigh", "flush", "nud", "permanent", "dev", "eth0")
    assert reaches(fixed.netns, far.netns, far.address) == fixed.address
    assert reaches(fixed.netns, far.netns, far.address6) == fixed.address6
    await one.network.disconnect("b", "fixed")
    assert reaches(fixed.netns, far.netns, far.address) == fixed.address


@pytest.mark.usefixtures("strict_paths")
async def test_a_network_may_have_no_source_check(nodes: list[Node], hosts: list[NsHost]) -> None:
    """A container forwards for others, and has floating addresses; another network is checked."""
    one, two = nodes
    before = await one.network.attach("a", "before")
    for node in nodes:
        await node.apply("a", source_check=False)
    assert await one.network.deviations("a") == []
    gateway = await one.network.attach("a", "gateway")
    strict = await one.network.attach("b", "strict")
    victims = [await node.network.attach("a", f"victim{node.number}") for node in nodes]
    other = await two.network.attach("b", "other")
    for sender in (before, gateway):
        for victim in victims:
            for mac in (sender.mac, "02:00:00:00:00:99"):
                forgeries = [(mac, "10.1.1.77"), (mac, "172.30.0.9"), (mac, "2001:db8:9::9")]
                assert heard(sender, victim, forgeries) == sorted(map(" ".join, forgeries))
    assert heard(strict, other, [(strict.mac, "10.2.1.77"), (strict.mac, "172.30.0.9")]) == []
    with ear(other.netns) as listener, wire(gateway.netns) as veth:
        into = datagram(strict.address, other.address, listener.port, b"into another network")
        veth.send(GATEWAY_MAC, gateway.mac, into)
        say(strict.netns, other.address, listener.port, b"own")
        assert listener.until(b"own") == []
    # Whoever it forwards for leaves by the host's address.
    with ear(hosts[0].netns) as listener, wire(gateway.netns) as veth:
        veth.send(GATEWAY_MAC, gateway.mac, datagram("172.30.0.9", BEYOND, listener.port, b"out"))
        assert listener.sender(b"out") == one.host.address
    await one.apply("a")
    assert await one.network.deviations("a") == []
    for sender in (before, gateway):
        forgeries = [(sender.mac, "10.1.1.77"), ("02:00:00:00:00:99", sender.address)]
        assert heard(sender, victims[1], forgeries) == []


@pytest.mark.usefixtures("strict_paths")
async def test_a_network_may_allow_further_sources(nodes: list[Node], hosts: list[NsHost]) -> None:
    """A floating address in either family, and a range behind a VPN's gateway."""
    one, two = nodes
    allowed = ("10.1.1.200/32", "172.30.0.0/24", "fd00:1:0:1::200/128")
    for node in nodes:
        await node.apply("a", allowed_sources=allowed)
    assert await one.network.deviations("a") == []
    keeper = await one.network.attach("a", "keeper")
    neighbour_ = await one.network.attach("a", "neighbour")
    victims = [neighbour_, await two.network.attach("a", "victim")]
    good = [(keeper.mac, source) for source in ("10.1.1.200", "172.30.0.9", "fd00:1:0:1::200")]
    bad = [(keeper.mac, source) for source in ("10.1.1.201", "172.30.1.9", "fd00:1:0:1::201")]
    bad += [("02:00:00:00:00:99", "10.1.1.200"), (keeper.mac, neighbour_.address)]
    for victim in victims:
        expected = [each for each in good if each[1] != victim.address]
        sent = [each for each in (*good, *bad) if each[1] != victim.address]
        assert heard(keeper, victim, sent) == sorted(map(" ".join, expected))
    # Others find the floating addresses, and the answers come from there.
    for address, prefix in (("10.1.1.200", 32), ("fd00:1:0:1::200", 128)):
        shell(keeper.netns, "ip", "addr", "add", f"{address}/{prefix}", "dev", "eth0", "nodad")
        for victim in victims:
            assert reaches(victim.netns, keeper.netns, address) == (
                victim.address6 if ":" in address else victim.address
            )
        shell(keeper.netns, "ip", "addr", "del", f"{address}/{prefix}", "dev", "eth0")
    with ear(hosts[0].netns) as listener, wire(keeper.netns) as veth:
        veth.send(GATEWAY_MAC, keeper.mac, datagram("172.30.0.9", BEYOND, listener.port, b"out"))
        assert listener.sender(b"out") == one.host.address
    await one.apply("a")
    assert heard(keeper, victims[1], good) == []


async def test_no_source_check_makes_no_router(nodes: list[Node]) -> None:
    one = nodes[0]
    await one.apply("a", source_check=False)
    thief = await one.network.attach("a", "thief")
    one.host.shell("sysctl", "-qw", "net.ipv6.conf.orcbr1.accept_ra=2")
    with wire(thief.netns) as veth:
        for source in (link_local(thief.mac), "fe80::1"):
            veth.send("33:33:00:00:00:01", thief.mac, router_advertisement(source))
    told(one, thief)
    assert show(one.host.netns, "-6", "route", "show", "default") == []


async def test_dropped_packets_are_counted_per_container(nodes: list[Node]) -> None:
    one, two = nodes
    fixed = Interface(ip="10.1.1.50", mac="02:aa:00:00:00:01")
    thief = await one.network.attach("a", "thief", fixed)
    quiet = await one.network.attach("a", "quiet")
    victim = await two.network.attach("a", "victim")
    # What a kernel does by itself: it looks for its addresses, and joins groups.
    with wire(quiet.netns) as veth:
        for own in (quiet.address6, link_local(quiet.mac)):
            asked = neighbour(SOLICITATION, quiet.mac, "::", "ff02::1:ff00:1", own)
            veth.send("33:33:ff:00:00:01", quiet.mac, asked)
        veth.send("33:33:00:00:00:16", quiet.mac, multicast_report("::"))
    assert reaches(quiet.netns, victim.netns, victim.address6) == quiet.address6
    with wire(thief.netns) as veth:
        for number in range(100, 110):
            forged = datagram(f"10.1.1.{number}", victim.address, 9, b"forged")
            veth.send(GATEWAY_MAC, thief.mac, forged)
        forged = datagram("fd00:1:0:1::77", victim.address6, 9, b"forged")
        veth.send(GATEWAY_MAC, thief.mac, forged)
        veth.send(EVERYBODY, thief.mac, arp(1, thief.mac, "10.1.1.77", "10.1.1.1"))
        veth.send("33:33:00:00:00:01", thief.mac, router_advertisement(link_local(thief.mac)))
    told(one, thief)
    assert await one.network.forgeries() == [Forgery("a", "thief", 13)]
    assert await two.network.forgeries() == []
    await one.network.disconnect("a", "thief")
    await one.network.attach("a", "next", fixed)
    assert await one.network.forgeries() == []


async def test_manual_changes_are_repaired_by_a_new_helper(nodes: list[Node]) -> None:
    one, two = nodes
    thief = await one.network.attach("a", "thief")
    victim = await two.network.attach("a", "victim")
    assert one.network.helper_pid is not None
    os.kill(one.network.helper_pid, signal.SIGKILL)
    await one.apply("a")
    end = str(thief.result["interfaces"][1]["name"])
    for damage, words in (
        ("nft delete table inet orc", "inet orc from_orcbr1 is gone"),
        ("nft delete table arp orc", "arp orc from_orcbr1 is gone"),
        ("nft flush set inet orc own4_orcbr1", "own4_orcbr1 has 0 entries instead of 1"),
        ("nft flush set inet orc own6_orcbr1", "own6_orcbr1 has 0 entries instead of 2"),
        ("nft flush set arp orc own_orcbr1", "own_orcbr1 has 0 entries instead of 1"),
        ("nft flush chain inet orc from_orcbr1", "from_orcbr1 has 0 entries instead of"),
        ("nft flush map inet orc entrances", "entrances has lost"),
        (f"bridge link set dev {end} locked off", "accepts frames from any hardware address"),
    ):
        one.host.shell(*damage.split())
        assert words in "; ".join(await one.network.deviations("a")), damage
        await one.apply("a")
        await one.apply("b")
        assert await one.network.deviations("a") == [], damage
        forgeries = [(thief.mac, "10.1.1.77"), ("02:00:00:00:00:99", thief.address)]
        assert heard(thief, victim, forgeries) == []


async def test_a_reused_address_belongs_to_its_next_container(nodes: list[Node]) -> None:
    one, two = nodes
    victim = await two.network.attach("a", "victim")
    fixed = Interface(ip="10.1.1.50", mac="02:aa:00:00:00:01")
    await one.network.attach("a", "before", fixed)
    keeper = await one.network.attach("a", "keeper")
    await one.network.disconnect("a", "before")
    assert heard(keeper, victim, [("02:aa:00:00:00:01", "10.1.1.50")]) == []
    after = await one.network.attach("a", "after", Interface(ip="10.1.1.50"))
    assert reaches(after.netns, victim.netns, victim.address) == "10.1.1.50"
    again = await one.network.attach("a", "after", Interface(ip="10.1.1.51", mac=fixed.mac))
    assert reaches(again.netns, victim.netns, victim.address) == "10.1.1.51"
    assert heard(again, victim, [(again.mac, "10.1.1.50")]) == []
