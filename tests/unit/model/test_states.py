# SPDX-License-Identifier: Apache-2.0
"""The table of task states."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.model.states import MOVES, TERMINAL, Owner, TaskState, is_terminal, may_move
from orchestrator.model.tasks import Task, TaskStatus

STATES = [state for state in TaskState if state is not TaskState.REMOVE]


def test_states_only_grow() -> None:
    assert all(source < target for source, target in MOVES)


def test_terminal_states_are_final() -> None:
    assert not any(is_terminal(source) for source, _ in MOVES)
    assert {state for state in STATES if is_terminal(state)} == TERMINAL


def test_remove_is_an_order_and_never_observed() -> None:
    assert not any(TaskState.REMOVE in move for move in MOVES)


def test_every_state_is_reached_and_every_state_but_the_last_ones_is_left() -> None:
    assert {target for _, target in MOVES} == set(STATES) - {TaskState.NEW}
    assert {source for source, _ in MOVES} == set(STATES) - TERMINAL


@pytest.mark.parametrize(
    ("owner", "source", "target", "allowed"),
    [
        (Owner.MANAGER, TaskState.NEW, TaskState.ASSIGNED, True),
        (Owner.MANAGER, TaskState.PENDING, TaskState.ASSIGNED, True),
        (Owner.MANAGER, TaskState.PENDING, TaskState.SHUTDOWN, True),
        (Owner.MANAGER, TaskState.RUNNING, TaskState.ORPHANED, True),
        (Owner.MANAGER, TaskState.RUNNING, TaskState.SHUTDOWN, False),
        (Owner.AGENT, TaskState.PENDING, TaskState.ASSIGNED, False),
        (Owner.AGENT, TaskState.ASSIGNED, TaskState.REJECTED, True),
        (Owner.AGENT, TaskState.ASSIGNED, TaskState.RUNNING, True),
        (Owner.AGENT, TaskState.RUNNING, TaskState.COMPLETE, True),
        (Owner.AGENT, TaskState.RUNNING, TaskState.ORPHANED, False),
        (Owner.AGENT, TaskState.ORPHANED, TaskState.RUNNING, False),
    ],
)
def test_owners(owner: Owner, source: TaskState, target: TaskState, allowed: bool) -> None:
    assert may_move(owner, source, target) is allowed


@given(st.sampled_from(STATES), st.sampled_from(STATES))
def test_a_move_has_at_most_one_owner(source: TaskState, target: TaskState) -> None:
    assert sum(may_move(owner, source, target) for owner in Owner) == ((source, target) in MOVES)


@pytest.mark.parametrize(
    ("task", "wanted"),
    [
        (Task(status=TaskStatus(TaskState.PENDING)), TaskState.RUNNING),
        (Task(status=TaskStatus(TaskState.RUNNING)), TaskState.RUNNING),
        (
            Task(status=TaskStatus(TaskState.RUNNING), desired_state=TaskState.SHUTDOWN),
            TaskState.SHUTDOWN,
        ),
        (Task(status=TaskStatus(TaskState.FAILED)), TaskState.SHUTDOWN),
        (Task(status=TaskStatus(TaskState.COMPLETE)), TaskState.SHUTDOWN),
        (
            Task(status=TaskStatus(TaskState.REJECTED), desired_state=TaskState.REMOVE),
            TaskState.REMOVE,
        ),
        (Task(status=TaskStatus(TaskState.COMPLETE), job_run=1), TaskState.COMPLETE),
        (Task(status=TaskStatus(TaskState.FAILED), job_run=1), TaskState.SHUTDOWN),
        (Task(status=TaskStatus(TaskState.FAILED, run=1), run=1), TaskState.SHUTDOWN),
        (Task(status=TaskStatus(TaskState.FAILED, run=1), run=2), TaskState.RUNNING),
    ],
)
def test_ended_task_is_not_wanted(task: Task, wanted: TaskState) -> None:
    assert task.wanted_now is wanted
