"""What agents report of their tasks, checked before it is believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.views import ClusterView
from orchestrator.model.states import Owner, TaskState, is_terminal, may_move
from orchestrator.model.tasks import Task, TaskStatus


def ingest(
    view: ClusterView, node_id: str, reports: Mapping[str, TaskStatus], now: float
) -> tuple[Change, ...]:
    """The changes that a node's reports make, by task id.

    Left out, since reports are repeated and reordered: what is not news, what is older than what
    is known (of an earlier run of a container, too), tasks that are gone or were given up, and
    tasks of other nodes. How long a task has been up is measured from `now`, so that the clocks of
    nodes do not matter.
    """
    tasks = view.tasks_of_node(node_id)
    return tuple(
        Change(tasks[id], _reported(tasks[id], reports[id], now))
        for id in sorted(reports)
        if id in tasks and is_news(tasks[id], reports[id])
    )


def _reported(task: Task, status: TaskStatus, now: float) -> Task:
    started = status.state is TaskState.RUNNING and task.status.state is not TaskState.RUNNING
    since = now if started else task.running_since
    return replace(task, status=status, running_since=since)


def is_news(task: Task, reported: TaskStatus) -> bool:
    """Whether an agent's report changes what is known of the task, by the table of states."""
    known = task.status
    if reported.run != known.run:
        return False
    if known.state is not reported.state:
        return may_move(Owner.AGENT, known.state, reported.state)
    return not is_terminal(known.state) and reported.at >= known.at and reported != known
