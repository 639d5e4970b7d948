# SPDX-License-Identifier: Apache-2.0
"""Which statuses of an agent's report are accepted."""

from __future__ import annotations

import pytest
from builders import node, task

from orchestrator.manager.planning.reports.claims import accept_reports
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus


def taken(known: Task, reported: TaskStatus, by: str = "a") -> bool:
    view = ClusterView.of([node("a"), node("b"), known])
    changes = accept_reports(view, by, {known.id: reported}, 5.0)
    for change in changes:
        assert isinstance(change.after, Task)
        assert change.after.status == reported
    return bool(changes)


@pytest.mark.parametrize(
    ("known", "reported", "believed"),
    [
        (TaskState.ASSIGNED, TaskState.ACCEPTED, True),
        (TaskState.ASSIGNED, TaskState.RUNNING, True),
        (TaskState.RUNNING, TaskState.FAILED, True),
        (TaskState.RUNNING, TaskState.STARTING, False),
        (TaskState.FAILED, TaskState.RUNNING, False),
        (TaskState.FAILED, TaskState.SHUTDOWN, False),
        (TaskState.ORPHANED, TaskState.RUNNING, False),
        (TaskState.RUNNING, TaskState.ORPHANED, False),
        (TaskState.PENDING, TaskState.RUNNING, False),
    ],
)
def test_only_valid_state_transitions_are_accepted(
    known: TaskState, reported: TaskState, believed: bool
) -> None:
    assert taken(task("t", known, node_id="a"), TaskStatus(reported, at=1.0)) is believed


def test_changes_within_a_state() -> None:
    running = task("t", node_id="a")
    assert taken(running, TaskStatus(TaskState.RUNNING, at=1.0, pid=7))
    assert not taken(running, running.status)
    assert not taken(running, TaskStatus(TaskState.RUNNING, at=-1.0, message="late"))


def test_reports_of_other_nodes_tasks_are_ignored() -> None:
    assert not taken(task("t", node_id="a"), TaskStatus(TaskState.FAILED, at=1.0), by="b")
    gone = {"gone": TaskStatus(TaskState.FAILED)}
    assert accept_reports(ClusterView.of([node("a")]), "a", gone, 5.0) == ()
