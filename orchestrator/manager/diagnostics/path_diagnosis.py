# SPDX-License-Identifier: Apache-2.0
"""From measurements between nodes to findings: cause, scope and remedy, in plain words. Pure.

Rules run in order; each considers only what earlier rules left unexplained. Two nodes that cannot
reach each other get no MTU finding, and a node that is down is reported once. Findings that many
pairs share are merged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from orchestrator.manager.diagnostics.path_measurements import (
    Finding,
    NetworkFacts,
    NodeFacts,
    PathFacts,
)


def describe_pairs(
    bad: Collection[frozenset[str]], tested: Collection[frozenset[str]]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Pairs of nodes in few words: all, one node with all others, or two nodes."""
    left = set(bad)
    if len(left) > 1 and left == set(tested):
        yield "between any two nodes", tuple(sorted({name for pair in left for name in pair}))
        return
    for name in sorted({name for pair in left for name in pair}):
        own = {pair for pair in tested if name in pair}
        if len(own) > 1 and own <= left:
            left -= own
            others = sorted(other for pair in own for other in pair - {name})
            yield f"between {name} and all other nodes", (name, *others)
    for one, two in sorted(tuple(sorted(pair)) for pair in left):
        yield f"between {one} and {two}", (one, two)


def join_names(names: Iterable[str], most: int = 3) -> str:
    """Names as an enumeration."""
    found = sorted(set(names))
    if len(found) > most + 1:
        return f"{', '.join(found[:most])} and {len(found) - most} more"
    return " and ".join(filter(None, (", ".join(found[:-1]), found[-1])))


def format_bitrate(rate: float) -> str:
    """A rate in bits per second, for people."""
    for factor, unit in ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")):
        if rate >= factor:
            return f"{rate / factor:.3g} {unit}"
    return f"{rate:.0f} bit/s"


LOSS_THRESHOLD = 0.01
"""Share of lost packets from which on it is a problem."""
TABLE_THRESHOLD = 0.95
"""Share of the connection tracking table in use from which on it is a problem."""
SLOW_RATE, SLOW_LATENCY = 4.0, 4.0
"""Factors relative to the median pair from which on a pair is reported."""
NOTABLE_LATENCY = 0.02
"""Round-trip seconds below which no latency is reported."""


@dataclass(slots=True)
class _Case:
    """All measurements, and the pairs with a known cause."""

    network: NetworkFacts
    nodes: dict[str, NodeFacts]
    paths: list[PathFacts]
    others: tuple[NetworkFacts, ...]
    explained: set[frozenset[str]] = field(default_factory=set)

    @property
    def open(self) -> list[PathFacts]:
        """Paths between tested nodes without a known problem."""
        return [
            path
            for path in self.paths
            if path.pair not in self.explained
            and all(self.nodes[name].tested for name in path.pair)
        ]

    @property
    def inside(self) -> list[PathFacts]:
        """Of these, the ones whose ends both have the network, as configured."""
        whole = {name for name, node in self.nodes.items() if node.mtu and not self._drifted(node)}
        return [path for path in self.open if path.pair <= whole]

    def _drifted(self, node: NodeFacts) -> bool:
        return any(drift.network in ("", self.network.name) for drift in node.drifts)


def diagnose(
    network: NetworkFacts,
    nodes: Iterable[NodeFacts],
    paths: Iterable[PathFacts],
    others: Iterable[NetworkFacts] = (),
) -> tuple[Finding, ...]:
    """All findings, problems first. `others` are networks that use the same paths and were not
    tested themselves."""
    case = _Case(network, {node.name: node for node in nodes}, list(paths), tuple(others))
    found = [finding for rule in _RULES for finding in rule(case)]
    return tuple(sorted(found, key=lambda finding: not finding.wrong))


def _pairs(paths: Iterable[PathFacts]) -> set[frozenset[str]]:
    return {path.pair for path in paths}


# -- the rules, in order ---------------------------------------------------------------------------


