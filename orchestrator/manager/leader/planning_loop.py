# SPDX-License-Identifier: Apache-2.0
"""The leader's planning loop: read, decide, commit.

Reports of this manager's own agents, expiry of silent nodes, subnet allocation, reconciling and
scheduling run one after the other on one snapshot. Each sees the changes of those before it, and
all are committed in as few guarded transactions as possible. So a service of sixty tasks goes from
declared to assigned in one commit, while the reports for the next round accumulate. A round is
limited to `ROUND_SIZE`: a service of thousands of tasks takes several rounds, each on a new
snapshot.

Deciding and encoding are pure and run in a worker thread. However long they take, the event loop
renews the lease and serves sessions and API calls.

**Fault isolation.** A service whose commit conflicts is planned again by itself in the next round,
and left out of the one after if it conflicts again, so it delays others by one round at most. A
service that cannot be planned, or that is too large for the store, is set aside and retried with
backoff. A store that rejects writes (because it is full, say) makes the cluster read-only, and is
retried with backoff; reports are kept until they are committed.

**Time.** Silence is measured with the monotonic clock. Stored delays are wall-clock times; when
that clock is stepped, they are shifted by the same amount.

The loop holds no state that a new leader would need. All delays are in the store, and what is only
in memory (when a node was last heard from) restarts with a fresh grace period.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeVar

from orchestrator.manager.leader.agent_reports import (
    RejectedClaims,
    ReportBuffer,
    Reports,
    report_decisions,
)
from orchestrator.manager.leader.hearing import RemoteHearing
from orchestrator.manager.leader.plan_commit import (
    ChangeGroup,
    PlanWriter,
    TermEnded,
    WriteResult,
    group_changes,
)
from orchestrator.manager.planning import clock_steps, pipeline
from orchestrator.manager.planning.pipeline import EVERYTHING, Dirty, dirty_of
from orchestrator.manager.planning.plan import Change, Decision, Plan, earliest
from orchestrator.manager.planning.reports.claims import FalseClaim
from orchestrator.manager.planning.reports.liveness import Hearing, Silence, expire
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache, Feed, find_object
from orchestrator.manager.store.keys import object_key, object_type
from orchestrator.manager.store.kv import Guard, Kv, StoreError
from orchestrator.manager.telemetry.task_traces import with_trace_contexts
from orchestrator.model.tasks import Task

log = logging.getLogger(__name__)

T = TypeVar("T")

ROUND_SIZE = 500
"""Tasks that one round creates, and places, at most (approximately), so that a commit stays small
and other services and reports wait no longer than that."""

CLOCK_STEP = 0.5
"""Seconds by which wall clock and monotonic clock must diverge to count as a step; less is
drift."""

FIRST_BACKOFF, LONGEST_BACKOFF = 1.0, 30.0
"""Seconds until the first retry, and between retries at most."""


def backoff(failures: int) -> float:
    """Seconds to wait after this many failures in a row."""
    return min(FIRST_BACKOFF * 2.0 ** min(failures - 1, 16), LONGEST_BACKOFF)


@dataclass(frozen=True, slots=True)
class _RoundInput:
    """The immutable input of a round."""

    view: ClusterView
    revision: int
    """Store revision up to which the view is complete."""
    dirty: Dirty
    reports: Reports
    hearing: Hearing
    exclude: frozenset[str]
    shifts: Mapping[str, float]
    """Key of an object with delays → seconds by which to shift them."""
    now: float
    at_rest: frozenset[str]
    """Ids of the services at rest (`planning.reconcile.at_rest`)."""


@dataclass(slots=True)
class _RoundResult:
    """The encoded decisions of a round."""

    groups: Sequence[ChangeGroup] = ()
    look_again_at: float | None = None
    silence: Silence = field(default_factory=lambda: Silence((), None))
    rest: Dirty = field(default_factory=Dirty)
    failed: Mapping[str, str] = field(default_factory=dict)
    refused: Sequence[FalseClaim] = ()
    at_rest: frozenset[str] = frozenset()
    """Ids of the services at rest once all is written."""


class _DecisionBuilder:
    """Collects decisions; each sees the changes of earlier ones."""

    def __init__(self, view: ClusterView) -> None:
        self.view = view
        self.decisions: list[Decision] = []

    def add(self, decided: Iterable[Decision]) -> None:
        """Add decisions, without changes of objects that cannot be decoded: these are never
        written."""
        frozen = self.view.quarantined
        decided = (
            [without_quarantined(each, frozen) for each in decided] if frozen else list(decided)
        )
        self.decisions += decided
        self.view = self.view.evolve(change for each in decided for change in each.changes)

    def changes(self) -> Iterator[Change]:
        return (change for each in self.decisions for change in each.changes)


def without_quarantined(decision: Decision, frozen: Container[str]) -> Decision:
    """The decision without changes of the objects with these keys, which cannot be decoded."""
    changes = decision.changes
    kept = tuple(change for change in changes if object_key(change.subject) not in frozen)
    return decision if len(kept) == len(changes) else replace(decision, changes=kept)


@dataclass(slots=True)
class _Failure:
    """A service that is set aside."""

    why: str
    count: int
    until: float
    """On the monotonic clock."""


class Offload(Protocol):
    """Runs a long computation and returns its result."""

    async def __call__(self, function: Callable[[], T]) -> T: ...


async def inline(function: Callable[[], T]) -> T:
    """An `Offload` for tests: runs on the event loop."""
    return function()


class _Planner:
    """An `Offload` to one thread. Closing it drops what is still computing."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "planning")

    async def __call__(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


class Observer(Protocol):
    """Observes the planning loop (`metrics.PlanningMetrics`)."""

    def took(self, seconds: float) -> None:
        """A round was decided."""

    def conflicted(self) -> None:
        """A commit conflicted: its input has changed."""

    def store_failed(self, error: str) -> None:
        """Why the store rejects writes; empty when it accepts them."""

    def set_aside(self, services: Mapping[str, str]) -> None:
        """The services that are set aside: id → reason."""

    def suspected(self, silent: int) -> None:
        """The number of suspected nodes: silent, but too many at once to count as down; 0 when
        resolved."""

    def refused(self, kind: str) -> None:
        """A node's claim was rejected; `kind` is a `claims.Claim`."""

    def ended(self) -> None:
        """The term has ended: reset its gauges."""


class _NullObserver:
    """An `Observer` that does nothing."""

    def took(self, seconds: float) -> None: ...

    def conflicted(self) -> None: ...

    def store_failed(self, error: str) -> None: ...

    def set_aside(self, services: Mapping[str, str]) -> None: ...

    def suspected(self, silent: int) -> None: ...

    def refused(self, kind: str) -> None: ...

    def ended(self) -> None: ...


class PlanningLoop:
    """The loop of one term."""

    def __init__(
        self,
        kv: Kv,
        cache: Cache,
        report_buffer: ReportBuffer,
        *,
        fence: Guard,
        now: Callable[[], float],
        new_id: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
        times: Observer | None = None,
        offload: Offload | None = None,
        manager_id: str = "",
    ) -> None:
        """`now` is the wall clock, `clock` the monotonic one, which the report buffer uses as well.
        `manager_id`: this manager commits the reports of the sessions that the store records as
        its own; empty: of all. `offload` runs long computations, so that the lease, sessions and
        API calls are served meanwhile; by default in a thread of the term's own."""
        self._cache = cache
        self._report_buffer = report_buffer
        self._writer = PlanWriter(kv, fence)
        self._now = now
        self._clock = clock
        self._new_id = new_id
        self._observer = times or _NullObserver()
        self._offload = offload
        self._wake = asyncio.Event()
        self._started = clock()
        self._offset = now() - clock()
        """Wall clock minus monotonic clock, as of the last round."""
        self._dirty = EVERYTHING
        self._at_rest: frozenset[str] = frozenset()
        self._shifts: dict[str, float] = {}
        self._requeue_at: float | None = None
        """The earliest time at which a round asked to run again, until it has passed."""
        self._silence = Silence((), None)
        self._joined: dict[str, float] = {}
        self._conflicted: dict[str, None] = {}
        """Services and containers whose last commit conflicted, in order."""
        self._alone = False
        """Whether the last round was only for these."""
        self._rejected = RejectedClaims(lambda kind: self._observer.refused(kind))
        self._remote = RemoteHearing(manager_id)
        self._aside: dict[str, _Failure] = {}
        self._errors = 0
        """Consecutive rounds that the store rejected or that failed."""

    async def run(self, revision: int) -> None:
        """Lead, from the moment that the cache has the term's own `revision`."""
        try:
            with closing(_Planner()) as planner:
                await self._lead(revision, self._offload or planner)
        finally:
            self._observer.ended()

    async def _lead(self, revision: int, offload: Offload) -> None:
        await self._cache.wait_for(revision)
        self._report_buffer.on_report = self._wake.set
        async with self._cache.subscribe() as feed:
            feed.on_change = self._wake.set
            while True:
                if self._errors:
                    await asyncio.sleep(backoff(self._errors))
                self._wake.clear()
                await self._round(feed, offload)
                if not (self._conflicted or self._dirty or self._errors):
                    await self._sleep()

    async def _sleep(self) -> None:
        """Wait until something changes or a delay expires."""
        moments = [self._silence.look_again_at, *(each.until for each in self._aside.values())]
        if self._requeue_at is not None:
            moments.append(self._requeue_at - self._offset)
        moment = earliest(*moments)
        if moment is None:
            await self._wake.wait()
            return
        alarm = asyncio.get_running_loop().call_later(
            max(0.0, moment - self._clock()), self._wake.set
        )
        try:
            await self._wake.wait()
        finally:
            alarm.cancel()

    # One round

    async def _round(self, feed: Feed, offload: Offload) -> None:
        """Decide and commit one round; what could not be committed is left for the next round."""
        self._check_clock()
        given = self._input(feed)
        began = time.perf_counter()
        try:
            decided = await offload(partial(self._decide, given))
        except Exception:
            log.exception("a planning round failed; retrying")
            self._errors += 1
            self._dirty |= given.dirty
            self._report_buffer.give_back(given.reports)
            return
        self._observer.took(time.perf_counter() - began)
        self._requeue_at = earliest(self._requeue_at, decided.look_again_at)
        self._dirty |= decided.rest
        self._at_rest = decided.at_rest
        self._update_silence(decided.silence)
        written = WriteResult()
        if decided.groups:
            try:
                written = await self._writer.write(decided.groups)
            except TermEnded as over:
                # The election ends this loop; nothing to do until then.
                log.warning("cannot write", extra={"error": over})
                await asyncio.Event().wait()
            await self._cache.wait_for(written.revision)
        self._handle_outcome(given, decided, written)

    def _check_clock(self) -> None:
        """Detect steps of the wall clock, and whether a delay has expired."""
        offset = self._now() - self._clock()
        step, before = offset - self._offset, self._offset + self._clock()
        self._offset = offset
        if abs(step) >= CLOCK_STEP:
            log.warning("wall clock stepped; shifting stored delays", extra={"seconds": step})
            for item in clock_steps.objects_with_delays(self._cache.view, before):
                key = object_key(item)
                self._shifts[key] = self._shifts.get(key, 0.0) + step
            self._dirty |= Dirty(timer=True)
        if self._requeue_at is not None and self._requeue_at <= self._now():
            self._requeue_at = None
            self._dirty |= Dirty(timer=True)

    def _input(self, feed: Feed) -> _RoundInput:
        changes = feed.take()
        self._dirty |= dirty_of(changes, self._at_rest)
        now = self._clock()
        for id in [id for id in self._aside if self._should_retry(id, changes, now)]:
            self._aside[id].until = now
            self._dirty |= self._dirty_of_owner(id)
        view = self._cache.view
        for id in view.nodes.keys() - self._joined.keys():
            self._joined[id] = now
        aside = {id for id, failure in self._aside.items() if failure.until > now}
        self._alone = bool(self._conflicted) and not self._alone
        if self._alone:
            dirty = Dirty()
            for id in self._conflicted:
                dirty |= self._dirty_of_owner(id)
            self._conflicted = {}
        else:
            dirty, self._dirty = self._dirty, Dirty()
            aside |= self._conflicted.keys()
        return _RoundInput(
            view,
            self._cache.revision,
            dirty,
            self._report_buffer.take(partial(self._remote.is_local, view)),
            Hearing(
                self._started,
                now,
                self._remote.heard(view, changes, self._report_buffer.heard, now),
                dict(self._joined),
                self._silence.doubt_since,
                self._silence.fewest,
            ),
            frozenset(aside),
            dict(self._shifts),
            self._now(),
            self._at_rest,
        )

    def _should_retry(self, id: str, changes: Iterable[Change], now: float) -> bool:
        """Whether to retry a service that is set aside: its backoff has passed, or its user has
        changed it."""
        return self._aside[id].until <= now or any(
            change.subject.id == id and not isinstance(change.subject, Task) for change in changes
        )

    def _dirty_of_owner(self, id: str) -> Dirty:
        if id in self._cache.view.tasks:
            return Dirty(containers=frozenset({id}))
        return Dirty(services=frozenset({id}))

    def _decide(self, given: _RoundInput) -> _RoundResult:
        """The decisions of one round; pure."""
        now, found = given.now, _DecisionBuilder(given.view)
        found.add(_shifted_delays(found.view, given.shifts))
        found.add(
            Plan((change,), reason="clock step")
            for change in clock_steps.delays_from_the_future(found.view, now)
        )
        refused: list[FalseClaim] = []
        found.add(report_decisions(found.view, given.reports, now, refused.append))
        silence = expire(found.view, given.hearing, now)
        found.add(silence.plans)
        dirty = given.dirty | dirty_of(found.changes(), given.at_rest)
        made = pipeline.plan(
            found.view,
            dirty,
            now,
            self._new_id,
            limit=ROUND_SIZE,
            exclude=given.exclude,
            at_rest=given.at_rest,
        )
        for plan in made.plans:
            log.info("plan", extra={"changes": len(plan.changes), "reason": plan.reason})
        found.add(made.plans)
        return _RoundResult(
            group_changes(
                found.decisions,
                lambda changes: with_trace_contexts(found.view, changes, now),
                given.revision,
            ),
            made.requeue_at,
            silence,
            made.rest,
            made.failed,
            refused,
            made.now_at_rest(given.at_rest),
        )

    # Handling the outcome

    def _update_silence(self, silence: Silence) -> None:
        if silence.doubt_since is not None and self._silence.doubt_since is None:
            log.warning(
                "most nodes are silent at once: waiting for another grace period before they count "
                "as down; check this manager's network",
                extra={"silent": silence.silent},
            )
        self._silence = silence
        self._observer.suspected(silence.silent if silence.doubt_since is not None else 0)

    def _handle_outcome(
        self, given: _RoundInput, decided: _RoundResult, written: WriteResult
    ) -> None:
        left = [*written.conflicted, *written.too_large, *written.unwritten]
        changes = [change for group in left for change in group.changes]
        unwritten = {object_key(change.subject) for change in changes}
        for key in given.shifts.keys() - unwritten:
            self._shifts.pop(key, None)
        repeated = self._report_buffer.settle(given.reports, changes)
        self._rejected.report(each for each in decided.refused if each.node_id not in repeated)
        if written.conflicted:
            self._observer.conflicted()
        owners = {owner: None for group in written.conflicted for owner in group.owners}
        self._conflicted |= owners
        self._at_rest -= _services_of(left)
        for group in written.conflicted:
            self._dirty |= _dirty_after_failure(group)
        for group in written.unwritten:
            self._dirty |= dirty_of(group.changes)
            for owner in group.owners:
                self._dirty |= self._dirty_of_owner(owner)
        for group in written.too_large:
            for owner in group.owners:
                decided.failed = {**decided.failed, owner: "it is too large for the store"}
        self._set_aside(decided.failed, given)
        self._store(written.error)

    def _set_aside(self, failed: Mapping[str, str], given: _RoundInput) -> None:
        for id, why in failed.items():
            count = self._aside[id].count + 1 if id in self._aside else 1
            wait = backoff(count)
            self._aside[id] = _Failure(why, count, self._clock() + wait)
            log.error(
                "service set aside; retrying with backoff",
                extra={"service": id, "error": why, "retry_in": wait},
            )
        view = self._cache.view
        tried = given.dirty.services | given.dirty.containers
        for id in list(self._aside):
            gone = id not in view.services and id not in view.tasks
            if gone or (id in tried and id not in failed and id not in given.exclude):
                del self._aside[id]
        self._observer.set_aside({id: failure.why for id, failure in self._aside.items()})

    def _store(self, error: StoreError | None) -> None:
        if error is None:
            if self._errors:
                log.info("the store accepts writes again")
            self._errors = 0
            self._observer.store_failed("")
            return
        self._errors += 1
        log.error(
            "the store rejects writes; the cluster is read-only until it accepts them",
            extra={"error": error, "retry_in": backoff(self._errors)},
        )
        self._observer.store_failed(str(error))


def _shifted_delays(view: ClusterView, shifts: Mapping[str, float]) -> Iterator[Plan]:
    """The objects whose delays are to be shifted."""
    for key, seconds in shifts.items():
        kind = object_type(key)
        item = find_object(view, *kind) if kind is not None else None
        if item is not None:
            yield Plan((Change(item, clock_steps.shifted(item, seconds)),), reason="clock step")


def _services_of(groups: Sequence[ChangeGroup]) -> set[str]:
    """Ids of the services that these groups are about."""
    services = {
        change.subject.service_id
        for group in groups
        for change in group.changes
        if isinstance(change.subject, Task)
    }
    return services.union(*(group.owners for group in groups))


def _dirty_after_failure(group: ChangeGroup) -> Dirty:
    """What to decide again about a group that was not committed: everything but its own services,
    which are planned by themselves."""
    dirty = dirty_of(group.changes)
    return replace(
        dirty, services=dirty.services - group.owners, containers=dirty.containers - group.owners
    )


__all__ = ["ROUND_SIZE", "Observer", "Offload", "PlanningLoop", "inline"]
