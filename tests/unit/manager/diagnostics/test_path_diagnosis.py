# SPDX-License-Identifier: Apache-2.0
"""From what was measured between nodes to the one right sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.manager.diagnostics.path_diagnosis import (
    describe_pairs,
    diagnose,
    format_bitrate,
    join_names,
)
from orchestrator.manager.diagnostics.path_measurements import (
    ConfigurationDrift,
    DroppedPackets,
    EchoResult,
    Finding,
    NetworkFacts,
    NodeFacts,
    PathFacts,
    measurement_rounds,
)

ALL, NONE = EchoResult(20, 20, 0.0002), EchoResult(20, 0)
SOME = EchoResult(220, 198, 0.0002)
FIVE = EchoResult(5, 5, 0.0002)
DEAD = {"overlay": NONE, "large": EchoResult(), "checked": 0, "unchecked": 0, "rate": 0.0}
"""What is measured where the tunnel's packets do not arrive."""
CUT = {**DEAD, "underlay": NONE, "path_mtu": 0}

Way = tuple[str, str]


class World:
    """Nodes and their paths, all well until something is changed."""

    def __init__(self, count: int = 3, asked_mtu: int = 0) -> None:
        self.network = NetworkFacts("back", vni=4097, asked_mtu=asked_mtu)
        self.others = [NetworkFacts("front", 4098), NetworkFacts("small", 4099, asked_mtu=1300)]
        self.nodes = {
            f"node{n}": NodeFacts(
                f"node{n}", f"192.0.2.{n}", mtu=1450, device="eth0", device_mtu=1500
            )
            for n in range(1, count + 1)
        }
        self.paths: dict[Way, PathFacts] = {
            way: PathFacts(
                *way,
                underlay=ALL,
                overlay=ALL,
                large=FIVE,
                path_mtu=1500,
                datagrams=10,
                checked=10,
                unchecked=10,
                rate=9e9,
            )
            for way in permutations(self.nodes, 2)
        }

    def node(self, name: str, **change: Any) -> World:
        self.nodes[name] = replace(self.nodes[name], **change)
        return self

    def path(self, source: str, target: str, **change: Any) -> World:
        """Change a path; `*` is any node."""
        for way, path in self.paths.items():
            if source in ("*", way[0]) and target in ("*", way[1]):
                self.paths[way] = replace(path, **change)
        return self

    def both(self, one: str, two: str, **change: Any) -> World:
        return self.path(one, two, **change).path(two, one, **change)

    def beside(self, name: str, asked_mtu: int) -> World:
        """Another network, which is not tested."""
        self.others.append(NetworkFacts(name, 4100, asked_mtu))
        return self

    def without(self, name: str) -> World:
        """A node that tells nothing."""
        self.paths = {way: path for way, path in self.paths.items() if way[0] != name}
        return self

    def judged(self) -> tuple[Finding, ...]:
        return diagnose(self.network, self.nodes.values(), self.paths.values(), self.others)


DOWN_DEAD = {**CUT, "datagrams": 0}
DOWN_ALIVE = {**DEAD, "datagrams": 0}

