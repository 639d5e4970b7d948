# SPDX-License-Identifier: Apache-2.0
"""Job queues: which of the queued jobs create tasks now.

Only the first tasks of a queue exist and wait for a node, so that any number of queued jobs costs
no more than its objects in the store. Jobs of higher priority come first, then older ones. Beyond
the first job, tasks of later ones are there to be tried, too: what fits goes first (backfill).
How queues share the nodes is for the scheduler (`scheduling.fair_shares`).
"""

from __future__ import annotations

from collections import Counter, defaultdict

from orchestrator.manager.planning.reconcile.job_runs import active_runs, service_at_run
from orchestrator.manager.planning.slots import ended
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.jobs import parse_indexes
from orchestrator.model.services import JobRun, Service

QUEUE_WINDOW = 500
"""Pending tasks of a queue at a time; an all-or-nothing job may exceed it."""

JOB_WINDOW = 100
"""Pending tasks of a job at a time, unless it is all-or-nothing."""


def queue_of(service: Service | None) -> str:
    """The name of the job's queue; empty without one."""
    return service.spec.job.queue if service is not None else ""


def has_queues(view: ClusterView) -> bool:
    """Whether the cluster has queues of jobs."""
    return view.cluster is not None and bool(view.cluster.queues)


class QueueRoom:
    """How many tasks each queued job may create in one pass."""

    def __init__(self, view: ClusterView) -> None:
        self._view = view
        self._allowed: dict[str, int] | None = None

    def jobs(self) -> set[str]:
        """Ids of the jobs that may create tasks."""
        return {id for id, count in self._counts().items() if count > 0}

    def take(self, job: Service, wanted: int) -> int:
        """How many of the wanted tasks a job may create now; they are counted as created."""
        if not has_queues(self._view):
            return wanted
        counts = self._counts()
        given = min(counts.get(job.id, 0), wanted)
        if given:
            counts[job.id] -= given
        return given

    def _counts(self) -> dict[str, int]:
        if self._allowed is None:
            self._allowed = _allowed(self._view)
        return self._allowed


def _allowed(view: ClusterView) -> dict[str, int]:
    """Job id → how many tasks it may create."""
    lines: defaultdict[str, list[Service]] = defaultdict(list)
    for service in view.services.values():
        if queue_of(service) and not service.removed and active_runs(service):
            lines[queue_of(service)].append(service)
    of_job = Counter(task.service_id for task in view.pending.values())
    of_queue: Counter[str] = Counter()
    for id, count in of_job.items():
        of_queue[queue_of(view.services.get(id))] += count
    allowed: dict[str, int] = {}
    for queue, jobs in sorted(lines.items()):
        room = QUEUE_WINDOW - of_queue[queue]
        jobs.sort(key=lambda job: (-job.spec.priority, _queued_at(job), job.created_at, job.id))
        for job in jobs:
            if room <= 0:
                break
            count = waiting_tasks(view, job)
            if not job.spec.job.all_or_nothing:
                count = min(count, room, JOB_WINDOW - of_job[job.id])
            if count > 0:
                allowed[job.id] = count
                room -= count
    return allowed


def _queued_at(job: Service) -> float:
    """When its oldest active run began."""
    return min(run.started_at for run in active_runs(job))


def waiting_tasks(view: ClusterView, job: Service) -> int:
    """How many tasks the job's active runs are to have now, and do not have."""
    return sum(
        max(wanted_tasks(job, run) - _live_tasks(view, job, run), 0) for run in active_runs(job)
    )


def wanted_tasks(job: Service, run: JobRun) -> int:
    """How many tasks a run is to have at a time now, if there is room."""
    most = job.spec.job.parallelism
    left = service_at_run(job, run).spec.replicas - len(parse_indexes(run.completed))
    return min(left, most) if most else left


def _live_tasks(view: ClusterView, job: Service, run: JobRun) -> int:
    tasks = view.tasks_of_service(job.id).values()
    return sum(task.job_run == run.number and not ended(task) for task in tasks)
