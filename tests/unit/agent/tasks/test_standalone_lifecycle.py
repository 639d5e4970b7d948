# SPDX-License-Identifier: Apache-2.0
"""Steps of a standalone container, which runs more than once: tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.agent.runtime.interface import Exit, Started
from orchestrator.agent.tasks.lifecycle import (
    Observed,
    Step,
    failed_status,
    final_status,
    grace_period,
    next_step,
)
from orchestrator.model.specs import ContainerSpec, RestartCondition, RestartPolicy, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus

S = TaskState
ENDED = Observed(released=True)
NONE = RestartPolicy(RestartCondition.NONE)


def box(
    desired: TaskState = S.RUNNING,
    run: int = 1,
    known: TaskStatus | None = None,
    restart: RestartPolicy = NONE,
) -> Task:
    return Task(
        id="c1",
        container_name="box",
        spec=TaskSpec(restart=restart),
        desired_state=desired,
        run=run,
        status=known or TaskStatus(S.ASSIGNED, run=run),
    )


def at(state: TaskState, run: int = 1) -> TaskStatus:
    return TaskStatus(state, run=run)


@pytest.mark.parametrize(
    ("task", "status", "observed", "step"),
    [
        # It ended: its network goes, its files stay, and it rests.
        (box(), at(S.COMPLETE), Observed(), Step.RELEASE),
        (box(), at(S.COMPLETE), ENDED, Step.IDLE),
        (box(S.SHUTDOWN), at(S.SHUTDOWN), ENDED, Step.IDLE),
        # It is removed: the files go too, once.
        (box(S.REMOVE), at(S.COMPLETE), ENDED, Step.DISCARD),
        (box(S.REMOVE), at(S.COMPLETE), replace(ENDED, discarded=True), Step.IDLE),
        # The next run begins once the manager gave it, and not before.
        (box(run=2), at(S.COMPLETE), ENDED, Step.NEXT_RUN),
        (box(run=2), at(S.COMPLETE), Observed(), Step.RELEASE),
        (box(run=2, known=at(S.COMPLETE, 1)), at(S.COMPLETE), ENDED, Step.IDLE),
        (box(run=2, known=at(S.PENDING, 2)), at(S.COMPLETE), ENDED, Step.IDLE),
        # It begins even if it must end immediately, so that its end is reported.
        (box(S.REMOVE, run=2), at(S.COMPLETE), ENDED, Step.NEXT_RUN),
        (box(S.REMOVE, run=2), at(S.ACCEPTED, 2), Observed(), Step.RECORD_END),
        # One that is wanted again before it was begun is begun, and ends for the next.
        (box(run=3, known=at(S.ASSIGNED, 2)), at(S.COMPLETE), ENDED, Step.NEXT_RUN),
        (box(run=3, known=at(S.ASSIGNED, 2)), at(S.ACCEPTED, 2), Observed(), Step.RECORD_END),
        (box(run=3, known=at(S.ASSIGNED, 2)), at(S.SHUTDOWN, 2), ENDED, Step.IDLE),
        # A run that has been given waits for the manager's word where that was lost.
        (box(run=2, known=at(S.PENDING, 2)), at(S.ACCEPTED, 2), Observed(), Step.IDLE),
        (box(run=2), at(S.ACCEPTED, 2), Observed(), Step.PREPARE),
        # Created, it rests when all is ready.
        (box(S.READY), at(S.READY), Observed(prepared=True), Step.IDLE),
        # The next run is wanted while this one runs: it ends first.
        (box(run=2), at(S.RUNNING), Observed(container=Started(7, 0.0)), Step.STOP),
        # Started for certain not, it may be started; running, it was lost.
        (box(), at(S.STARTING), Observed(), Step.PREPARE),
        (box(), at(S.RUNNING), Observed(), Step.RECORD_END),
        # A reboot ends it, unless its restart policy starts it again.
        (box(), at(S.RUNNING), Observed(rebooted=True), Step.RECORD_END),
        (
            box(restart=RestartPolicy(RestartCondition.ANY)),
            at(S.RUNNING),
            Observed(rebooted=True),
            Step.PREPARE,
        ),
        (
            box(restart=RestartPolicy(RestartCondition.ON_FAILURE)),
            at(S.RUNNING),
            Observed(rebooted=True),
            Step.RECORD_END,
        ),
    ],
)
def test_next_step_of_a_standalone_container(
    task: Task, status: TaskStatus, observed: Observed, step: Step
) -> None:
    assert next_step(task, status, observed) is step


def test_a_run_that_ends_for_the_next_one_was_shut_down() -> None:
    ended = Observed(container=Exit(143, False, 5.0))
    status = final_status(box(run=2), replace(at(S.RUNNING), paused=True), ended, 6.0)
    assert (status.state, status.exit_code, status.run) == (S.SHUTDOWN, 143, 1)
    assert not status.paused


def test_a_program_that_cannot_be_run_has_a_shells_exit_status() -> None:
    status = failed_status(box(), at(S.STARTING), "the image has no program `x`", 1.0, 127)
    assert (status.state, status.exit_code) == (S.FAILED, 127)


@pytest.mark.parametrize(("ordered", "grace"), [(0.0, 10.0), (3.0, 3.0), (-1.0, 0.0)])
def test_grace_period_of_a_standalone_container(ordered: float, grace: float) -> None:
    task = replace(box(), spec=TaskSpec(container=ContainerSpec()), stop_grace=ordered)
    assert grace_period(task) == grace
