# SPDX-License-Identifier: Apache-2.0
"""A manager's coordination of image pulls, with nodes that pull, die, freeze and come back.

Time is simulated. The manager asks for a decision when a call has ended, when its view has changed,
and when a decision says so, like the real one; never because time has passed otherwise.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from orchestrator.manager.dispatch.pull_coordination import (
    NEXT_NOTICE,
    PATIENCE,
    PULLS_PER_SOURCE,
    REGISTRY,
    Granted,
    Pull,
    PullCoordinator,
)

TICK = 0.5
REPORT = 5.0
"""Seconds between a node's reports of progress."""
STALL = 5.0
"""Seconds without a byte after which a node gives up a source."""
DOWN = 5.0
"""Seconds of silence after which a node is down."""


@dataclass
class Call:
    """A node's request, as it stands."""

    image: str
    failed: set[str] = field(default_factory=set)
    ticket: int | None = None
    asked: float = 0.0
    heard: float = 0.0
    """When it was last told something."""
    until: float = 0.0
    """When the manager looks at it again."""
    source: str | None = None
    """Where it pulls from; None while it waits."""
    finish: float = 0.0
    reported: float = 0.0
    hung: bool = False
    """It receives nothing any more, and does not notice."""


@dataclass
class SimNode:
    name: str
    reports: bool
    alive: bool = True
    frozen: bool = False
    """Its process stands still, with its calls open."""
    removed: bool = False
    silent: float | None = None
    """Since when its managers do not hear of it."""
    has: set[str] = field(default_factory=set)
    calls: list[Call] = field(default_factory=list)

    @property
    def works(self) -> bool:
        return self.alive and not self.frozen


