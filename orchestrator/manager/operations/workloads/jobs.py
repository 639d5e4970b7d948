# SPDX-License-Identifier: Apache-2.0
"""Operations on the runs of jobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from orchestrator.manager.errors import failed_precondition
from orchestrator.manager.object_lookup import find_job
from orchestrator.manager.operations.context import Operations, on_current_state
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.reconcile import job_runs
from orchestrator.manager.store.commit import commit
from orchestrator.model.convert import to_proto
from orchestrator.model.jobs import Overlap
from orchestrator.model.services import Service
from orchestrator.pb import jobs_pb2, types_pb2
from orchestrator.tracing.spans import current


class JobOperations(Operations):
    """Operations of `orc job …` on runs."""

    async def start_job(self, request: jobs_pb2.StartJobRequest) -> types_pb2.Service:
        """Begin a run of a job."""
        return await self._changed(request.job, self._started)

    async def stop_job(self, request: jobs_pb2.StopJobRequest) -> types_pb2.Service:
        """Stop a job's active runs."""
        return await self._changed(request.job, self._stopped)

    def _started(self, job: Service) -> Service:
        under_way, overlap = job_runs.active_runs(job), job.spec.job.overlap
        if under_way and overlap is Overlap.FORBID:
            name = job.spec.name
            raise failed_precondition(
                f"run {under_way[0].number} of job '{name}' is still in progress; wait for it, or "
                f"stop it with 'orc job stop {name}'"
            )
        now = self.ctx.now()
        if overlap is Overlap.REPLACE:
            job = job_runs.stop_runs(job, now, "replaced by another run")
        return job_runs.begin_run(job, now)

    def _stopped(self, job: Service) -> Service:
        if not job_runs.active_runs(job):
            raise failed_precondition(f"no run of job '{job.spec.name}' is in progress")
        return job_runs.stop_runs(job, self.ctx.now(), "stopped by its user")

    @on_current_state
    async def _changed(self, word: str, change: Callable[[Service], Service]) -> Any:
        """Commit a change of a job; return the job."""
        ctx = self.ctx
        before = find_job(ctx.view, word)
        after = replace(change(before), trace=current())
        await ctx.cache.wait_for(await commit(ctx.kv, [Change(before, after)]))
        return to_proto(ctx.view.services.get(before.id, after))
