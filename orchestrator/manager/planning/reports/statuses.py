# SPDX-License-Identifier: Apache-2.0
"""Task statuses in agents' reports, checked before they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.reports.claims import (
    Claim,
    FalseClaim,
    Refuse,
    credible_status,
    ignore,
)
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.states import Owner, TaskState, is_terminal, may_move
from orchestrator.model.tasks import Task, TaskStatus


def accept_reports(
    view: ClusterView,
    node_id: str,
    reports: Mapping[str, TaskStatus],
    now: float,
    refuse: Refuse = ignore,
) -> tuple[Change, ...]:
    """The changes that a node's reports make, by task id.

    Dropped, since reports are repeated and reordered: statuses that change nothing, that are older
    than the stored one (or of an earlier run), and of tasks that are deleted or orphaned.
    Statuses of other nodes' tasks and addresses that a task cannot have are refused. How long a
    task has been up is measured from `now`, so that the clocks of nodes do not matter.
    """
    tasks = view.tasks_of_node(node_id)
    changes = []
    for id in sorted(reports):
        if (task := tasks.get(id)) is None:
            if (other := view.tasks.get(id)) is not None:
                reason = f"the task is on node {other.node_id}" if other.node_id else "it has none"
                refuse(FalseClaim(node_id, Claim.TASK, f"the status of task {id}", reason))
        elif is_recent(task, reports[id]):
            status = credible_status(view, task, reports[id], refuse)
            if is_change(task, status):
                changes.append(Change(task, _reported(task, status, now)))
    return tuple(changes)


def _reported(task: Task, status: TaskStatus, now: float) -> Task:
    started = status.state is TaskState.RUNNING and task.status.state is not TaskState.RUNNING
    since = now if started else task.running_since
    return replace(task, status=status, running_since=since)


def is_change(task: Task, reported: TaskStatus) -> bool:
    """Whether an agent's report changes the stored status, by the table of states."""
    return is_recent(task, reported) and reported != task.status


def is_recent(task: Task, reported: TaskStatus) -> bool:
    """Whether a report is not older than the stored status, by the table of states."""
    known = task.status
    if reported.run != known.run:
        return False
    if known.state is not reported.state:
        return may_move(Owner.AGENT, known.state, reported.state)
    return not is_terminal(known.state) and reported.at >= known.at
