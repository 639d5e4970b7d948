# SPDX-License-Identifier: Apache-2.0
"""Fair shares of job queues, by dominant resource fairness.

A queue's dominant share is the larger of the fractions of the cluster's cores and memory that its
tasks reserve, divided by its weight. The queue with the least share places its next task, so shares
differ by no more than one task, as far as there is work that fits (Ghodsi et al., "Dominant
Resource Fairness", NSDI 2011).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from orchestrator.manager.planning.node_load import occupies
from orchestrator.manager.planning.reconcile.job_queues import queue_of, waiting_tasks, wanted_tasks
from orchestrator.manager.planning.reconcile.job_runs import active_runs
from orchestrator.manager.planning.slots import waits
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import NodeState
from orchestrator.model.scheduling.queues import Queue, queue_named
from orchestrator.model.services import Service
from orchestrator.model.specs import Resources
from orchestrator.model.tasks import Task
from orchestrator.model.units import count_cores, format_memory


class FairShares:
    """What each queue has of the cluster; `take` keeps it current during a pass."""

    def __init__(self, view: ClusterView) -> None:
        self._queues = view.cluster.queues if view.cluster is not None else ()
        ready = [
            node.description.resources
            for node in view.nodes.values()
            if node.state is NodeState.READY
        ]
        self._shares = max(sum(each.shares for each in ready), 1)
        self._memory = max(sum(each.memory for each in ready), 1)
        self._used: defaultdict[str, Resources] = defaultdict(Resources)
        for service in view.services.values():
            if not (queue := queue_of(service)):
                continue
            for task in view.tasks_of_service(service.id).values():
                if occupies(task):
                    self.take(queue, task.spec.counted)

    def used(self, queue: str) -> Resources:
        """What the tasks of the queue reserve."""
        return self._used[queue]

    def share(self, queue: str) -> float:
        """The dominant share of the queue, by its weight."""
        used = self._used[queue]
        dominant = max(used.shares / self._shares, used.memory / self._memory)
        return dominant / self._queue(queue).weight

    def take(self, queue: str, resources: Resources, count: int = 1) -> None:
        """Count tasks that the queue has placed."""
        used = self._used[queue]
        self._used[queue] = Resources(
            used.shares + count * resources.shares, used.memory + count * resources.memory
        )

    def over_quota(self, queue: str, resources: Resources, count: int) -> str:
        """Why `count` more tasks would exceed the queue's quota; empty if they would not."""
        quota, used = self._queue(queue).quota, self._used[queue]
        if quota.shares and used.shares + count * resources.shares > quota.shares:
            return f"queue {queue} has reached its quota of {count_cores(quota.shares)}"
        if quota.memory and used.memory + count * resources.memory > quota.memory:
            return f"queue {queue} has reached its quota of {format_memory(quota.memory)} of memory"
        return ""

    def _queue(self, name: str) -> Queue:
        return queue_named(self._queues, name) or Queue(name)


@dataclass(frozen=True, slots=True)
class QueueCount:
    """The active jobs of a queue and their tasks."""

    jobs: int = 0
    placed: int = 0
    """Tasks that have a node and have not ended."""
    waiting: int = 0
    """Tasks that wait, those that do not exist yet included."""


def queue_counts(view: ClusterView) -> dict[str, QueueCount]:
    """By the name of each queue of the cluster."""
    queues = view.cluster.queues if view.cluster is not None else ()
    counts = {queue.name: QueueCount() for queue in queues}
    for service in view.services.values():
        count = counts.get(queue_of(service))
        if count is None or service.removed or not active_runs(service):
            continue
        tasks = view.tasks_of_service(service.id).values()
        counts[queue_of(service)] = QueueCount(
            count.jobs + 1,
            count.placed + sum(map(occupies, tasks)),
            count.waiting + sum(map(waits, tasks)) + waiting_tasks(view, service),
        )
    return counts


Unit = list[Task]
"""Tasks that are placed together, or not at all."""


def lines_of(view: ClusterView, tasks: Iterable[Task]) -> dict[str, deque[Unit]]:
    """The pending tasks of each queue, in their order; those of an all-or-nothing job are one
    unit."""
    lines: dict[str, deque[Unit]] = {}
    together: dict[tuple[str, int], Unit] = {}
    for task in tasks:
        service = view.services.get(task.service_id)
        line = lines.setdefault(queue_of(service), deque())
        if service is None or not is_gang(view, service, task.job_run):
            line.append([task])
            continue
        unit = together.setdefault((service.id, task.job_run), [])
        if not unit:
            line.append(unit)
        unit.append(task)
    return lines


def is_gang(view: ClusterView, service: Service, run: int) -> bool:
    """Whether the tasks of a job's run are to start together: none of them has started yet."""
    if not service.spec.job.all_or_nothing:
        return False
    tasks = view.tasks_of_service(service.id).values()
    return not any(occupies(task) for task in tasks if task.job_run == run)


def missing_tasks(view: ClusterView, service: Service, unit: Unit) -> int:
    """How many tasks of an all-or-nothing run do not exist yet."""
    number = unit[0].job_run
    runs = (run for run in active_runs(service) if run.number == number)
    return max(next((wanted_tasks(service, run) for run in runs), 0) - len(unit), 0)


def queued_tasks(view: ClusterView, tasks: Iterable[Task]) -> Iterator[Task]:
    """Those of the tasks whose jobs are in queues."""
    return (task for task in tasks if queue_of(view.services.get(task.service_id)))