CASES: list[tuple[str, Callable[[], World], str, str]] = [
    (
        "a node is down",
        lambda: (
            World().node("node3", state="down").without("node3").path("*", "node3", **DOWN_DEAD)
        ),
        "node3 is down, and 192.0.2.3 does not answer",
        "check that the host is up and connected",
    ),
    (
        "only its agent is",
        lambda: (
            World().node("node3", state="down").without("node3").path("*", "node3", **DOWN_ALIVE)
        ),
        "node3 is down, but its host answers node1 and node2",
        "start the agent on node3, or see in its log why it reaches no manager",
    ),
    (
        "all others are down",
        lambda: World(1).node("node1", state="down"),
        "node1 is down",
        "",
    ),
    (
        "an old agent",
        lambda: (
            World()
            .node("node2", trouble="this node is too old for what was asked of it", mtu=0)
            .without("node2")
            .path("*", "node2", **DEAD)
        ),
        "node2 could not be tested: this node is too old for what was asked of it",
        "",
    ),
    (
        "two nodes are apart",
        lambda: World().both("node1", "node2", **CUT),
        "no packets get through between node1 and node2, neither pings nor the tunnel's",
        "look for a cable, a route or a firewall between 192.0.2.1 and 192.0.2.2",
    ),
    (
        "one is apart from all",
        lambda: World().path("*", "node2", **CUT).path("node2", "*", **CUT),
        "no packets get through between node2 and all other nodes, neither pings nor the tunnel's",
        "look for a cable, a route or a firewall between 192.0.2.2 and the others",
    ),
    (
        "nothing of one arrives at another",
        lambda: World().both("node1", "node2", **CUT).path("node1", "node2", checked=10),
        "no packets from node2 arrive at node1, though those from node1 arrive at node2",
        "look for a firewall on node1, or between the nodes, or a route that is missing on node2",
    ),
    (
        "the tunnel is blocked between two",
        lambda: World().both("node1", "node2", **DEAD),
        "packets of the tunnel (UDP port 4789) do not get through between node1 and node2, though "
        "pings do",
        "let UDP port 4789 through on these nodes and between them: a firewall drops it",
    ),
    (
        "the tunnel is blocked everywhere",
        lambda: World().path("*", "*", **DEAD),
        "packets of the tunnel (UDP port 4789) do not get through between any two nodes, though "
        "pings do",
        "let UDP port 4789 through on these nodes and between them: a firewall drops it",
    ),
    (
        "a node lets none in",
        lambda: (
            World()
            .path("*", "node1", **DEAD)
            .path("node1", "*", **{**DEAD, "checked": 10, "unchecked": 10})
        ),
        "packets of the tunnel (UDP port 4789) from node2 and node3 do not arrive at node1, though "
        "pings do",
        "let UDP port 4789 through on these nodes and between them: a firewall drops it",
    ),
    (
        "a card does not compute checksums",
        lambda: World().path("node1", "*", checked=0, rate=0.0),
        "TCP and UDP from node1 arrive at node2 and node3 with a wrong checksum and are dropped: "
        "eth0 of node1 claims to compute it inside tunnels, and does not",
        "on node1: ethtool -K eth0 tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off; "
        "if that does not help: ethtool -K orcvx4097 tx off",
    ),
    (
        "a network that was asked to be too large",
        lambda: World(asked_mtu=1450).path("node1", "node2", path_mtu=1400, large=EchoResult(5, 0)),
        "packets of 1450 bytes, as network back has them, do not get from node1 to node2: that "
        "path carries 1400 bytes, 50 of them for the tunnel",
        "recreate the network with --opt mtu=1350, or raise the MTU between the nodes",
    ),
    (
        "the path would do, but a peer's own network is smaller still",
        lambda: (
            World(asked_mtu=1450)
            .path("node1", "node2", path_mtu=1400, large=EchoResult(5, 0))
            .node("node3", mtu=1300)
        ),
        "packets of 1450 bytes, as network back has them, do not get from node1 to node2: that "
        "path carries 1400 bytes, 50 of them for the tunnel",
        "recreate the network with --opt mtu=1300, or raise the MTU between the nodes",
    ),
    (
        "a network whose MTU is ours to choose",
        lambda: World().both("node1", "node2", path_mtu=1400, large=EchoResult(5, 0)),
        "packets of 1450 bytes, as network back has them, do not get from node1 to node2, nor "
        "along 1 other path: that path carries 1400 bytes, 50 of them for the tunnel",
        "the network follows by itself within a minute, to 1350 bytes; for larger packets raise "
        "the MTU between the nodes",
    ),
    (
        "another network was asked to be too large",
        lambda: (
            World()
            .beside("old", 1400)
            .path("node2", "node1", path_mtu=1400)
            .node("node1", mtu=1350, device_mtu=1400)
            .node("node2", mtu=1350, device_mtu=1400)
        ),
        "network old has an MTU of 1400 bytes, and the path from node2 to node1 carries "
        "1400, 50 of them for the tunnel",
        "recreate the network with --opt mtu=1350, or raise the MTU between the nodes",
    ),
    (
        "large packets get lost, and nobody knows where",
        lambda: World().path("node1", "node2", large=EchoResult(5, 0)),
        "packets of 1450 bytes, as network back has them, do not get from node1 to node2",
        "recreate the network with a smaller --opt mtu",
    ),
    (
        "packets get lost",
        lambda: World().both("node1", "node2", underlay=SOME, overlay=SOME),
        "10% of packets between node1 and node2 get lost",
        "look for a bad cable, a full link or a full queue",
    ),
    (
        "packets of one node get lost",
        lambda: World().path("node3", "*", underlay=SOME).path("*", "node3", overlay=SOME),
        "10% of packets between node3 and all other nodes get lost",
        "look for a bad cable, a full link or a full queue",
    ),
    (
        "the tunnel's packets get lost",
        lambda: World().both("node1", "node2", overlay=SOME),
        "10% of the tunnel's packets, but of no others, between node1 and node2 get lost",
        "look for a firewall that limits UDP port 4789",
    ),
    (
        "an entry is gone, and what follows from that is not said",
        lambda: (
            World()
            .node(
                "node1",
                drifts=(ConfigurationDrift("back", ("the route to 10.1.2.0/24 is missing",)),),
            )
            .both("node1", "node2", **DEAD)
        ),
        "network back on node1 differs in the kernel from its configuration: "
        "the route to 10.1.2.0/24 is missing",
        "its agent repairs it within five seconds; if it recurs, something else on node1 "
        "changes it",
    ),
    (
        "many entries are gone, of another network",
        lambda: World().node(
            "node1", drifts=(ConfigurationDrift("front", ("a", "b", "c", "d", "e")),)
        ),
        "network front on node1 differs in the kernel from its configuration: a; b; c; and 2 more",
        "its agent repairs it within five seconds; if it recurs, something else on node1 "
        "changes it",
    ),
    (
        "a kernel can track hardly any connection more",
        lambda: World().node("node2", tracked=65000, trackable=65536),
        "node2 tracks 65000 connections of at most 65536, and will soon refuse new ones",
        "on node2: raise net.netfilter.nf_conntrack_max by sysctl, or stop the program that opens "
        "them",
    ),
    (
        "a network cannot be",
        lambda: World().node(
            "node1", drifts=(ConfigurationDrift("back", (), "mtu 1500 is too large"),), mtu=0
        ),
        "network back on node1: mtu 1500 is too large",
        "",
    ),
]

