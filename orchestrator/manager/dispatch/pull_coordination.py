# SPDX-License-Identifier: Apache-2.0
"""Coordination of image pulls: which node pulls from where and when, so that a registry serves an
image about once.

The first node that requests an image that no node has pulls it from its registry. The others wait
until a node has it, and pull from such nodes. Each node serves a few others at a time, so the
number of sources grows with every step, as in a tree.

One manager, the leader, decides for the nodes of all managers (`pull_turns`). A pull that continues
when the leader changes is registered with the next one.

A pull ends with its call. It also ends when its node is down or removed, or has not reported
progress for the length of a lease, so no node can block an image. A waiting node gets the reason at
intervals; a node of an older version, which cannot receive it, is sent to the registry.

Pure: the time, the nodes that are up and the nodes that have the image are arguments. State is in
memory only, since nodes register their pulls again after a manager's restart.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

PULLS_PER_SOURCE = 3
"""Nodes that pull an image from one other node at a time."""
LEASE = 15.0
"""Seconds that a pull lasts without progress; PATIENCE for a node that does not report it."""
REPORT_GRACE = 1.5
"""Seconds in which a node that has pulled from the registry must report that it has the image."""
FIRST_NOTICE = 3.0
"""Seconds until a waiting node gets the reason for the first time."""
NEXT_NOTICE = 10.0
"""Seconds between two such notices."""
PATIENCE = 30.0
"""Seconds that a node of an older version waits, which cannot receive notices."""

REGISTRY = ""
"""The source that is not a node."""


@dataclass(frozen=True, slots=True)
class Pull:
    """A node's request for an image."""

    node_id: str
    image: str
    """A digest, or a name if the digest is unknown."""
    failed: frozenset[str] = frozenset()
    """Sources that failed."""
    reports: bool = True
    """Whether the node reports progress and receives notices; older versions do not."""


@dataclass(slots=True)
class ActivePull:
    """A pull that was granted and has not ended."""

    pull: Pull
    source: str
    renewed: float
    """When it last made progress."""
    received: int = 0
    """Bytes so far."""


@dataclass(frozen=True, slots=True)
class Granted:
    """The node may pull now."""

    source: str
    """HOST:PORT of a node, or REGISTRY."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The node has to wait."""

    behind: tuple[ActivePull, ...]
    """The pulls that have to end first, or one of them; empty: a node is about to report that it
    has the image."""
    notify: bool
    """Whether to send the node a notice now."""
    until: float
    """When to ask again at the latest."""


@dataclass(slots=True)
class _Wait:
    pull: Pull
    since: float
    notice: float
    """When the next notice is due."""


@dataclass(slots=True)
class PullCoordinator:
    """All pulls of a cluster, as its leader sees them. A pull is identified by a ticket."""

    lease: float = LEASE
    grace: float = REPORT_GRACE
    _tickets: Iterator[int] = field(default_factory=itertools.count)
    _waiting: dict[int, _Wait] = field(default_factory=dict)
    _turns: dict[int, ActivePull] = field(default_factory=dict)
    _by_source: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    """Tickets by (source, image); those at nodes, of any image, by (source, "")."""
    _by_node: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    """Tickets by (node, image)."""
    _reporting: dict[str, float] = field(default_factory=dict)
    """Image → until when a node that has pulled it may take to report that."""

    def ask(self, pull: Pull, now: float) -> int:
        """Register a request; its ticket must be given to `end` in any case."""
        ticket = next(self._tickets)
        self._waiting[ticket] = _Wait(pull, now, now + FIRST_NOTICE)
        return ticket

    def resume(self, pull: Pull, source: str, now: float) -> int:
        """Register a pull that was granted elsewhere and continues; its ticket must be given to
        `end` in any case."""
        ticket = next(self._tickets)
        self._begin(ticket, ActivePull(pull, source, now))
        return ticket

    def poll(
        self, ticket: int, now: float, holders: Sequence[str], up: Callable[[str], bool]
    ) -> Granted | Waiting:
        """Whether a waiting request is granted now. `holders` are HOST:PORT of the nodes that have
        the image and are up; `up` tells whether a node (by id) may keep its pull."""
        wait = self._waiting[ticket]
        pull = wait.pull
        holders = [holder for holder in holders if holder not in pull.failed]
        at = [(holder, "") for holder in holders] or [(REGISTRY, pull.image)]
        room = PULLS_PER_SOURCE if holders else 1
        for place in at:
            if len(self._by_source.get(place, ())) >= room:
                self._end_stale(place, now, up)
        load, best = min((len(self._by_source.get(place, ())), place) for place in at)
        reporting = 0.0 if holders else self._reporting.get(pull.image, 0.0)
        full = load >= room or now < reporting
        if full and not pull.reports and now - wait.since >= PATIENCE:
            full, best = False, (REGISTRY, pull.image)
        if not full:
            del self._waiting[ticket]
            self._begin(ticket, ActivePull(pull, best[0], now))
            return Granted(best[0])
        tickets = sorted(other for place in at for other in self._by_source.get(place, ()))
        behind = [self._turns[other] for other in tickets]
        notify = now >= wait.notice
        if notify:
            wait.notice = now + NEXT_NOTICE
        until = [wait.notice, *map(self._expiry, behind)]
        if now < reporting:
            until.append(reporting)
        if not pull.reports and now - wait.since < PATIENCE:
            until.append(wait.since + PATIENCE)
        return Waiting(tuple(behind), notify and pull.reports, min(until))

    def progress(self, node_id: str, image: str, received: int, now: float) -> None:
        """Renew the pulls of a node that makes progress on an image; no-op without any."""
        for ticket in self._by_node.get((node_id, image), ()):
            turn = self._turns[ticket]
            turn.renewed, turn.received = now, received

    def end(self, ticket: int, now: float) -> None:
        """The call of a request has ended, granted or not."""
        self._waiting.pop(ticket, None)
        turn = self._turns.get(ticket)
        if turn is None:
            return
        self._remove(ticket)
        if turn.source == REGISTRY:
            self._reporting = {image: t for image, t in self._reporting.items() if t > now}
            self._reporting[turn.pull.image] = now + self.grace

    def turns(self) -> tuple[ActivePull, ...]:
        """All active pulls."""
        return tuple(self._turns.values())

    def _end_stale(self, place: tuple[str, str], now: float, up: Callable[[str], bool]) -> None:
        for ticket in list(self._by_source.get(place, ())):
            turn = self._turns[ticket]
            if now >= self._expiry(turn) or not up(turn.pull.node_id):
                self._remove(ticket)

    def _expiry(self, turn: ActivePull) -> float:
        return turn.renewed + (self.lease if turn.pull.reports else PATIENCE)

    def _begin(self, ticket: int, turn: ActivePull) -> None:
        self._turns[ticket] = turn
        for index, key in self._keys(turn):
            index.setdefault(key, set()).add(ticket)

    def _remove(self, ticket: int) -> None:
        turn = self._turns.pop(ticket)
        for index, key in self._keys(turn):
            index[key].discard(ticket)
            if not index[key]:
                del index[key]

    def _keys(
        self, turn: ActivePull
    ) -> list[tuple[dict[tuple[str, str], set[int]], tuple[str, str]]]:
        image = turn.pull.image
        place = (turn.source, "") if turn.source else (REGISTRY, image)
        return [(self._by_source, place), (self._by_node, (turn.pull.node_id, image))]
