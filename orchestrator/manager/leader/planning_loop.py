"""What a leader does, from election to loss: one loop of read, decide, write.

Reports of agents, the expiry of silent nodes, subnets, reconciling and scheduling are decided one
after the other on one snapshot, each seeing what those before it want, and written in as few
guarded transactions as possible. So a service of sixty tasks goes from declared to assigned in one
write, and while that write is under way the next round's reports gather. A round is limited
(`ROUND`): a service of thousands takes several, each with its own look at the cluster.

Deciding and encoding are pure and run in a worker thread, so that however long they take, the
event loop renews the lease and serves sessions and API calls.

**Faults stay where they are.** A service whose write conflicts is planned anew by itself in the
next round, and left out of the one after if it conflicts again, so it delays the others by a round
at the most. A service that cannot be planned, or that is too large for the store, is put aside and
tried again with backoff. A store that takes no writes (it is full, say) makes the cluster
read-only, and is tried again with backoff too; reports are kept until they are written.

**Time.** Silence is measured with the monotonic clock. Stored delays are times of the wall clock;
when that is stepped, they are moved along (`clockstep`).

The loop holds no state that a new leader would need: all delays are in the store, and what it
merely remembers (when a node was last heard of) starts with a fresh grace.
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
    ReportBuffer,
    Reports,
    report_decisions,
    unwritten_reports,
)
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
from orchestrator.manager.planning.reports.claims import LONGEST_TEXT, Claim, FalseClaim
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
"""Tasks that one round creates, and places, at the most, roughly: a commit stays small, and reports
and other services wait for no more than that."""

CLOCK_STEP = 0.5
"""Seconds by which the wall clock must differ from the monotonic one for a step; less is drift."""

FIRST_BACKOFF, LONGEST_BACKOFF = 1.0, 30.0
"""Seconds until what failed is tried again, at first and at the most."""


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return min(FIRST_BACKOFF * 2.0 ** min(failures - 1, 16), LONGEST_BACKOFF)


@dataclass(frozen=True, slots=True)
class _RoundInput:
    """What a round is decided from; nobody changes it meanwhile."""

    view: ClusterView
    dirty: Dirty
    reports: Reports
    hearing: Hearing
    exclude: frozenset[str]
    shifts: Mapping[str, float]
    """Key of an object with delays → seconds by which they are to be moved."""
    now: float


@dataclass(slots=True)
class _RoundResult:
    """What was decided, encoded."""

    parts: Sequence[ChangeGroup] = ()
    look_again_at: float | None = None
    silence: Silence = field(default_factory=lambda: Silence((), None))
    rest: Dirty = field(default_factory=Dirty)
    failed: Mapping[str, str] = field(default_factory=dict)
    refused: Sequence[FalseClaim] = ()


class _DecisionBuilder:
    """Decisions in the making; what is decided next sees those before it."""

    def __init__(self, view: ClusterView) -> None:
        self.view = view
        self.decisions: list[Decision] = []

    def add(self, decided: Iterable[Decision]) -> None:
        """Take decisions in, but for changes of what cannot be decoded: that stays as it is."""
        frozen = self.view.quarantined
        decided = [_without(each, frozen) for each in decided] if frozen else list(decided)
        self.decisions += decided
        self.view = self.view.evolve(change for each in decided for change in each.changes)

    def changes(self) -> Iterator[Change]:
        return (change for each in self.decisions for change in each.changes)


def _without(decision: Decision, frozen: Container[str]) -> Decision:
    changes = decision.changes
    kept = tuple(change for change in changes if object_key(change.subject) not in frozen)
    return decision if len(kept) == len(changes) else replace(decision, changes=kept)


@dataclass(slots=True)
class _Failure:
    """A service that is put aside."""

    why: str
    count: int
    until: float
    """Time of the monotonic clock."""


class Offload(Protocol):
    """Runs a function that computes for long; its result."""

    async def __call__(self, function: Callable[[], T]) -> T: ...


async def inline(function: Callable[[], T]) -> T:
    """`Offload` for tests: at once, on the event loop."""
    return function()


class _Planner:
    """`Offload` to one thread, which ends with the object: what it still computes is dropped."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "planning")

    async def __call__(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


class Observer(Protocol):
    """Is told how the leader does (`metrics.PlanningTimes`)."""

    def took(self, seconds: float) -> None:
        """A round was decided."""

    def conflicted(self) -> None:
        """Something of it was not written, for what it was decided from had changed."""

    def store_failed(self, error: str) -> None:
        """Why the store takes no writes; empty when it does."""

    def put_aside(self, services: Mapping[str, str]) -> None:
        """Id → why of the services that are put aside."""

    def doubts(self, silent: int) -> None:
        """So many nodes are silent, too many at once to be believed; 0 when that is over."""

    def refused(self, kind: str) -> None:
        """A node claimed what it cannot; `kind` is a `claims.Claim`."""

    def ended(self) -> None:
        """The term is over: reset what was reported of it."""


class _NullObserver:
    """The `Observer` who does nothing."""

    def took(self, seconds: float) -> None: ...

    def conflicted(self) -> None: ...

    def store_failed(self, error: str) -> None: ...

    def put_aside(self, services: Mapping[str, str]) -> None: ...

    def doubts(self, silent: int) -> None: ...

    def refused(self, kind: str) -> None: ...

    def ended(self) -> None: ...


class PlanningLoop:
    """A leader's loop."""

    def __init__(
        self,
        kv: Kv,
        cache: Cache,
        inbox: ReportBuffer,
        *,
        fence: Guard,
        now: Callable[[], float],
        new_id: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
        times: Observer | None = None,
        offload: Offload | None = None,
    ) -> None:
        """`now` is the wall clock, `clock` the monotonic one, which is the inbox's as well.
        `offload` runs what computes for long, so that the lease, sessions and API calls are
        served meanwhile; if none is given, in a thread of the term's own."""
        self._cache = cache
        self._inbox = inbox
        self._writer = PlanWriter(kv, fence)
        self._now = now
        self._clock = clock
        self._new_id = new_id
        self._observer = times or _NullObserver()
        self._offload = offload
        self._wake = asyncio.Event()
        self._started = clock()
        self._offset = now() - clock()
        """What the wall clock is ahead of the monotonic one, as of the last round."""
        self._dirty = EVERYTHING
        self._shifts: dict[str, float] = {}
        self._look_again_at: float | None = None
        """The earliest time that a round asked to be made again, until it has passed."""
        self._silence = Silence((), None)
        self._joined: dict[str, float] = {}
        self._conflicted: dict[str, None] = {}
        """Services and containers of which the last write conflicted, in order."""
        self._alone = False
        """Whether the last round was for these alone."""
        self._warned: dict[str, set[Claim]] = {}
        """Node id → the kinds of its false claims that were logged."""
        self._aside: dict[str, _Failure] = {}
        self._errors = 0
        """Rounds in a row that the store did not take, or that could not be decided."""

    async def run(self, revision: int) -> None:
        """Lead, from the moment that the cache has the term's own `revision`."""
        try:
            with closing(_Planner()) as planner:
                await self._lead(revision, self._offload or planner)
        finally:
            self._observer.ended()

    async def _lead(self, revision: int, offload: Offload) -> None:
        await self._cache.wait_for(revision)
        self._inbox.on_report = self._wake.set
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
        """Until something happens, or time may decide something."""
        moments = [self._silence.look_again_at, *(each.until for each in self._aside.values())]
        if self._look_again_at is not None:
            moments.append(self._look_again_at - self._offset)
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
        """Decide and write what has happened; what could not be written is for the next round."""
        self._follow_clock()
        given = self._input(feed)
        began = time.perf_counter()
        try:
            decided = await offload(partial(self._decide, given))
        except Exception:
            log.exception("a round cannot be decided")
            self._errors += 1
            self._dirty |= given.dirty
            self._inbox.give_back(given.reports)
            return
        self._observer.took(time.perf_counter() - began)
        self._look_again_at = earliest(self._look_again_at, decided.look_again_at)
        self._dirty |= decided.rest
        self._hear(decided.silence)
        self._warn(decided.refused)
        written = WriteResult()
        if decided.parts:
            try:
                written = await self._writer.write(decided.parts)
            except TermEnded as over:
                # The election ends this loop; until then there is nothing to do.
                log.warning("cannot write", extra={"error": over})
                await asyncio.Event().wait()
            await self._cache.wait_for(written.revision)
        self._account(given, decided, written)

    def _follow_clock(self) -> None:
        """See whether the wall clock was stepped, and whether it is time to look again."""
        offset = self._now() - self._clock()
        step, before = offset - self._offset, self._offset + self._clock()
        self._offset = offset
        if abs(step) >= CLOCK_STEP:
            log.warning("the clock was stepped; delays are moved along", extra={"seconds": step})
            for item in clock_steps.objects_with_delays(self._cache.view, before):
                key = object_key(item)
                self._shifts[key] = self._shifts.get(key, 0.0) + step
            self._dirty |= Dirty(timer=True)
        if self._look_again_at is not None and self._look_again_at <= self._now():
            self._look_again_at = None
            self._dirty |= Dirty(timer=True)

    def _input(self, feed: Feed) -> _RoundInput:
        changes = feed.take()
        self._dirty |= dirty_of(changes)
        now = self._clock()
        for id in [id for id in self._aside if self._is_due(id, changes, now)]:
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
            dirty,
            self._inbox.take(),
            Hearing(
                self._started,
                now,
                self._inbox.heard,
                dict(self._joined),
                self._silence.doubt_since,
                self._silence.fewest,
            ),
            frozenset(aside),
            dict(self._shifts),
            self._now(),
        )

    def _is_due(self, id: str, changes: Iterable[Change], now: float) -> bool:
        """Whether a service that is put aside is tried again: after a while, or when its user has
        changed it."""
        return self._aside[id].until <= now or any(
            change.subject.id == id and not isinstance(change.subject, Task) for change in changes
        )

    def _dirty_of_owner(self, id: str) -> Dirty:
        if id in self._cache.view.tasks:
            return Dirty(containers=frozenset({id}))
        return Dirty(services=frozenset({id}))

    def _decide(self, given: _RoundInput) -> _RoundResult:
        """One round's writes: a function of its arguments."""
        now, found = given.now, _DecisionBuilder(given.view)
        found.add(_moved(found.view, given.shifts))
        found.add(
            Plan((change,), reason="clock step")
            for change in clock_steps.delays_from_the_future(found.view, now)
        )
        refused: list[FalseClaim] = []
        found.add(report_decisions(found.view, given.reports, now, refused.append))
        silence = expire(found.view, given.hearing, now)
        found.add(silence.plans)
        dirty = given.dirty | dirty_of(found.changes())
        made = pipeline.plan(
            found.view, dirty, now, self._new_id, limit=ROUND_SIZE, exclude=given.exclude
        )
        for plan in made.plans:
            log.info("plan", extra={"changes": len(plan.changes), "reason": plan.reason})
        found.add(made.plans)
        return _RoundResult(
            group_changes(
                found.decisions, lambda changes: with_trace_contexts(found.view, changes, now)
            ),
            made.requeue_at,
            silence,
            made.rest,
            made.failed,
            refused,
        )

    # What became of it

    def _hear(self, silence: Silence) -> None:
        if silence.doubt_since is not None and self._silence.doubt_since is None:
            log.warning(
                "most nodes are silent at once: waiting for another grace period before they count "
                "as down; check this manager's network",
                extra={"silent": silence.silent},
            )
        self._silence = silence
        self._observer.doubts(silence.silent if silence.doubt_since is not None else 0)

    def _warn(self, refused: Iterable[FalseClaim]) -> None:
        """Count false claims; log the first of each kind of each node."""
        for claim in refused:
            self._observer.refused(claim.kind)
            known = self._warned.setdefault(claim.node_id, set())
            if claim.kind in known:
                continue
            known.add(claim.kind)
            log.warning(
                "refused a claim of a node",
                extra={
                    "node": claim.node_id,
                    "kind": claim.kind,
                    "claimed": claim.claimed[:LONGEST_TEXT],
                    "reason": claim.reason,
                },
            )

    def _account(self, given: _RoundInput, decided: _RoundResult, written: WriteResult) -> None:
        left = [*written.conflicted, *written.too_large, *written.unwritten]
        changes = [change for part in left for change in part.changes]
        unwritten = {object_key(change.subject) for change in changes}
        for key in given.shifts.keys() - unwritten:
            self._shifts.pop(key, None)
        waiting = unwritten_reports(given.reports, changes)
        self._inbox.give_back(waiting)
        for node_id, acknowledge in given.reports.acknowledgements.items():
            if node_id not in waiting.acknowledgements:
                acknowledge()
        if written.conflicted:
            self._observer.conflicted()
        owners = {owner: None for part in written.conflicted for owner in part.owners}
        self._conflicted |= owners
        for part in written.conflicted:
            self._dirty |= _dirty_again(part)
        for part in written.unwritten:
            self._dirty |= dirty_of(part.changes)
            for owner in part.owners:
                self._dirty |= self._dirty_of_owner(owner)
        for part in written.too_large:
            for owner in part.owners:
                decided.failed = {**decided.failed, owner: "it is too large for the store"}
        self._put_aside(decided.failed, given)
        self._store(written.error)

    def _put_aside(self, failed: Mapping[str, str], given: _RoundInput) -> None:
        for id, why in failed.items():
            count = self._aside[id].count + 1 if id in self._aside else 1
            wait = backoff(count)
            self._aside[id] = _Failure(why, count, self._clock() + wait)
            log.error(
                "a service is put aside",
                extra={"service": id, "error": why, "retry_in": wait},
            )
        view = self._cache.view
        tried = given.dirty.services | given.dirty.containers
        for id in list(self._aside):
            gone = id not in view.services and id not in view.tasks
            if gone or (id in tried and id not in failed and id not in given.exclude):
                del self._aside[id]
        self._observer.put_aside({id: failure.why for id, failure in self._aside.items()})

    def _store(self, error: StoreError | None) -> None:
        if error is None:
            if self._errors:
                log.info("the store takes writes again")
            self._errors = 0
            self._observer.store_failed("")
            return
        self._errors += 1
        log.error(
            "the store takes no writes; the cluster stays as it is until it does",
            extra={"error": error, "retry_in": backoff(self._errors)},
        )
        self._observer.store_failed(str(error))


def _moved(view: ClusterView, shifts: Mapping[str, float]) -> Iterator[Plan]:
    """The delays that are to be moved."""
    for key, seconds in shifts.items():
        kind = object_type(key)
        item = find_object(view, *kind) if kind is not None else None
        if item is not None:
            yield Plan((Change(item, clock_steps.shifted(item, seconds)),), reason="clock step")


def _dirty_again(part: ChangeGroup) -> Dirty:
    """What is to be decided again about a part that was not written: all but its own services,
    which are planned by themselves."""
    dirty = dirty_of(part.changes)
    return replace(
        dirty, services=dirty.services - part.owners, containers=dirty.containers - part.owners
    )


__all__ = ["ROUND_SIZE", "Observer", "Offload", "PlanningLoop", "inline"]