NOTES: list[tuple[str, Callable[[], World], str]] = [
    (
        "a container forges its source",
        lambda: World().node("node1", dropped=(DroppedPackets("back", "web.1", 312),)),
        "source check on node1 dropped 312 packets from container web.1 in network back",
    ),
    (
        "a path carries less than the interface says, and the network fits",
        lambda: (
            World()
            .both("node1", "node2", path_mtu=1400)
            .node("node1", mtu=1350)
            .node("node2", mtu=1350)
        ),
        "packets of 1400 bytes and no larger get from node1 to node2, though eth0 of node1 is set "
        "to 1500; 1 other path alike",
    ),
    (
        "pings are filtered",
        lambda: World().path("*", "node2", underlay=NONE, path_mtu=0),
        "the MTU of the paths to node2 could not be found, so the interfaces' MTU is used",
    ),
    (
        "a node is far away",
        lambda: (
            World(5)
            .path("*", "node5", underlay=EchoResult(20, 20, 0.08))
            .path("node5", "*", underlay=EchoResult(20, 20, 0.08))
        ),
        "a packet takes 80 ms there and back between node5 and all other nodes; most take 0.2 ms",
    ),
    (
        "a pair is slow",
        lambda: World().path("node1", "node2", rate=94e6),
        "94 Mbit/s get through between node1 and node2, a fraction of the usual 9 Gbit/s",
    ),
]


def test_filtered_pings_are_no_fault_while_the_tunnel_shows_the_mtu() -> None:
    assert World().path("*", "node2", underlay=NONE).judged() == ()


def test_no_findings_without_problems() -> None:
    for count in (0, 1, 2, 3, 20):
        assert World(count).judged() == ()


