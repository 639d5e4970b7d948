"""What a node must have: the agent's orders."""

from __future__ import annotations

from orchestrator.manager.planning.views import ClusterView
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task


def assigned_tasks(view: ClusterView, node_id: str) -> dict[str, Task]:
    """The node's tasks, by id in ascending order.

    Those to be stopped are among them, since the agent obeys `desired_state`, and those that
    have ended, for as long as the store remembers them: the node keeps their logs. Those given up
    are not, so that a node that comes back stops what it still runs of them. A standalone container
    that waits for its next run is its node's all the time: that has its files.
    """
    tasks = view.tasks_of_node(node_id)
    return {
        id: tasks[id]
        for id in sorted(tasks)
        if (tasks[id].status.state >= TaskState.ASSIGNED or tasks[id].standalone)
        and tasks[id].status.state is not TaskState.ORPHANED
    }
