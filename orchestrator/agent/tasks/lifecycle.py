"""What an agent does next for one task: a pure function of the order, what was recorded and what
is there.

The runner (`runner.py`) asks `next_step`, does that one step, and asks again. So every way
through a task's life, a crash between any two steps included, is a row of a table in the tests.

Two rules are worth their words:

- What may have run is never run again on the agent's own decision: the work may have moved
  meanwhile. STARTING is recorded before the process is started, so a task that is recorded as
  STARTING or later and of which nothing is found has failed, and the manager replaces it. The
  exception is a reboot of the host: then nothing can run twice here, and what ran starts again.
- What never ran waits, after a restart of the agent, until a manager has confirmed it.

A standalone container never moves, so it may be started again where it is certain that it was not
started; and it may run again: RELEASE keeps its writable layer, RENEW begins the next run that the
order asks for, and DISCARD takes the rest away at last. A reboot starts it again if its restart
policy says so.
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
"""Restart policies by which a container starts again after a reboot, as Docker has it."""

_SIGNALLED = 128
"""A shell's convention: exit status 128 + n means "ended by signal n"."""

_LEAST_GRACE = 2.0
"""Seconds from the stop signal to SIGKILL after hooks, unless the grace period is shorter."""

_NOT_SEEN = 255
"""Exit status of what may have run and whose end nobody saw, as Docker has it."""


class Step(Enum):
    """One act of the runner."""

    ADOPT = auto()
    """Find out what an earlier agent left of it."""
    PREPARE = auto()
    """Make image and network ready."""
    START = auto()
    """Create the container and start its process."""
    POST_START = auto()
    """Run the `post_start` hooks that have not succeeded yet."""
    RUN = auto()
    """Record that it runs."""
    CONNECT = auto()
    """Put it on the networks that the order says now, and take it off others."""
    RESIZE = auto()
    """Enforce the limits that the order says."""
    REFRESH = auto()
    """Replace files of secrets and configs that it has in another version than the order says."""
    WATCH = auto()
    """Wait until it ends or the order changes."""
    STOP = auto()
    """`pre_stop` hooks, stop signal, grace period, SIGKILL."""
    SETTLE = auto()
    """Record how it ended; `settle` says how."""
    RELEASE = auto()
    """Remove the container and give its network back; of a standalone one its files stay."""
    RENEW = auto()
    """Begin the next run of a standalone container."""
    DISCARD = auto()
    """Remove the files of a standalone container."""
    REST = auto()
    """Nothing until the order changes."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What the runner knows of a task's container, beside the recorded status."""

    container: Started | Exit | None = None
    """The last that was seen of it; None: there is none, or it was not started."""
    looked: bool = True
    """Whether what an earlier agent may have left was looked for."""
    prepared: bool = False
    """Image and network are ready."""
    released: bool = False
    """Container and network are gone."""
    discarded: bool = False
    """The files of a standalone container are gone too."""
    rebooted: bool = False
    """It ran in an earlier boot of the host, so nothing of it can run now."""
    unconnected: tuple[NetworkAttachment, ...] | None = None
    """The networks that it was to be on when that failed."""
    stale: bool = False
    """It has secrets or configs in another version than the newest order says."""
    resize: bool = False
    """Its limits are not known to be those of the newest order."""
    hook_failure: str = ""
    """Which lifecycle hook failed, and how: one of `post_start` ends the run."""
    confirmed: bool = True
    """A manager assigned it to this agent's process; not only to one before."""


def begin(
    task: Task, recorded: TaskStatus | None, *, released: bool, rebooted: bool, now: float
) -> tuple[TaskStatus, Observed]:
    """What an agent knows of a task when it first hears of it, or finds it on record: its status,
    and what of it is there. `released` and `rebooted` are about what is on record."""
    if recorded is not None:
        rebooted = rebooted and recorded.state >= TaskState.STARTING
        return recorded, Observed(
            looked=False, released=released, rebooted=rebooted, confirmed=False
        )
    known: TaskStatus = task.status
    if known.state > TaskState.ACCEPTED:
        # The manager remembers more of it than this node, whose state file was lost: what has
        # ended stays ended, and what may run is looked for, not started twice.
        return known, Observed(looked=False)
    return TaskStatus(state=TaskState.ACCEPTED, at=now, run=known.run), Observed()


def sense(task: Task) -> tuple[object, ...]:
    """What of an order the steps depend on."""
    ending = task.stop_signal, task.stop_grace
    return task.desired_state, task.run, given_run(task), ending, task.spec.networks


def given_run(task: Task) -> int:
    """The newest run that the manager has given to the node; 0: none yet. It may be behind the
    one that is wanted, which is only given when this one has ended."""
    return task.status.run if task.status.state >= TaskState.ASSIGNED else 0


def keeps(task: Task) -> bool:
    """Whether the container's files outlive its run."""
    return task.standalone and task.desired_state is not TaskState.REMOVE


def grace_of(task: Task) -> float:
    """Seconds from the beginning of a stop to SIGKILL: the order's, else the spec's."""
    return max(task.stop_grace, 0.0) if task.stop_grace else task.spec.container.stop_grace


