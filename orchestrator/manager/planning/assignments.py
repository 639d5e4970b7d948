"""What a node must have: the agent's orders."""

from __future__ import annotations

from orchestrator.manager.planning.resources import occupies
from orchestrator.manager.planning.views import ClusterView
from orchestrator.model.objects import Task


def assigned_tasks(view: ClusterView, node_id: str) -> dict[str, Task]:
    """The node's tasks that have not ended, by id in ascending order.

    Those to be stopped are among them: the agent obeys `desired_state`. Those given up are not,
    so that a node that comes back stops what it still runs of them.
    """
    tasks = view.tasks_of_node(node_id)
    return {id: tasks[id] for id in sorted(tasks) if occupies(tasks[id])}
