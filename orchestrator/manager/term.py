"""What a leader does, from election to loss: one loop of read, decide, write.

Reports of agents, the expiry of silent nodes, subnets, reconciling and scheduling are decided one
after the other on one snapshot, each seeing what those before it want, and written as one guarded
transaction. So a service of sixty tasks goes from declared to assigned in one write, and while
that write is under way the next round's reports gather.

The loop holds no state that a new leader would need: all delays are in the store, and what it
merely remembers (when a node was last heard of) starts with a fresh grace.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.manager.inbox import Inbox, Reports
from orchestrator.manager.ingest import ingest
from orchestrator.manager.planning import pipeline
from orchestrator.manager.planning.liveness import expire
from orchestrator.manager.planning.pipeline import EVERYTHING, Dirty, dirty_of
from orchestrator.manager.planning.plan import Change, earliest
from orchestrator.manager.planning.views import ClusterView
from orchestrator.manager.store.cache import Cache, Feed, fold
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import object_key
from orchestrator.manager.store.kv import Conflict, Guard, Kv, StoreUnavailable
from orchestrator.manager.traces import attributed
from orchestrator.model.objects import Object

log = logging.getLogger(__name__)

_RETRY = 0.1
"""Seconds between attempts to write while the store is away."""


@dataclass(slots=True)
class _Round:
    """One snapshot's decisions, folded to one change an object."""

    view: ClusterView
    changes: dict[str, Change] = field(default_factory=dict)
    requires: dict[str, Object] = field(default_factory=dict)
    look_again_at: float | None = None
    silent_at: float | None = None

    def add(self, changes: Iterable[Change], requires: Iterable[Object] = ()) -> None:
        """Take decisions in; what is decided next sees them."""
        changes = list(changes)
        fold(self.changes, changes)
        for item in requires:
            self.requires.setdefault(object_key(item), item)
        self.view = self.view.evolve(changes)


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
    ) -> None:
        self._kv = kv
        self._cache = cache
        self._inbox = inbox
        self._fence = fence
        self._started_at = started_at
        self._now = now
        self._new_id = new_id
        self._times = times
        self._wake = asyncio.Event()
        self._look_again_at: float | None = None
        """The earliest time that a round asked to be made again, until it has passed."""

    async def run(self, revision: int) -> None:
        """Lead, from the moment that the cache has the term's own `revision`."""
        await self._cache.wait_for(revision)
        self._inbox.on_report = self._wake.set
        async with self._cache.subscribe() as feed:
            feed.on_change = self._wake.set
            dirty = EVERYTHING
            while True:
                silent_at = await self._round(dirty, feed)
                await self._sleep_until(earliest(self._look_again_at, silent_at))
                dirty = dirty_of(feed.take()) | Dirty(timer=self._is_time())

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

    async def _round(self, dirty: Dirty, feed: Feed) -> float | None:
        """Decide and write, until it is written; when the next node may be called down."""
        reports = self._inbox.take()
        while True:
            read = self._cache.revision
            began = time.perf_counter()
            decided = self._decide(dirty, reports)
            if self._times is not None:
                self._times.took(time.perf_counter() - began)
            if not decided.changes:
                break
            try:
                revision = await commit(
                    self._kv,
                    attributed(decided.view, decided.changes, self._now()),
                    decided.requires.values(),
                    fence=self._fence,
                )
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
        return decided.silent_at

    def _decide(self, dirty: Dirty, reports: Reports) -> _Round:
        now = self._now()
        decided = _Round(self._cache.view)
        decided.add(ingest(decided.view, reports, now))
        silent = expire(decided.view, self._inbox.heard, self._started_at, now)
        decided.add(silent.changes)
        dirty |= dirty_of(decided.changes.values())
        plans, decided.look_again_at = pipeline.plan(decided.view, dirty, now, self._new_id)
        for plan in plans:
            log.info("plan", extra={"changes": len(plan.changes), "reason": plan.reason})
            decided.add(plan.changes, plan.requires)
        decided.silent_at = silent.requeue_at
        return decided
