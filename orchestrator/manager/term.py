"""What a leader does, from election to loss: one loop of read, decide, write.

Reports of agents, the expiry of silent nodes, subnets, reconciling and scheduling are decided one
after the other on one snapshot, each seeing what those before it want, and written as one guarded
transaction. So a service of sixty tasks goes from declared to assigned in one write, and while
that write is under way the next round's reports gather. A round is limited (`ROUND`): a service of
thousands takes several, each with its own look at the cluster.

Deciding and encoding are pure and run in a worker thread, so that however long they take, the
event loop renews the lease and serves sessions and API calls.

The loop holds no state that a new leader would need: all delays are in the store, and what it
merely remembers (when a node was last heard of) starts with a fresh grace.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from orchestrator.manager.inbox import Inbox, Reports
from orchestrator.manager.ingest import ingest
from orchestrator.manager.planning import pipeline
from orchestrator.manager.planning.liveness import expire
from orchestrator.manager.planning.pipeline import EVERYTHING, Dirty, dirty_of
from orchestrator.manager.planning.plan import Change, earliest
from orchestrator.manager.planning.views import ClusterView
from orchestrator.manager.store.cache import Cache, Feed, fold
from orchestrator.manager.store.commit import Transaction, send, transactions
from orchestrator.manager.store.keys import object_key
from orchestrator.manager.store.kv import Conflict, Guard, Kv, StoreUnavailable
from orchestrator.manager.traces import attributed
from orchestrator.model.objects import Object

log = logging.getLogger(__name__)

T = TypeVar("T")

_RETRY = 0.1
"""Seconds between attempts to write while the store is away."""

ROUND = 500
"""Tasks that one round creates, and places, at the most, roughly: a commit stays small, and reports
and other services wait for no more than that."""


@dataclass(slots=True)
class _Round:
    """One snapshot's decisions, folded to one change an object."""

    view: ClusterView
    changes: dict[str, Change] = field(default_factory=dict)
    requires: dict[str, Object] = field(default_factory=dict)
    look_again_at: float | None = None
    silent_at: float | None = None
    rest: Dirty = field(default_factory=Dirty)
    transactions: Sequence[Transaction] = ()
    """The changes, encoded."""

    def add(self, changes: Iterable[Change], requires: Iterable[Object] = ()) -> None:
        """Take decisions in; what is decided next sees them. What cannot be decoded stays."""
        frozen = self.view.quarantined
        changes = [each for each in changes if object_key(each.subject) not in frozen]
        fold(self.changes, changes)
        for item in requires:
            self.requires.setdefault(object_key(item), item)
        self.view = self.view.evolve(changes)


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


class Times(Protocol):
    """Is told how long decisions take (`metrics.PlanningTimes`)."""

    def took(self, seconds: float) -> None: ...

    def conflicted(self) -> None: ...


class Term:
    """A leader's loop."""

    def __init__(
        self,
        kv: Kv,
        cache: Cache,
        inbox: Inbox,
        *,
        fence: Guard,
        started_at: float,
        now: Callable[[], float],
        new_id: Callable[[], str],
        times: Times | None = None,
        offload: Offload | None = None,
    ) -> None:
        """`offload` runs what computes for long, so that the lease, sessions and API calls are
        served meanwhile; if none is given, in a thread of the term's own."""
        self._kv = kv
        self._cache = cache
        self._inbox = inbox
        self._fence = fence
        self._started_at = started_at
        self._now = now
        self._new_id = new_id
        self._times = times
        self._offload = offload
        self._wake = asyncio.Event()
        self._look_again_at: float | None = None
        """The earliest time that a round asked to be made again, until it has passed."""
        self._rest = Dirty()
        """What the last round did not get to."""

    async def run(self, revision: int) -> None:
        """Lead, from the moment that the cache has the term's own `revision`."""
        with closing(_Planner()) as planner:
            await self._lead(revision, self._offload or planner)

    async def _lead(self, revision: int, offload: Offload) -> None:
        await self._cache.wait_for(revision)
        self._inbox.on_report = self._wake.set
        async with self._cache.subscribe() as feed:
            feed.on_change = self._wake.set
            dirty = EVERYTHING
            while True:
                silent_at = await self._round(dirty, feed, offload)
                await self._sleep_until(earliest(self._look_again_at, silent_at))
                dirty = self._rest | dirty_of(feed.take()) | Dirty(timer=self._is_time())

    async def _sleep_until(self, moment: float | None) -> None:
        """Until something happens, or that moment."""
        if moment is None:
            await self._wake.wait()
        else:
            alarm = asyncio.get_running_loop().call_later(
                max(0.0, moment - self._now()), self._wake.set
            )
            try:
                await self._wake.wait()
            finally:
                alarm.cancel()
        self._wake.clear()

    def _is_time(self) -> bool:
        moment = self._look_again_at
        if moment is None or moment > self._now():
            return False
        self._look_again_at = None
        return True

    async def _round(self, dirty: Dirty, feed: Feed, offload: Offload) -> float | None:
        """Decide and write, until it is written; when the next node may be called down."""
        reports = self._inbox.take()
        while True:
            read = self._cache.revision
            began = time.perf_counter()
            decide = partial(
                self._decide, self._cache.view, dirty, reports, dict(self._inbox.heard), self._now()
            )
            decided = await offload(decide)
            if self._times is not None:
                self._times.took(time.perf_counter() - began)
            if not decided.transactions:
                break
            try:
                revision = await send(self._kv, decided.transactions)
            except Conflict:
                if self._times is not None:
                    self._times.conflicted()
                # Somebody wrote what was read. Their change reaches the cache by the watch.
                await self._cache.wait_for(read + 1)
            except StoreUnavailable as error:
                log.warning("cannot write", extra={"error": error})
                await asyncio.sleep(_RETRY)
            else:
                await self._cache.wait_for(revision)
                break
            dirty |= dirty_of(feed.take())
        for acknowledge in reports.acknowledge:
            acknowledge()
        self._look_again_at = earliest(self._look_again_at, decided.look_again_at)
        self._rest = decided.rest
        if self._rest:
            self._wake.set()
        return decided.silent_at

    def _decide(
        self,
        view: ClusterView,
        dirty: Dirty,
        reports: Reports,
        heard: Mapping[str, float],
        now: float,
    ) -> _Round:
        """One round's transactions: a function of its arguments, which nobody changes meanwhile."""
        decided = _Round(view)
        decided.add(ingest(view, reports, now))
        silent = expire(decided.view, heard, self._started_at, now)
        decided.add(silent.changes)
        dirty |= dirty_of(decided.changes.values())
        made = pipeline.plan(decided.view, dirty, now, self._new_id, limit=ROUND)
        decided.look_again_at, decided.rest = made.requeue_at, made.rest
        for plan in made.plans:
            log.info("plan", extra={"changes": len(plan.changes), "reason": plan.reason})
            decided.add(plan.changes, plan.requires)
        decided.silent_at = silent.requeue_at
        if decided.changes:
            decided.transactions = transactions(
                attributed(decided.view, decided.changes, now),
                decided.requires.values(),
                max_ops=self._kv.max_txn_ops,
                fence=self._fence,
            )
        return decided
