# SPDX-License-Identifier: Apache-2.0
"""The lifecycle of a task on its node: which step comes next, and how a task ends. Pure.

The runner (`runner`) performs the step that `next_step` returns, and repeats. So every path through
a task's life, including a crash between any two steps, is a row of a table in the tests.

    state      entered by                                       left by
    ACCEPTED   the worker, which has recorded the assignment    PREPARE
    PREPARING  PREPARE: image, volumes, secrets, network        PREPARE
    READY      PREPARE, when all of these are there             START, if RUNNING is desired
    STARTING   START, on disk before the process starts         POST_START, RECORD_RUNNING
    RUNNING    RECORD_RUNNING: the process is running           STOP or its own end, RECORD_END
    REJECTED   a step that failed before READY                  RELEASE
    COMPLETE, FAILED, SHUTDOWN
               RECORD_END (`final_status`), or a failed step    RELEASE; then NEXT_RUN or DISCARD
                                                                of a standalone container

The manager owns the states before ACCEPTED, and ORPHANED. While a container runs, CONNECT, RESIZE
and REFRESH make it follow a changed order; WATCH waits for its end or the next change.

Two rules:

- A task that may have run is never started again on the agent's own decision: the work may have
  moved meanwhile. STARTING is recorded before the process is started, so a task that is recorded as
  STARTING or later and has no container has failed, and the manager replaces it. The exception is a
  reboot of the host: nothing of it can still run, so the task is started again.
- A task that never ran waits, after a restart of the agent, until a manager has confirmed it.

A standalone container never moves, so it may be started again where it certainly was not started.
It may also have several runs: RELEASE keeps its writable layer, NEXT_RUN begins the next run of the
order, and DISCARD finally removes the rest. A reboot starts it again if its restart policy requires
it.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace
from enum import Enum, auto

from orchestrator.agent.runtime.interface import Exit, Started
from orchestrator.model.hooks import Hook
from orchestrator.model.networks import is_connected
from orchestrator.model.specs import NetworkAttachment, RestartCondition
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.tasks import Health, Task, TaskStatus
from orchestrator.model.units import format_memory

_OVER_REBOOT = (RestartCondition.ANY, RestartCondition.UNLESS_STOPPED)
"""Restart policies by which a container starts again after a reboot, as in Docker."""

_SIGNALLED = 128
"""A shell's convention: exit status 128 + n means "ended by signal n"."""

_LEAST_GRACE = 2.0
"""Seconds from the stop signal to SIGKILL after hooks, unless the grace period is shorter."""

_NOT_OBSERVED = 255
"""Exit status of a container that may have run and whose end was not observed, as in Docker."""


class Step(Enum):
    """One step of the runner, in the order of a task's life."""

    ADOPT = auto()
    """Look for a container that an earlier agent left."""
    PREPARE = auto()
    """Fetch the image, mount volumes, place secrets, connect the network."""
    START = auto()
    """Create the container and start its process."""
    POST_START = auto()
    """Run the `post_start` hooks that have not succeeded yet."""
    RECORD_RUNNING = auto()
    """Record that it runs."""
    CONNECT = auto()
    """Connect it to the networks of the newest order, and disconnect it from others."""
    RESIZE = auto()
    """Enforce the limits of the newest order."""
    REFRESH = auto()
    """Replace secrets and configs that differ from the newest order."""
    WATCH = auto()
    """Wait until it ends or the order changes."""
    STOP = auto()
    """Run `pre_stop` hooks, send the stop signal, wait for the grace period, send SIGKILL."""
    RECORD_END = auto()
    """Record how it ended (`final_status`)."""
    RELEASE = auto()
    """Remove the container and release its network; a standalone one keeps its files."""
    NEXT_RUN = auto()
    """Begin the next run of a standalone container."""
    DISCARD = auto()
    """Remove the files of a standalone container."""
    IDLE = auto()
    """Wait for a change of the order."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What the runner has observed of a task's container, beside the recorded status."""

    container: Started | Exit | None = None
    """Its last observed process; None: there is no container, or it was not started."""
    searched: bool = True
    """Whether a container of an earlier agent was searched for."""
    prepared: bool = False
    """Image and network are ready."""
    released: bool = False
    """Container and network are removed."""
    discarded: bool = False
    """The files of a standalone container are removed too."""
    rebooted: bool = False
    """It ran in an earlier boot of the host, so nothing of it can run now."""
    unconnected: tuple[NetworkAttachment, ...] | None = None
    """The order's networks to which it could not be connected."""
    stale: bool = False
    """Its secrets or configs differ from the newest order."""
    resize: bool = False
    """Its limits differ from the newest order, or are not known."""
    hook_failure: str = ""
    """Which lifecycle hook failed, and how; a failed `post_start` hook ends the run."""
    confirmed: bool = True
    """A manager has assigned it to this process of the agent, not only to an earlier one."""