@pytest.mark.parametrize(
    ("world", "text", "remedy"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_problem_is_reported_once(world: Callable[[], World], text: str, remedy: str) -> None:
    (finding,) = world().judged()
    assert (finding.wrong, finding.text, finding.remedy) == (True, text, remedy)


@pytest.mark.parametrize(
    ("world", "text"), [case[1:] for case in NOTES], ids=[case[0] for case in NOTES]
)
def test_notable_facts_are_not_problems(world: Callable[[], World], text: str) -> None:
    (finding,) = world().judged()
    assert (finding.wrong, finding.text) == (False, text)


def test_an_encrypted_network_takes_more_and_goes_by_another_port() -> None:
    world = World(asked_mtu=1370).path("node1", "node2", path_mtu=1400, large=EchoResult(5, 0))
    world.network = replace(world.network, encrypted=True)
    for name in world.nodes:
        world.node(name, mtu=1370)
    (finding,) = world.judged()
    assert finding.text.endswith("carries 1400 bytes, 130 of them for the tunnel")
    assert finding.remedy.startswith("recreate the network with --opt mtu=1270, or ")
    world.both("node1", "node2", **DEAD)
    (finding,) = world.judged()
    assert finding.remedy == (
        "let UDP ports 51840 and 51841 through on these nodes and between them: a firewall drops it"
    )


def test_findings_list_problems_first() -> None:
    world = World(4).path("node1", "node2", rate=1e6).both("node3", "node4", **CUT)
    assert [finding.wrong for finding in world.judged()] == [True, False]


def test_a_node_without_the_network_has_no_findings() -> None:
    gone: dict[str, Any] = {**DEAD, "overlay": EchoResult(), "datagrams": 0}
    world = World().node("node3", mtu=0).path("node3", "*", **gone).path("*", "node3", **gone)
    assert world.judged() == ()


ECHOES = st.builds(
    lambda sent, received, latency: EchoResult(sent, min(sent, received), latency),
    st.integers(0, 220), st.integers(0, 220), st.floats(0, 1),
)  # fmt: skip
PATHS = st.builds(
    PathFacts,
    source=st.sampled_from("abcd"),
    target=st.sampled_from("abcd"),
    underlay=ECHOES,
    overlay=ECHOES,
    large=ECHOES,
    path_mtu=st.sampled_from([0, 576, 1400, 1500]),
    datagrams=st.sampled_from([0, 10]),
    checked=st.integers(0, 10),
    unchecked=st.integers(0, 10),
    rate=st.floats(0, 1e11),
).filter(lambda path: path.source != path.target)
STATES = st.lists(
    st.tuples(st.sampled_from(["ready", "down"]), st.sampled_from([0, 1450])),
    min_size=4, max_size=4,
)  # fmt: skip


@given(STATES, st.lists(PATHS, unique_by=lambda path: (path.source, path.target)))
def test_every_measurement_has_a_diagnosis(
    states: list[tuple[str, int]], paths: list[PathFacts]
) -> None:
    nodes = [
        NodeFacts(name, f"192.0.2.{n}", state=state, mtu=mtu, device_mtu=1500)
        for n, (name, (state, mtu)) in enumerate(zip("abcd", states, strict=True))
    ]
    found = diagnose(NetworkFacts("back", 4097), nodes, paths)
    assert diagnose(NetworkFacts("back", 4097), nodes[::-1], paths[::-1]) is not None
    down = {node.name for node in nodes if node.state == "down"}
    for finding in found:
        assert finding.text
        assert finding.nodes
        assert not down & set(finding.nodes) or (finding.wrong and len(finding.nodes) == 1)
    assert {finding.nodes[0] for finding in found if "is down" in finding.text} == down


PAIRS = st.sets(st.frozensets(st.sampled_from("abcdef"), min_size=2, max_size=2))


@given(PAIRS, PAIRS)
def test_scopes_name_each_bad_pair_and_no_other(
    bad: set[frozenset[str]], more: set[frozenset[str]]
) -> None:
    tested = bad | more
    said = list(describe_pairs(bad, tested))
    covered: set[frozenset[str]] = set()
    for words, names in said:
        if "any two" in words:
            covered |= tested
        elif "all other" in words:
            covered |= {pair for pair in tested if names[0] in pair}
        else:
            covered.add(frozenset(names))
    assert covered == bad
    assert len(said) <= len(bad)


@given(st.integers(0, 40), st.integers(1, 40))
def test_rounds_have_each_pair_once_and_each_node_at_most_once(count: int, most: int) -> None:
    names = [str(n) for n in range(count)]
    found = measurement_rounds(names, most)
    for each in found:
        met = [name for pair in each for name in pair]
        assert len(met) == len(set(met))
    pairs = [frozenset(pair) for each in found for pair in each]
    assert len(pairs) == len(set(pairs))
    assert len(found) <= most
    if most >= count:
        assert len(pairs) == count * (count - 1) // 2


def test_bitrates_and_lists_of_names_are_formatted() -> None:
    assert [format_bitrate(n) for n in (9.41e9, 94.2e6, 5e3, 7)] == [
        "9.41 Gbit/s", "94.2 Mbit/s", "5 kbit/s", "7 bit/s",
    ]  # fmt: skip
    assert join_names("a") == "a"
    assert join_names("ab") == "a and b"
    assert join_names("abcd") == "a, b, c and d"
    assert join_names("abcde") == "a, b, c and 2 more"