def _absent(case: _Case) -> Iterator[Finding]:
    for node in case.nodes.values():
        if node.tested:
            continue
        if node.state == "ready":
            text = f"{node.name} could not be tested: {node.trouble}"
            yield Finding(True, (node.name,), text)
            continue
        asked = [path for path in case.paths if path.target == node.name and path.underlay.sent]
        answered = [path.source for path in asked if path.underlay.received]
        if answered:
            yield Finding(
                True,
                (node.name,),
                f"{node.name} is {node.state}, but its host answers {join_names(answered)}",
                f"start the agent on {node.name}, or see in its log why it reaches no manager",
            )
        elif asked:
            yield Finding(
                True,
                (node.name,),
                f"{node.name} is {node.state}, and {node.address} does not answer",
                "check that the host is up and connected",
            )
        else:
            yield Finding(True, (node.name,), f"{node.name} is {node.state}")


def _unreachable(case: _Case) -> Iterator[Finding]:
    """No packets of any kind arrive."""
    answered = {p.pair for p in case.open if p.underlay.received or p.overlay.received}
    arrived = {(p.source, p.target) for p in case.open if _heard(p)}
    answered |= {frozenset(way) for way in arrived if way[::-1] in arrived}
    dead = _pairs(case.open) - answered
    heard = {way for way in arrived if frozenset(way) in dead}
    for source, target in sorted(heard):
        yield Finding(
            True,
            (target, source),
            f"no packets from {target} arrive at {source}, though those from "
            f"{source} arrive at {target}",
            f"look for a firewall on {source}, or between the nodes, or a route that is missing on "
            f"{target}",
        )
    for where, names in describe_pairs(dead - set(map(frozenset, heard)), _pairs(case.open)):
        ends = [case.nodes[name].address for name in names[:2]]
        other = ends[1] if len(names) == 2 else "the others"
        yield Finding(
            True,
            names,
            f"no packets get through {where}, neither pings nor the tunnel's",
            f"look for a cable, a route or a firewall between {ends[0]} and {other}",
        )
    case.explained |= dead


def _heard(path: PathFacts) -> bool:
    return bool(path.checked or path.unchecked)


def _tunnel(case: _Case) -> Iterator[Finding]:
    """Pings arrive, packets of the tunnel do not."""
    inside = case.inside
    dead = _pairs(inside) - {path.pair for path in inside if path.overlay.received}
    deaf = {(p.source, p.target) for p in inside if p.pair in dead and not _heard(p)}
    one_way = {(source, target) for source, target in deaf if (target, source) not in deaf}
    both = dead - {frozenset(pair) for pair in one_way}
    for where, names in describe_pairs(both, _pairs(inside)):
        yield _no_tunnel(case, f"do not get through {where}", names)
    for target in sorted({target for _, target in one_way}):
        sources = sorted(source for source, its in one_way if its == target)
        text = f"from {join_names(sources)} do not arrive at {target}"
        yield _no_tunnel(case, text, (*sources, target))
    case.explained |= dead


def _no_tunnel(case: _Case, text: str, names: tuple[str, ...]) -> Finding:
    transport = case.network.transport
    return Finding(
        True,
        names,
        f"packets of the tunnel ({transport}) {text}, though pings do",
        f"let {transport} through on these nodes and between them: a firewall drops it",
    )


def _checksums(case: _Case) -> Iterator[Finding]:
    broken = [p for p in case.inside if p.datagrams and p.unchecked and not p.checked]
    for source in sorted({path.source for path in broken}):
        targets = [path.target for path in broken if path.source == source]
        device = case.nodes[source].device
        yield Finding(
            True,
            (source, *sorted(targets)),
            f"TCP and UDP from {source} arrive at {join_names(targets)} with a wrong checksum and "
            f"are dropped: {device} of {source} claims to compute it inside tunnels, and does "
            "not",
            f"on {source}: ethtool -K {device} tx-udp_tnl-segmentation off "
            "tx-udp_tnl-csum-segmentation off; if that does not help: "
            f"ethtool -K orcvx{case.network.vni} tx off",
        )
    case.explained |= _pairs(broken)


