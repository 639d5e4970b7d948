# SPDX-License-Identifier: Apache-2.0
"""Committing agents' reports in a manager that does not lead.

The leader's planning loop commits the reports of its own sessions together with what it plans. All
other managers commit those of theirs here, by the same pure `report_decisions`. A commit is guarded
by the revisions of what was read, and by the records of the sessions. Repeating one is harmless.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

from orchestrator.manager.leader.agent_reports import (
    RejectedClaims,
    ReportBuffer,
    Reports,
    report_decisions,
)
from orchestrator.manager.leader.plan_commit import ChangeGroup, PlanWriter, group_changes
from orchestrator.manager.leader.planning_loop import Offload, backoff, without_quarantined
from orchestrator.manager.planning.reports.claims import FalseClaim
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.kv import Kv

log = logging.getLogger(__name__)


class ReportCommitter:
    """Commits the reports of one manager's sessions while it does not lead."""

    def __init__(
        self,
        kv: Kv,
        cache: Cache,
        buffer: ReportBuffer,
        *,
        is_local: Callable[[str], bool],
        now: Callable[[], float],
        offload: Offload,
        rejected: RejectedClaims,
    ) -> None:
        """`is_local`: whether the store says that this manager has the session of a node (by id).
        `now` is the wall clock; `offload` runs long computations."""
        self._cache = cache
        self._buffer = buffer
        self._is_local = is_local
        self._now = now
        self._offload = offload
        self._rejected = rejected
        self._writer = PlanWriter(kv, None)
        self._wake = asyncio.Event()
        self._errors = 0
        """Consecutive rounds that failed."""

    async def run(self) -> None:
        """Commit, until cancelled."""
        self._buffer.hand_over()
        self._buffer.on_report = self._wake.set
        async with self._cache.subscribe() as feed:
            # A report may wait for the record of its session.
            feed.on_change = lambda: self._wake.set() if self._buffer.waiting else None
            self._wake.set()
            while True:
                if self._errors:
                    await asyncio.sleep(backoff(self._errors))
                await self._wake.wait()
                self._wake.clear()
                feed.take()
                await self._round()

    async def _round(self) -> None:
        taken = self._buffer.take(self._is_local)
        if not taken.nodes:
            return
        refused: list[FalseClaim] = []
        try:
            parts = await self._offload(
                partial(
                    _decide, self._cache.view, self._cache.revision, taken, self._now(), refused
                )
            )
        except Exception:
            log.exception("reports of nodes cannot be processed; retrying")
            self._errors += 1
            self._buffer.give_back(taken)
            self._wake.set()
            return
        written = await self._writer.write(parts)
        await self._cache.wait_for(written.revision)
        left = [*written.conflicted, *written.too_large, *written.unwritten]
        repeated = self._buffer.settle(taken, [change for part in left for change in part.changes])
        self._rejected.report(each for each in refused if each.node_id not in repeated)
        if written.error is not None:
            log.error("the store rejects reports of nodes", extra={"error": written.error})
        self._errors = self._errors + 1 if written.error or written.too_large else 0
        if left:
            self._wake.set()


def _decide(
    view: ClusterView, revision: int, reports: Reports, now: float, refused: list[FalseClaim]
) -> Sequence[ChangeGroup]:
    """The changes that the reports cause, without those of objects that cannot be decoded."""
    decisions = report_decisions(view, reports, now, refused.append)
    return group_changes(
        (without_quarantined(each, view.quarantined) for each in decisions), seen=revision
    )