def next_step(task: Task, status: TaskStatus, observed: Observed) -> Step:
    """The next step for `task`, whose newest recorded status is `status`."""
    if is_terminal(status.state):
        return _after_end(task, status, observed)
    if not observed.looked:
        return Step.ADOPT
    wanted = not to_end(task, status)
    if isinstance(observed.container, Exit):
        return Step.SETTLE
    if isinstance(observed.container, Started):
        if not wanted or sick(task, status) or observed.hook_failure:
            return Step.STOP
        if post_start(task, status):
            return Step.POST_START
        recorded = status.state is TaskState.RUNNING and status.pid == observed.container.pid
        if not recorded:
            return Step.RUN
        if observed.unconnected != task.spec.networks and not is_connected(
            task.spec.attachments, task.slot, status
        ):
            return Step.CONNECT
        if observed.resize:
            return Step.RESIZE
        return Step.REFRESH if observed.stale else Step.WATCH
    if not wanted or _lost(task, status, observed):
        return Step.SETTLE
    if not observed.confirmed and not observed.rebooted:
        return Step.REST
    if task.standalone and task.status.state < TaskState.ASSIGNED:
        return Step.REST
    if not observed.prepared:
        return Step.PREPARE
    return Step.START if task.desired_state is TaskState.RUNNING else Step.REST


def _after_end(task: Task, status: TaskStatus, observed: Observed) -> Step:
    if not observed.released:
        return Step.RELEASE
    # The manager's own word: the next run has its node's room, and its delay is over. It is begun
    # also when it is to end at once, so that its end is told.
    if given_run(task) > status.run:
        return Step.RENEW
    if task.standalone and task.desired_state is TaskState.REMOVE and not observed.discarded:
        return Step.DISCARD
    return Step.REST


def to_end(task: Task, status: TaskStatus) -> bool:
    """Whether the run that `status` is about is ordered to end."""
    return task.desired_state > TaskState.RUNNING or task.run > status.run


def post_start(task: Task, status: TaskStatus) -> tuple[Hook, ...]:
    """The hooks to run before it counts as running."""
    return task.spec.container.post_start[status.hooks :]


def pre_stop(task: Task, status: TaskStatus) -> tuple[Hook, ...]:
    """The hooks to run before it is stopped: none if it never came to run, or gets no time."""
    spec = task.spec.container
    started = status.hooks - len(spec.post_start)
    return spec.pre_stop[started:] if started >= 0 and grace_of(task) > 0 else ()


def grace_left(task: Task, used: float) -> float:
    """Seconds from the stop signal to SIGKILL when `pre_stop` hooks took `used` seconds of the
    grace period: the rest of it, but at least a short minimum, as in Kubernetes."""
    grace = grace_of(task)
    return max(grace - used, min(grace, _LEAST_GRACE))


def _lost(task: Task, status: TaskStatus, observed: Observed) -> bool:
    """Whether it may have run, and nobody knows what became of it."""
    if status.state < TaskState.STARTING:
        return False
    if not task.standalone:
        return not observed.rebooted
    if observed.rebooted:
        return task.spec.restart.condition not in _OVER_REBOOT
    return status.state > TaskState.STARTING


def sick(task: Task, status: TaskStatus) -> bool:
    """Whether its bad health ends it. One of a service is replaced; a container of its own goes
    on, as in Docker: that it is unhealthy is for its user to see."""
    return status.health is Health.UNHEALTHY and not task.standalone


def runs(status: TaskStatus, started: Started, probed: bool, now: float) -> TaskStatus:
    """The status of a task whose container was seen to run; `probed`: its health is seen to."""
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


def settle(task: Task, status: TaskStatus, observed: Observed, now: float) -> TaskStatus:
    """The last status of a task that has ended (`Exit`), was stopped before it started, or was
    lost over a restart of the agent."""
    ordered = to_end(task, status)
    end = observed.container
    if isinstance(end, Exit):
        if ordered:
            state, message = TaskState.SHUTDOWN, observed.hook_failure
        elif sick(task, status):
            state, message = TaskState.FAILED, f"unhealthy: {status.health_output}"
        elif observed.hook_failure:
            state, message = TaskState.FAILED, observed.hook_failure
        elif end.code == 0 and not end.oom_killed:
            state, message = TaskState.COMPLETE, ""
        else:
            state, message = TaskState.FAILED, explain(end, task.spec.limit.memory)
        return replace(
            _ended(status, state, message, now),
            exit_code=end.code,
            oom_killed=end.oom_killed,
            finished_at=end.finished_at,
        )
    if ordered:
        state, message = TaskState.SHUTDOWN, "stopped before it started"
        if status.state >= TaskState.STARTING:
            message = "stopped; how it ended was not seen"
    else:
        state, message = TaskState.FAILED, "lost over a restart of the node"
    code = _NOT_SEEN if status.state >= TaskState.STARTING else 0
    return replace(_ended(status, state, message, now), exit_code=code, lost=not ordered)


def fail(task: Task, status: TaskStatus, reason: str, now: float, exit_code: int = 0) -> TaskStatus:
    """The last status of a task with which a step went wrong. How far it got decides: before it
    was ready the node *rejects* it, later it *failed*; if it was to stop anyway, it has.
    `exit_code` is what tells of a program that cannot be run."""
    if to_end(task, status):
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


def explain(end: Exit, memory_limit: int) -> str:
    """Why a container that was not told to stop has ended, in one line. `memory_limit` in bytes,
    0 for none."""
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
        return "ended; its exit status was not seen"
    return f"exit status {end.code}"
