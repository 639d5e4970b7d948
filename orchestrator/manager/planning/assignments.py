# SPDX-License-Identifier: Apache-2.0
"""Assignments: the tasks that a node must run."""

from __future__ import annotations

from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task


def is_assigned(task: Task, node_id: str) -> bool:
    """Whether a task is in the node's assignment.

    One to be stopped is, since the agent obeys `desired_state`, and one that has ended, for as long
    as the store remembers it: the node keeps its logs. One given up is not, so that a node that
    comes back stops what it still runs of it. A standalone container that waits for its next run is
    its node's all the time: that has its files.
    """
    state = task.status.state
    return (
        task.node_id == node_id
        and (state >= TaskState.ASSIGNED or task.standalone)
        and state is not TaskState.ORPHANED
    )


def assigned_tasks(view: ClusterView, node_id: str) -> dict[str, Task]:
    """The node's tasks, by id in ascending order."""
    tasks = view.tasks_of_node(node_id)
    return {id: tasks[id] for id in sorted(tasks) if is_assigned(tasks[id], node_id)}
