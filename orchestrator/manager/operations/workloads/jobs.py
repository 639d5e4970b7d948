"""Calls about the runs of jobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from orchestrator.manager.errors import failed_precondition
from orchestrator.manager.object_lookup import find_job
from orchestrator.manager.operations.context import Operations, mapping_errors
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.reconcile import job_runs
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.kv import Conflict
from orchestrator.model.convert import to_proto
from orchestrator.model.jobs import Overlap
from orchestrator.model.services import Service
from orchestrator.pb import jobs_pb2_grpc
from orchestrator.tracing.spans import current


class JobOperations(Operations, jobs_pb2_grpc.JobsServicer):  # type: ignore[misc]
    """`orc job …`, as far as it is about runs."""

    @mapping_errors
    async def StartJob(self, request: Any, context: Any) -> Any:
        return await self._changed(request.job, self._started)

    @mapping_errors
    async def StopJob(self, request: Any, context: Any) -> Any:
        return await self._changed(request.job, self._stopped)

    def _started(self, job: Service) -> Service:
        under_way, overlap = job_runs.active_runs(job), job.spec.job.overlap
        if under_way and overlap is Overlap.FORBID:
            name = job.spec.name
            raise failed_precondition(
                f"run {under_way[0].number} of job '{name}' is still under way; wait for it, or "
                f"stop it with 'orc job stop {name}'"
            )
        now = self.api.now()
        if overlap is Overlap.REPLACE:
            job = job_runs.stop_runs(job, now, "another run has taken its place")
        return job_runs.begin_run(job, now)

    def _stopped(self, job: Service) -> Service:
        if not job_runs.active_runs(job):
            raise failed_precondition(f"no run of job '{job.spec.name}' is under way")
        return job_runs.stop_runs(job, self.api.now(), "stopped by its user")

    async def _changed(self, word: str, change: Callable[[Service], Service]) -> Any:
        """Change a job, anew if the planner was faster, and answer with it."""
        api = self.api
        while True:
            read = api.cache.revision
            before = find_job(api.view, word)
            after = replace(change(before), trace=current())
            try:
                revision = await commit(api.kv, [Change(before, after)])
            except Conflict:
                await api.cache.wait_for(read + 1)
            else:
                await api.cache.wait_for(revision)
                return to_proto(api.view.services.get(before.id, after))