def initial(
    task: Task, recorded: TaskStatus | None, *, released: bool, rebooted: bool, now: float
) -> tuple[TaskStatus, Observed]:
    """Status and observation of a task that is new, or that an earlier agent recorded. `released`
    and `rebooted` are about the record."""
    if recorded is not None:
        rebooted = rebooted and recorded.state >= TaskState.STARTING
        return recorded, Observed(
            searched=False, released=released, rebooted=rebooted, confirmed=False
        )
    known: TaskStatus = task.status
    if known.state > TaskState.ACCEPTED:
        # This node's state file was lost, but the manager has the status: an ended task stays
        # ended, and one that may run is searched for, not started twice.
        return known, Observed(searched=False)
    return TaskStatus(state=TaskState.ACCEPTED, at=now, run=known.run), Observed()


def decisive_fields(task: Task) -> tuple[object, ...]:
    """The fields of an order that the steps depend on."""
    ending = task.stop_signal, task.stop_grace
    return task.desired_state, task.run, assigned_run(task), ending, task.spec.networks


def assigned_run(task: Task) -> int:
    """The newest run that the manager has assigned to the node; 0: none yet. It may be behind the
    desired one, which is assigned only when this one has ended."""
    return task.status.run if task.status.state >= TaskState.ASSIGNED else 0


def keeps_files(task: Task) -> bool:
    """Whether the container's files outlive its run."""
    return task.standalone and task.desired_state is not TaskState.REMOVE


def grace_period(task: Task) -> float:
    """Seconds from the beginning of a stop to SIGKILL: the order's, else the spec's."""
    return max(task.stop_grace, 0.0) if task.stop_grace else task.spec.container.stop_grace


def next_step(task: Task, status: TaskStatus, observed: Observed) -> Step:
    """The next step for `task`, whose newest recorded status is `status`."""
    if is_terminal(status.state):
        return _after_end(task, status, observed)
    if not observed.searched:
        return Step.ADOPT
    wanted = not must_end(task, status)
    if isinstance(observed.container, Exit):
        return Step.RECORD_END
    if isinstance(observed.container, Started):
        if not wanted or failing_health(task, status) or observed.hook_failure:
            return Step.STOP
        if due_post_start(task, status):
            return Step.POST_START
        recorded = status.state is TaskState.RUNNING and status.pid == observed.container.pid
        if not recorded:
            return Step.RECORD_RUNNING
        if observed.unconnected != task.spec.networks and not is_connected(
            task.spec.attachments, task.slot, status
        ):
            return Step.CONNECT
        if observed.resize:
            return Step.RESIZE
        return Step.REFRESH if observed.stale else Step.WATCH
    if not wanted or _lost(task, status, observed):
        return Step.RECORD_END
    if not observed.confirmed and not observed.rebooted:
        return Step.IDLE
    if task.standalone and task.status.state < TaskState.ASSIGNED:
        return Step.IDLE
    if not observed.prepared:
        return Step.PREPARE
    return Step.START if task.desired_state is TaskState.RUNNING else Step.IDLE


def _after_end(task: Task, status: TaskStatus, observed: Observed) -> Step:
    if not observed.released:
        return Step.RELEASE
    # The manager has assigned it: its node has capacity, and its delay is over. It begins even if
    # it must end immediately, so that its end is reported.
    if assigned_run(task) > status.run:
        return Step.NEXT_RUN
    if task.standalone and task.desired_state is TaskState.REMOVE and not observed.discarded:
        return Step.DISCARD
    return Step.IDLE


def must_end(task: Task, status: TaskStatus) -> bool:
    """Whether the order ends the run that `status` is about."""
    return task.desired_state > TaskState.RUNNING or task.run > status.run


def due_post_start(task: Task, status: TaskStatus) -> tuple[Hook, ...]:
    """The `post_start` hooks that are left to run before it counts as running."""
    return task.spec.container.post_start[status.hooks :]