def _mtus(case: _Case) -> Iterator[Finding]:
    inside = case.inside
    small = [p for p in inside if p.large.sent and not p.large.received and p.overlay.received]
    if not small:
        return
    worst = min(small, key=lambda path: (path.path_mtu or 1 << 16, path.source, path.target))
    size, name = case.nodes[worst.source].mtu, case.network.name
    more = f", nor along {_others(len(small) - 1)}" if len(small) > 1 else ""
    text = (
        f"packets of {size} bytes, as network {name} has them, do not get from {worst.source} to "
        f"{worst.target}{more}"
    )
    remedy = "recreate the network with a smaller --opt mtu"
    overhead = case.network.overhead
    if 0 < worst.path_mtu < size + overhead:
        text += f": that path carries {worst.path_mtu} bytes, {overhead} of them for the tunnel"
        if case.network.asked_mtu:
            remedy = _smaller(_fitting(case))
        else:
            remedy = (
                f"the network follows by itself within a minute, to {_fitting(case)} bytes; for "
                "larger packets raise the MTU between the nodes"
            )
    yield Finding(True, tuple(sorted({n for path in small for n in path.pair})), text, remedy)
    case.explained |= _pairs(small)


def _fitting(case: _Case) -> int:
    """The largest MTU of the network that every path and peer carries."""
    carried = [path.path_mtu - case.network.overhead for path in case.paths if path.path_mtu]
    taken = [node.mtu for node in case.nodes.values() if node.mtu]
    return min([*carried, *taken])


def _smaller(size: int) -> str:
    return f"recreate the network with --opt mtu={size}, or raise the MTU between the nodes"


def _oversized_networks(case: _Case) -> Iterator[Finding]:
    """Other networks whose configured MTU the paths do not carry."""
    known = [path for path in case.paths if path.path_mtu]
    if not known:
        return
    worst = min(known, key=lambda path: (path.path_mtu, path.source, path.target))
    for other in case.others:
        if other.asked_mtu + other.overhead > worst.path_mtu:
            yield Finding(
                True,
                (worst.source, worst.target),
                f"network {other.name} has an MTU of {other.asked_mtu} bytes, and the "
                f"path from {worst.source} to {worst.target} carries {worst.path_mtu}, "
                f"{other.overhead} of them for the tunnel",
                _smaller(worst.path_mtu - other.overhead),
            )


def _others(count: int) -> str:
    return "1 other path" if count == 1 else f"{count} other paths"


def _narrow(case: _Case) -> Iterator[Finding]:
    narrow = [p for p in case.open if 0 < p.path_mtu < case.nodes[p.source].device_mtu]
    if not narrow:
        return
    worst = min(narrow, key=lambda path: (path.path_mtu, path.source, path.target))
    node = case.nodes[worst.source]
    more = f"; {_others(len(narrow) - 1)} alike" if len(narrow) > 1 else ""
    yield Finding(
        False,
        tuple(sorted({name for path in narrow for name in path.pair})),
        f"packets of {worst.path_mtu} bytes and no larger get from {worst.source} to "
        f"{worst.target}, though {node.device} of {worst.source} is set to {node.device_mtu}{more}",
        "networks use the MTU of the paths; for larger packets raise the MTU between the nodes",
    )


def _losses(case: _Case) -> Iterator[Finding]:
    plain = {p.pair: p for p in _lossy(case.open, "underlay")}
    tunnel = {p.pair: p for p in _lossy(case.inside, "overlay") if p.pair not in plain}
    for what, lossy, kind in (
        ("packets", plain, "underlay"),
        ("the tunnel's packets, but of no others,", tunnel, "overlay"),
    ):
        for where, names in describe_pairs(lossy.keys(), _pairs(case.open)):
            shares = [
                getattr(path, kind).lost for pair, path in lossy.items() if pair <= set(names)
            ]
            remedy = (
                "look for a bad cable, a full link or a full queue"
                if kind == "underlay"
                else f"look for a firewall that limits {case.network.transport}"
            )
            yield Finding(
                True, names, f"{_percent(max(shares))} of {what} {where} get lost", remedy
            )
    case.explained |= plain.keys() | tunnel.keys()


