# SPDX-License-Identifier: Apache-2.0
"""Which faults a run has: drawn from its seed, before it begins. Pure.

Same seed, same number of hosts and minutes: same faults, whatever happens in the run. So a run can
be repeated with some of its faults only (`--only`), to find those that a violation needs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

LONGEST = 8.0
"""Seconds that a fault lasts at most."""

TWICE = 0.15
"""Probability that another fault comes at the same time."""

WARM_UP = 5.0
"""Seconds before the first fault."""


@dataclass(frozen=True, slots=True)
class Topology:
    """The hosts of a cluster."""

    managers: tuple[str, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault that is to be injected `at` seconds after the start, for `seconds`.

    `kind` and `detail` say what it is: `kill`, `agent`. `targets` are hosts; for a partition
    between hosts, the first is the one at which packets are dropped. `kills`, `cuts` and `slows`
    are as in `history.Fault`.
    """

    number: int
    at: float
    kind: str
    detail: str
    targets: tuple[str, ...]
    seconds: float
    kills: tuple[str, ...] = ()
    cuts: tuple[str, ...] = ()
    slows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a kind of fault does to which hosts."""

    detail: str
    targets: tuple[str, ...]
    kills: tuple[str, ...] = ()
    cuts: tuple[str, ...] = ()
    slows: tuple[str, ...] = ()


Draw = Callable[[random.Random, Topology], _Shape]


def draw(seed: int, minutes: float, topology: Topology, every: float) -> tuple[Planned, ...]:
    """The faults of a run: one each `every` seconds on average."""
    return tuple(_draw(random.Random(f"{seed}/faults"), minutes, topology, every))


def _draw(
    chance: random.Random, minutes: float, topology: Topology, every: float
) -> Iterator[Planned]:
    kinds = [(kind, weight) for kind, (weight, _) in KINDS.items()]
    at, number = WARM_UP, 0
    while at < minutes * 60.0:
        for _ in range(2 if chance.random() < TWICE else 1):
            (kind,) = chance.choices([k for k, _ in kinds], [weight for _, weight in kinds])
            seconds = round(chance.uniform(0.5, LONGEST), 1)
            shape = KINDS[kind][1](chance, topology)
            number += 1
            yield Planned(
                number,
                round(at, 1),
                kind,
                shape.detail,
                shape.targets,
                seconds,
                shape.kills,
                shape.cuts,
                shape.slows,
            )
        at += chance.uniform(0.4, 1.6) * every


def _host(chance: random.Random, topology: Topology) -> str:
    """Managers and nodes are hit equally often, however many there are."""
    return chance.choice(topology.managers if chance.random() < 0.5 else topology.nodes)


def _kill(chance: random.Random, topology: Topology) -> _Shape:
    host = _host(chance, topology)
    if host in topology.managers:
        return _Shape(chance.choice(("manager", "etcd")), (host,))
    program = chance.choice(
        ("agent", "agent", "network helper", "name server", "monitor", "container")
    )
    return _Shape(
        program,
        (host,),
        kills=(host,) if program in ("monitor", "container") else (),
        cuts=(host,) if program == "agent" else (),
        slows=(host,) if program != "agent" else (),
    )


def _freeze(chance: random.Random, topology: Topology) -> _Shape:
    host = _host(chance, topology)
    if host in topology.managers:
        return _Shape(chance.choice(("manager", "etcd")), (host,))
    program = chance.choice(
        ("agent", "agent", "network helper", "name server", "monitor", "container")
    )
    return _Shape(
        program,
        (host,),
        cuts=(host,) if program in ("agent", "network helper") else (),
        slows=(host,) if program != "agent" else (),
    )


def _power(chance: random.Random, topology: Topology) -> _Shape:
    host = _host(chance, topology)
    if host in topology.managers:
        return _Shape("", (host,))
    return _Shape("", (host,), kills=(host,), cuts=(host,), slows=(host,))


def _isolate(chance: random.Random, topology: Topology) -> _Shape:
    """Cut a host off from all, in both directions or one."""
    host = _host(chance, topology)
    direction = chance.choice(("both", "in", "out"))
    touched = (host,) if host in topology.nodes else ()
    return _Shape(direction, (host,), cuts=touched, slows=touched)


def _between(chance: random.Random, topology: Topology) -> _Shape:
    """Cut two managers off from each other; with one manager, two nodes."""
    direction = chance.choice(("both", "in", "out"))
    if len(topology.managers) > 1:
        return _Shape(direction, tuple(chance.sample(topology.managers, 2)))
    if len(topology.nodes) > 1:
        pair = tuple(chance.sample(topology.nodes, 2))
        return _Shape(direction, pair, slows=pair)
    return _isolate(chance, topology)


def _sessions(chance: random.Random, topology: Topology) -> _Shape:
    """Cut a node off from one manager. If there are others, its session goes to one of them."""
    node, manager = chance.choice(topology.nodes), chance.choice(topology.managers)
    cuts = (node,) if len(topology.managers) == 1 else ()
    return _Shape(chance.choice(("both", "in", "out")), (node, manager), cuts=cuts)


def _peers(chance: random.Random, topology: Topology) -> _Shape:
    """Cut etcd's member off from the others, and only that."""
    return _Shape("both", (chance.choice(topology.managers),))


def _loss(chance: random.Random, topology: Topology) -> _Shape:
    host = _host(chance, topology)
    touched = (host,) if host in topology.nodes else ()
    return _Shape(str(chance.choice((5, 20, 40))), (host,), cuts=touched, slows=touched)


def _slow(chance: random.Random, topology: Topology) -> _Shape:
    host = _host(chance, topology)
    touched = (host,) if host in topology.nodes else ()
    rate = chance.choice(("256kbit", "1mbit", "8mbit"))
    return _Shape(rate, (host,), cuts=touched, slows=touched)


def _disk(chance: random.Random, topology: Topology) -> _Shape:
    host = _host(chance, topology)
    return _Shape("", (host,))


REPLACED = frozenset({"database", "log"})
"""Damages of a manager that only its replacement repairs."""


def _corrupt(chance: random.Random, topology: Topology) -> _Shape:
    """A file of a daemon is damaged while the daemon is dead."""
    host = _host(chance, topology)
    if host in topology.managers:
        # A single manager cannot be replaced.
        files = ("audit", "ports", "manager.json", "membership.json")
        lost = tuple(sorted(REPLACED)) if len(topology.managers) > 2 else ()
        return _Shape(chance.choice((*files, *lost, *lost)), (host,))
    what = chance.choice(("state", "volume", "node.json"))
    return _Shape(what, (host,), kills=(host,) if what == "state" else (), cuts=(host,))


def _clock(chance: random.Random, topology: Topology) -> _Shape:
    """A step of a host's wall clock, and back."""
    step = chance.choice((-86400, -600, -30, -2, 2, 30, 600, 86400))
    return _Shape(f"{step:+d}", (_host(chance, topology),))


def _quota(chance: random.Random, topology: Topology) -> _Shape:
    return _Shape("", (chance.choice(topology.managers),))


KINDS: dict[str, tuple[int, Draw]] = {
    "kill": (10, _kill),
    "freeze": (6, _freeze),
    "power": (3, _power),
    "isolate": (4, _isolate),
    "between": (3, _between),
    "sessions": (3, _sessions),
    "peers": (2, _peers),
    "loss": (3, _loss),
    "slow": (2, _slow),
    "disk": (2, _disk),
    "quota": (1, _quota),
    "corrupt": (2, _corrupt),
    "clock": (3, _clock),
}
"""Kind → its weight among all, and how its targets are drawn."""