class SimPulls:
    """One seed's cluster. Raises AssertionError where an invariant is broken."""

    def __init__(self, seed: int, turns: Any = PullCoordinator) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self._make = turns
        self.turns = turns()
        self.images = [f"image{n}" for n in range(self.rng.randint(1, 3))]
        old = self.rng.choice((0.0, 0.0, 0.3))
        self._faults = self.rng.choice((0.02, 0.1, 0.3))
        self._speed = self.rng.choice((8.0, 60.0))
        """Seconds that a pull may take."""
        self.nodes = [
            SimNode(f"node{n}", self.rng.random() >= old) for n in range(self.rng.randint(3, 14))
        ]
        self.known: dict[str, set[str]] = {image: set() for image in self.images}
        """Image → nodes that have reported it."""
        self.open: dict[int, tuple[SimNode, Call]] = {}
        """The calls that the manager holds."""
        self.later: list[tuple[float, Any]] = []
        self.woken = False

    # -- what happens ----------------------------------------------------------------------------

    def tick(self, *, faults: bool) -> None:
        self.now += TICK
        if faults:
            self._fault()
        due = [entry for entry in self.later if entry[0] <= self.now]
        self.later = [entry for entry in self.later if entry[0] > self.now]
        for _, act in due:
            act()
        for node in self.nodes:
            if node.silent is not None and self.now - node.silent == DOWN:
                self.woken = True  # the view shows it as down
            if node.works:
                self._work(node)
        self._decide()
        self._check()

    def wants(self, node: SimNode, image: str) -> None:
        if image not in node.has and not any(call.image == image for call in node.calls):
            call = Call(image)
            node.calls.append(call)
            self._ask(node, call)

    def _ask(self, node: SimNode, call: Call) -> None:
        pull = Pull(node.name, call.image, frozenset(call.failed), node.reports)
        call.ticket = self.turns.ask(pull, self.now)
        call.asked = call.heard = call.until = self.now
        call.source, call.hung = None, False
        self.open[call.ticket] = (node, call)

    def _ended(self, ticket: int | None) -> None:
        """A call has ended, as the manager sees it."""
        if ticket is not None and self.open.pop(ticket, None) is not None:
            self.turns.end(ticket, self.now)
            self.woken = True

    def _work(self, node: SimNode) -> None:
        for call in list(node.calls):
            if call.ticket is None or call.source is None or call.hung:
                continue
            source = next((n for n in self.nodes if n.name == call.source), None)
            if source is not None and not source.works:
                # It says nothing: another source is asked for after a while.
                call.finish = max(call.finish, self.now + 2 * TICK)
                if self.now - call.reported >= STALL:
                    call.failed.add(call.source)
                    self._ended(call.ticket)
                    self._ask(node, call)
                continue
            if self.now >= call.finish:
                node.calls.remove(call)
                node.has.add(call.image)
                self._ended(call.ticket)
                self._after(self.rng.uniform(0, 1), lambda n=node, c=call: self._report(n, c.image))
            elif self.now - call.reported >= REPORT:
                call.reported = self.now
                if node.reports and call.ticket in self.open:
                    self.turns.progress(node.name, call.image, 1, self.now)

    def _report(self, node: SimNode, image: str) -> None:
        if node.works and not node.removed:
            self.known[image].add(node.name)
            self.woken = True

    def _after(self, delay: float, act: Any) -> None:
        self.later.append((self.now + delay, act))

    def _decide(self) -> None:
        woken, self.woken = self.woken, False
        for ticket, (node, call) in list(self.open.items()):
            if call.source is not None or not (woken or self.now >= call.until):
                continue
            holders = sorted(
                n.name
                for n in self.nodes
                if n.name in self.known[call.image] and n is not node and self._ready(n)
            )
            found = self.turns.poll(ticket, self.now, holders, self._up)
            if isinstance(found, Granted):
                call.source, call.heard, call.reported = found.source, self.now, self.now
                call.finish = self.now + self.rng.uniform(0.5, self._speed)
                continue
            call.until = found.until
            assert found.until > self.now, "it is to be asked at once, for ever"
            if found.notify:
                call.heard = self.now

    def _ready(self, node: SimNode) -> bool:
        return not node.removed and self._up(node.name)

    def _up(self, name: str) -> bool:
        node = next(n for n in self.nodes if n.name == name)
        down = node.silent is not None and self.now - node.silent >= DOWN
        return not node.removed and not down

    # -- faults ----------------------------------------------------------------------------------

    def _fault(self) -> None:
        if self.rng.random() < 0.3:
            self.wants_something()
        if self.rng.random() > self._faults:
            return
        pulling = [n for n in self.nodes if any(call.source is not None for call in n.calls)]
        node = self.rng.choice(pulling if pulling and self.rng.random() < 0.7 else self.nodes)
        kinds = ("kill", "kill", "freeze", "hang", "remove", "cut", "manager", "lose", "lose")
        getattr(self, f"_{self.rng.choice(kinds)}")(node)

    def wants_something(self) -> None:
        working = [node for node in self.nodes if node.works and not node.removed]
        if working:
            self.wants(self.rng.choice(working), self.rng.choice(self.images))

    def _kill(self, node: SimNode) -> None:
        """The process dies; its connection ends at once or, with its host, after a while."""
        if not node.alive:
            return
        node.alive, node.frozen, node.silent = False, False, self.now
        for call in node.calls:
            self._after(self.rng.choice((0.0, 4.0)), lambda t=call.ticket: self._ended(t))
        node.calls = []
        self._after(self.rng.uniform(1, 60), lambda: self._restart(node))

    def _restart(self, node: SimNode) -> None:
        if not node.removed:
            node.alive, node.silent = True, None
            self.woken = True

    def _freeze(self, node: SimNode) -> None:
        """All of it stands still; its managers notice, or only its pulls do not go on."""
        if node.works:
            node.frozen = True
            node.silent = self.now if self.rng.random() < 0.5 else None
            if self.rng.random() < 0.5:
                self._after(self.rng.uniform(5, 120), lambda: self._thaw(node))

    def _thaw(self, node: SimNode) -> None:
        if node.frozen:
            node.frozen, node.silent = False, None
            self.woken = True

    def _hang(self, node: SimNode) -> None:
        for call in node.calls:
            call.hung = call.source is not None

    def _remove(self, node: SimNode) -> None:
        """It is taken out of the cluster; its process may go on with its calls open."""
        if sum(not each.removed for each in self.nodes) > 2:
            node.removed = True
            for holding in self.known.values():
                holding.discard(node.name)
            self.woken = True

    def _cut(self, node: SimNode) -> None:
        """Its managers hear nothing of it, though its calls seem to be open."""
        if node.alive and node.silent is None:
            node.silent = self.now
            self._after(self.rng.uniform(3, 60), lambda: self._join(node))

    def _join(self, node: SimNode) -> None:
        if node.works:
            node.silent = None
            self.woken = True

    def _manager(self, node: SimNode) -> None:
        """The manager is restarted: all calls break, and those who wait ask again."""
        self.turns = self._make()
        self.open.clear()
        for each in self.nodes:
            for call in each.calls:
                call.ticket = None
                if call.source is None:
                    delay = self.rng.uniform(0, 2)
                    self._after(delay, lambda n=each, c=call: self._ask_again(n, c))
                else:
                    call.ticket = -1  # it goes on with what it was granted

    def _ask_again(self, node: SimNode, call: Call) -> None:
        if node.alive and call in node.calls and call.ticket is None:
            self._ask(node, call)

    def _lose(self, node: SimNode) -> None:
        """Its images are removed."""
        node.has.clear()
        for holding in self.known.values():
            holding.discard(node.name)
        self.woken = True

    # -- what must hold --------------------------------------------------------------------------

    def waiting(self) -> list[tuple[SimNode, Call]]:
        """Requests of nodes that work and that the manager has not answered."""
        return [
            (node, call)
            for node, call in self.open.values()
            if call.source is None and node.works and not node.removed
        ]

    def _check(self) -> None:
        for node, call in self.waiting():
            allowed = (NEXT_NOTICE if node.reports else PATIENCE) + TICK
            silence = self.now - call.heard
            assert silence <= allowed, f"{node.name} is not told for {silence} s: {call}"
        if not isinstance(self.turns, PullCoordinator):
            return
        at = Counter(
            (turn.source, turn.pull.image if turn.source == REGISTRY else "")
            for turn in self.turns.turns()
            if turn.pull.reports
        )
        for (source, _), count in at.items():
            assert count <= (PULLS_PER_SOURCE if source else 1), (
                f"{count} at {source or 'registry'}"
            )
        held = {id(call) for _, call in self.open.values()}
        assert len(self.turns.turns()) <= len(held)

    def settle(self, within: float) -> bool:
        """Whether all who work get their image once nothing more goes wrong. What is dead, frozen
        or hung stays so."""
        end = self.now + within
        while self.now < end and self.waiting():
            self.tick(faults=False)
        return not self.waiting()

    def close(self) -> None:
        """All calls end, and nothing may be left of them."""
        for ticket in list(self.open):
            self._ended(ticket)
        if isinstance(self.turns, PullCoordinator):
            assert self.turns.turns() == ()
            left = PullCoordinator(self.turns.lease, self.turns.grace)
            for table in ("_waiting", "_turns", "_by_source", "_by_node"):
                assert getattr(self.turns, table) == getattr(left, table)


def live_of_pulls(seed: int, turns: Any = PullCoordinator) -> None:
    """One seed. Raises AssertionError."""
    cluster = SimPulls(seed, turns)
    try:
        for node in cluster.nodes:
            cluster.wants(node, cluster.rng.choice(cluster.images))
        for _ in range(240):
            cluster.tick(faults=True)
        assert cluster.settle(400.0), f"still waiting: {cluster.waiting()}"
        cluster.close()
    except AssertionError as error:
        raise AssertionError(f"seed {seed} at {cluster.now}: {error}") from error
