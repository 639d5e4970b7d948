# SPDX-License-Identifier: Apache-2.0
"""Every way through a task's life, as a table."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agentfakes import NOW, task

from orchestrator.agent.runtime.interface import Exit, Started
from orchestrator.agent.tasks.lifecycle import (
    Observed,
    Step,
    due_pre_stop,
    exit_reason,
    failed_status,
    final_status,
    grace_left,
    next_step,
)
from orchestrator.model.specs import ContainerSpec, Hook, NetworkAttachment, TaskSpec
from orchestrator.model.states import TERMINAL, TaskState
from orchestrator.model.tasks import TaskStatus

RUNS = Started(7, NOW)
ENDED = Exit(0, False, NOW)
EARLIER = {"searched": False, "confirmed": False}

ON_DEFAULT = {"default": "10.128.0.2"}

STEPS = [
    # desired, recorded state, observed, step
    ("RUNNING", "ACCEPTED", Observed(), Step.PREPARE),
    ("RUNNING", "PREPARING", Observed(), Step.PREPARE),
    ("RUNNING", "READY", Observed(prepared=True), Step.START),
    ("RUNNING", "STARTING", Observed(RUNS, prepared=True), Step.RECORD_RUNNING),
    ("RUNNING", "RUNNING", Observed(RUNS, prepared=True), Step.WATCH),
    ("RUNNING", "RUNNING", Observed(RUNS, prepared=True, resize=True), Step.RESIZE),
    ("SHUTDOWN", "RUNNING", Observed(RUNS, prepared=True, resize=True), Step.STOP),
    ("RUNNING", "RUNNING", Observed(ENDED, prepared=True), Step.RECORD_END),
    ("RUNNING", "COMPLETE", Observed(), Step.RELEASE),
    ("RUNNING", "COMPLETE", Observed(released=True), Step.IDLE),
    # prepared, but not to be started yet
    ("READY", "READY", Observed(prepared=True), Step.IDLE),
    # told to stop, however far it got
    ("SHUTDOWN", "ACCEPTED", Observed(), Step.RECORD_END),
    ("SHUTDOWN", "READY", Observed(prepared=True), Step.RECORD_END),
    ("SHUTDOWN", "RUNNING", Observed(RUNS), Step.STOP),
    ("REMOVE", "RUNNING", Observed(RUNS), Step.STOP),
    ("REMOVE", "RUNNING", Observed(ENDED), Step.RECORD_END),
    ("REMOVE", "SHUTDOWN", Observed(), Step.RELEASE),
    ("REMOVE", "FAILED", Observed(released=True), Step.IDLE),
    # the agent was restarted
    ("RUNNING", "ASSIGNED", Observed(**EARLIER), Step.ADOPT),
    ("RUNNING", "RUNNING", Observed(**EARLIER), Step.ADOPT),
    ("SHUTDOWN", "RUNNING", Observed(**EARLIER), Step.ADOPT),
    ("RUNNING", "COMPLETE", Observed(**EARLIER), Step.RELEASE),
    ("RUNNING", "RUNNING", Observed(RUNS, confirmed=False), Step.WATCH),
    ("RUNNING", "STARTING", Observed(RUNS, confirmed=False), Step.RECORD_RUNNING),
    ("RUNNING", "STARTING", Observed(ENDED, confirmed=False), Step.RECORD_END),
    # what may have run and is not there was lost; it is never run again ...
    ("RUNNING", "RUNNING", Observed(confirmed=False), Step.RECORD_END),
    ("RUNNING", "STARTING", Observed(confirmed=False), Step.RECORD_END),
    # ... and what never ran waits until a manager still wants it
    ("RUNNING", "ASSIGNED", Observed(confirmed=False), Step.IDLE),
    ("RUNNING", "READY", Observed(confirmed=False), Step.IDLE),
    ("RUNNING", "READY", Observed(), Step.PREPARE),
    # the host was rebooted: what ran starts again, without a manager
    ("RUNNING", "RUNNING", Observed(rebooted=True, confirmed=False), Step.PREPARE),
    ("RUNNING", "RUNNING", Observed(rebooted=True, confirmed=False, prepared=True), Step.START),
    ("SHUTDOWN", "RUNNING", Observed(rebooted=True, confirmed=False), Step.RECORD_END),
]


@pytest.mark.parametrize(("desired", "state", "observed", "step"), STEPS)
def test_next_step(desired: str, state: str, observed: Observed, step: Step) -> None:
    status = TaskStatus(state=TaskState[state], pid=7, addresses=ON_DEFAULT)
    assert next_step(task(desired=TaskState[desired]), status, observed) is step


HOOKED = TaskSpec(
    ContainerSpec(post_start=(Hook(("a",)), Hook(("b",))), pre_stop=(Hook(("c",)), Hook(("d",))))
)


@pytest.mark.parametrize(
    ("desired", "state", "hooks", "observed", "step"),
    [
        ("RUNNING", "STARTING", 0, Observed(RUNS), Step.POST_START),
        ("RUNNING", "STARTING", 1, Observed(RUNS), Step.POST_START),
        ("RUNNING", "STARTING", 2, Observed(RUNS), Step.RECORD_RUNNING),
        ("RUNNING", "RUNNING", 2, Observed(RUNS), Step.WATCH),
        ("RUNNING", "STARTING", 0, Observed(RUNS, hook_failure="a failed"), Step.STOP),
        ("RUNNING", "STARTING", 0, Observed(ENDED), Step.RECORD_END),
        ("SHUTDOWN", "STARTING", 0, Observed(RUNS), Step.STOP),
        # a restarted agent, and a reboot
        ("RUNNING", "STARTING", 1, Observed(RUNS, confirmed=False), Step.POST_START),
        ("RUNNING", "RUNNING", 0, Observed(RUNS, rebooted=True), Step.POST_START),
    ],
)
def test_hooks_come_before_it_counts_as_running(
    desired: str, state: str, hooks: int, observed: Observed, step: Step
) -> None:
    status = TaskStatus(state=TaskState[state], pid=7, addresses=ON_DEFAULT, hooks=hooks)
    order = task(desired=TaskState[desired], spec=HOOKED)
    assert next_step(order, status, observed) is step


@pytest.mark.parametrize(
    ("done", "grace", "due"), [(0, 0.0, ""), (1, 0.0, ""), (2, 0.0, "cd"), (3, 0.0, "d"),
                               (4, 0.0, ""), (2, -1.0, ""), (2, 5.0, "cd")],
)  # fmt: skip
def test_hooks_that_are_due_before_a_stop(done: int, grace: float, due: str) -> None:
    order = replace(task(spec=HOOKED), stop_grace=grace)
    hooks = due_pre_stop(order, TaskStatus(state=TaskState.RUNNING, hooks=done))
    assert "".join(hook.command[0] for hook in hooks) == due


@pytest.mark.parametrize(
    ("grace", "used", "left"), [(10, 0, 10), (10, 4, 6), (10, 9, 2), (10, 30, 2), (1, 0.5, 1)]
)
def test_hooks_take_from_the_grace_period(grace: float, used: float, left: float) -> None:
    order = task(spec=TaskSpec(ContainerSpec(stop_grace=grace)))
    assert grace_left(order, used) == left


def test_a_container_that_was_started_again_is_recorded_again() -> None:
    status = TaskStatus(state=TaskState.RUNNING, pid=6)
    assert next_step(task(), status, Observed(RUNS)) is Step.RECORD_RUNNING


BACK = NetworkAttachment("back")


@pytest.mark.parametrize(
    ("networks", "observed", "step"),
    [
        # it came to be on another network than when it was started
        ((NetworkAttachment("default"), BACK), Observed(RUNS), Step.CONNECT),
        ((BACK,), Observed(RUNS), Step.CONNECT),
        ((NetworkAttachment("default", ip=("10.128.0.9",)),), Observed(RUNS), Step.CONNECT),
        ((NetworkAttachment("none"),), Observed(RUNS), Step.CONNECT),
        # what cannot be is not tried again and again
        ((BACK,), Observed(RUNS, unconnected=(BACK,)), Step.WATCH),
        ((BACK,), Observed(RUNS, unconnected=(NetworkAttachment("front"),)), Step.CONNECT),
        ((NetworkAttachment("default", aliases=("db",)),), Observed(RUNS), Step.WATCH),
    ],
)
def test_a_running_container_is_connected_to_the_networks_of_its_order(
    networks: tuple[NetworkAttachment, ...], observed: Observed, step: Step
) -> None:
    status = TaskStatus(state=TaskState.RUNNING, pid=7, addresses=ON_DEFAULT)
    assert next_step(task(spec=TaskSpec(networks=networks)), status, observed) is step


ENDS = [
    # desired, recorded state, container, state, message
    ("RUNNING", "RUNNING", Exit(0, False, 5), "COMPLETE", ""),
    ("RUNNING", "RUNNING", Exit(3, False, 5), "FAILED", "exit status 3"),
    ("RUNNING", "RUNNING", Exit(137, False, 5), "FAILED", "killed by signal 9 (SIGKILL)"),
    ("RUNNING", "RUNNING", Exit(137, True, 5), "FAILED", "out of memory"),
    ("RUNNING", "RUNNING", Exit(0, True, 5), "FAILED", "out of memory"),
    ("RUNNING", "RUNNING", Exit(-1, False, 5), "FAILED", "ended; its exit status was not observed"),
    ("RUNNING", "RUNNING", Exit(-1, False, 5, "its monitor died"), "FAILED", "its monitor died"),
    ("RUNNING", "RUNNING", None, "FAILED", "lost during a restart of the node"),
    ("SHUTDOWN", "RUNNING", Exit(143, False, 5), "SHUTDOWN", ""),
    ("SHUTDOWN", "RUNNING", Exit(0, False, 5), "SHUTDOWN", ""),
    ("SHUTDOWN", "PREPARING", None, "SHUTDOWN", "stopped before it started"),
    ("REMOVE", "RUNNING", None, "SHUTDOWN", "stopped; its exit status was not observed"),
]


@pytest.mark.parametrize(("desired", "state", "container", "ended", "message"), ENDS)
def test_final_status_of_a_stopped_task(
    desired: str, state: str, container: Exit | None, ended: str, message: str
) -> None:
    before = TaskStatus(state=TaskState[state], pid=7, started_at=2, addresses={"orc": "10.1.0.2"})
    order = task(desired=TaskState[desired])
    after = final_status(order, before, Observed(container), NOW)
    assert after.state is TaskState[ended]
    assert after.message == message
    assert after.state in TERMINAL
    assert after.started_at == 2
    assert after.pid == 0
    assert after.addresses == {}
    if container is not None:
        assert (after.exit_code, after.finished_at) == (container.code, 5)


@pytest.mark.parametrize(
    ("desired", "state", "ended"),
    [
        ("RUNNING", "ACCEPTED", "REJECTED"),
        ("RUNNING", "PREPARING", "REJECTED"),
        ("RUNNING", "READY", "FAILED"),
        ("RUNNING", "STARTING", "FAILED"),
        ("RUNNING", "RUNNING", "FAILED"),
        ("SHUTDOWN", "PREPARING", "SHUTDOWN"),
        ("REMOVE", "RUNNING", "SHUTDOWN"),
    ],
)
def test_how_far_it_got_decides_between_rejected_and_failed(
    desired: str, state: str, ended: str
) -> None:
    order = task(desired=TaskState[desired])
    status = failed_status(order, TaskStatus(state=TaskState[state]), "no such image", NOW)
    assert (status.state, status.message) == (TaskState[ended], "no such image")


def test_the_reason_of_an_oom_kill_names_the_limit() -> None:
    assert exit_reason(Exit(137, True, 0), 64 << 20) == "out of memory (limit 64MiB)"
    assert exit_reason(Exit(200, False, 0), 0) == "exit status 200"
