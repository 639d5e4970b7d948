"""Nodes that are avoided for a while: a service keeps failing there, or they come and go.

A node is avoided by a service once two of its present tasks have failed there by themselves within
five minutes, and none has settled there since. It is told by the tasks that are remembered, so a
new leader avoids the same. It is a wish: if no other node can take a task, that one gets it, and
what fails everywhere avoids nothing. So it is with a node that went down twice within five minutes
(`liveness.unsteady`), for all services.
"""

from __future__ import annotations

from collections import defaultdict

from orchestrator.manager.planning.liveness import unsteady
from orchestrator.manager.planning.restart import SETTLED, ran
from orchestrator.manager.planning.views import ClusterView
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Health, Task

FAILURES = 2
"""Failures that make a node one to avoid."""

REMEMBERED = 300.0
"""Seconds for which a failure counts."""


def unsteady_nodes(view: ClusterView, now: float) -> frozenset[str]:
    """Ids of the nodes that had better get nothing new now."""
    return frozenset(id for id, node in view.nodes.items() if unsteady(node, now))


def failing_nodes(view: ClusterView, service_id: str, now: float) -> set[str]:
    """Ids of the nodes on which tasks of the service keep failing now."""
    service = view.services.get(service_id)
    if service is None:
        return set()
    failures: defaultdict[str, list[float]] = defaultdict(list)
    settled: defaultdict[str, float] = defaultdict(float)
    for task in view.tasks_of_service(service.id).values():
        if not task.node_id or task.spec_version != service.spec_version:
            continue
        if _failed(task):
            failures[task.node_id].append(task.status.at)
        elif _settles(task, now):
            settled[task.node_id] = max(settled[task.node_id], task.status.started_at + SETTLED)
    return {
        node_id
        for node_id, times in failures.items()
        if sum(at > max(now - REMEMBERED, settled[node_id]) for at in times) >= FAILURES
    }


def _failed(task: Task) -> bool:
    """Whether it failed by itself before it had settled."""
    if not task.status.failed or task.desired_state > TaskState.RUNNING:
        return False
    return ran(task) < SETTLED or task.status.health is Health.UNHEALTHY


def _settles(task: Task, now: float) -> bool:
    status = task.status
    if not status.started_at or status.health is Health.UNHEALTHY:
        return False
    ends = now if status.state is TaskState.RUNNING else status.finished_at or status.at
    return ends - status.started_at >= SETTLED