def due_pre_stop(task: Task, status: TaskStatus) -> tuple[Hook, ...]:
    """The `pre_stop` hooks that are left to run before it is stopped: none if it never ran, or has
    no grace period."""
    spec = task.spec.container
    started = status.hooks - len(spec.post_start)
    return spec.pre_stop[started:] if started >= 0 and grace_period(task) > 0 else ()


def grace_left(task: Task, used: float) -> float:
    """Seconds from the stop signal to SIGKILL when `pre_stop` hooks took `used` seconds of the
    grace period: the rest of it, but at least a short minimum, as in Kubernetes."""
    grace = grace_period(task)
    return max(grace - used, min(grace, _LEAST_GRACE))


def _lost(task: Task, status: TaskStatus, observed: Observed) -> bool:
    """Whether it may have run and its end was not observed."""
    if status.state < TaskState.STARTING:
        return False
    if not task.standalone:
        return not observed.rebooted
    if observed.rebooted:
        return task.spec.restart.condition not in _OVER_REBOOT
    return status.state > TaskState.STARTING


def failing_health(task: Task, status: TaskStatus) -> bool:
    """Whether its health ends it. An unhealthy task of a service is replaced; a standalone
    container continues, as in Docker, and is shown as unhealthy."""
    return status.health is Health.UNHEALTHY and not task.standalone


def running_status(status: TaskStatus, started: Started, probed: bool, now: float) -> TaskStatus:
    """The status of a task whose container is running; `probed`: it has a health check."""
    return replace(
        status,
        state=TaskState.RUNNING,
        at=now,
        message="started again after a reboot of the node" if status.pid else "",
        pid=started.pid,
        started_at=started.started_at,
        health=Health.STARTING if probed else Health.NONE,
        health_output="",
    )


def final_status(task: Task, status: TaskStatus, observed: Observed, now: float) -> TaskStatus:
    """The last status of a task that ended (`Exit`), was stopped before it started, or was lost
    during a restart of the agent."""
    ordered = must_end(task, status)
    end = observed.container
    if isinstance(end, Exit):
        if ordered:
            state, message = TaskState.SHUTDOWN, observed.hook_failure
        elif failing_health(task, status):
            state, message = TaskState.FAILED, f"unhealthy: {status.health_output}"
        elif observed.hook_failure:
            state, message = TaskState.FAILED, observed.hook_failure
        elif end.code == 0 and not end.oom_killed:
            state, message = TaskState.COMPLETE, ""
        else:
            state, message = TaskState.FAILED, exit_reason(end, task.spec.limit.memory)
        return replace(
            _ended(status, state, message, now),
            exit_code=end.code,
            oom_killed=end.oom_killed,
            finished_at=end.finished_at,
        )
    if ordered:
        state, message = TaskState.SHUTDOWN, "stopped before it started"
        if status.state >= TaskState.STARTING:
            message = "stopped; its exit status was not observed"
    else:
        state, message = TaskState.FAILED, "lost during a restart of the node"
    code = _NOT_OBSERVED if status.state >= TaskState.STARTING else 0
    return replace(_ended(status, state, message, now), exit_code=code, lost=not ordered)


def failed_status(
    task: Task, status: TaskStatus, reason: str, now: float, exit_code: int = 0
) -> TaskStatus:
    """The last status of a task of which a step failed: REJECTED before it was ready, FAILED later,
    SHUTDOWN if it had to stop anyway. `exit_code` is that of a program that cannot be run."""
    if must_end(task, status):
        state = TaskState.SHUTDOWN
    elif status.state < TaskState.READY:
        state = TaskState.REJECTED
    else:
        state = TaskState.FAILED
    return replace(_ended(status, state, reason, now), exit_code=exit_code)


def _ended(status: TaskStatus, state: TaskState, message: str, now: float) -> TaskStatus:
    return replace(
        status,
        state=state,
        at=now,
        message=message,
        finished_at=now,
        pid=0,
        addresses={},
        addresses6={},
        paused=False,
    )


def exit_reason(end: Exit, memory_limit: int) -> str:
    """Why a container ended without being stopped, in one line. `memory_limit`: bytes, 0: none."""
    if end.oom_killed:
        limit = f" (limit {format_memory(memory_limit)})" if memory_limit else ""
        return f"out of memory{limit}"
    if end.message:
        return end.message
    if end.code > _SIGNALLED:
        number = end.code - _SIGNALLED
        try:
            return f"killed by signal {number} ({signal.Signals(number).name})"
        except ValueError:
            pass
    if end.code < 0:
        return "ended; its exit status was not observed"
    return f"exit status {end.code}"