def _lossy(paths: Iterable[PathFacts], kind: str) -> list[PathFacts]:
    """Of each pair that loses packets, the direction that loses more, lesser losses first."""
    found = [path for path in paths if LOSS_THRESHOLD <= getattr(path, kind).lost < 1]
    return sorted(found, key=lambda path: getattr(path, kind).lost)


def _percent(share: float) -> str:
    return f"{share * 100:.0f}%"


def _silent(case: _Case) -> Iterator[Finding]:
    """The path MTU could not be determined, neither by pings nor through the tunnel."""
    silent = [p for p in case.inside if not p.path_mtu]
    for target in sorted({path.target for path in silent}):
        yield Finding(
            False,
            (target,),
            f"the MTU of the paths to {target} could not be found, so the interfaces' MTU is used",
            f"let ICMP echo through to {case.nodes[target].address}",
        )


def _slow(case: _Case) -> Iterator[Finding]:
    far = [path for path in case.open if path.underlay.received]
    usual = median(path.underlay.latency for path in far) if far else 0.0
    late = [
        path for path in far if path.underlay.latency > max(NOTABLE_LATENCY, usual * SLOW_LATENCY)
    ]
    for where, names in describe_pairs(_pairs(late), _pairs(case.open)):
        worst = max(path.underlay.latency for path in late if path.pair <= set(names))
        text = f"a packet takes {worst * 1000:.0f} ms there and back {where}"
        yield Finding(False, names, f"{text}; most take {usual * 1000:.1f} ms")
    rated = [path for path in case.open if path.rate]
    usual = median(path.rate for path in rated) if rated else 0.0
    slow = [path for path in rated if path.rate * SLOW_RATE < usual]
    for where, names in describe_pairs(_pairs(slow), _pairs(case.open)):
        worst = min(path.rate for path in slow if path.pair <= set(names))
        text = (
            f"{format_bitrate(worst)} get through {where}, "
            f"a fraction of the usual {format_bitrate(usual)}"
        )
        remedy = "check whether a network card has negotiated a lower speed, or a link is congested"
        yield Finding(False, names, text, remedy)


def _drifts(case: _Case) -> Iterator[Finding]:
    for node in case.nodes.values():
        for drift in node.drifts:
            where = f"network {drift.network} on {node.name}" if drift.network else node.name
            if drift.failure:
                yield Finding(True, (node.name,), f"{where}: {drift.failure}")
            if drift.deviations:
                yield Finding(
                    True,
                    (node.name,),
                    f"{where} differs in the kernel from its configuration: "
                    f"{_some(drift.deviations)}",
                    "its agent repairs it within five seconds; if it recurs, something else "
                    f"on {node.name} changes it",
                )


def _full_tracking_tables(case: _Case) -> Iterator[Finding]:
    for node in case.nodes.values():
        if node.trackable and node.tracked >= node.trackable * TABLE_THRESHOLD:
            yield Finding(
                True,
                (node.name,),
                f"{node.name} tracks {node.tracked} connections of at most {node.trackable}, and "
                "will soon refuse new ones",
                f"on {node.name}: raise net.netfilter.nf_conntrack_max by sysctl, or stop "
                "the program that opens them",
            )


def _spoofing_containers(case: _Case) -> Iterator[Finding]:
    for node in case.nodes.values():
        for each in node.dropped:
            yield Finding(
                False,
                (node.name,),
                f"source check on {node.name} dropped {each.packets} packets from container "
                f"{each.container} in network {each.network}",
                "find what sends with foreign addresses there; if it is meant to forward packets, "
                "put it on a network created with --opt allowed-sources=",
            )


def _some(deviations: Sequence[str], most: int = 3) -> str:
    more = len(deviations) - most
    shown = "; ".join(deviations[:most])
    return f"{shown}; and {more} more" if more > 0 else shown


_RULES = (
    _absent,
    _unreachable,
    _tunnel,
    _checksums,
    _losses,
    _mtus,
    _oversized_networks,
    _narrow,
    _silent,
    _slow,
    _drifts,
    _full_tracking_tables,
    _spoofing_containers,
)
