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
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace
from enum import Enum, auto

from orchestrator.agent.runtime.base import Exit, Started
from orchestrator.model.objects import Task, TaskStatus
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.units import format_memory

_SIGNALLED = 128
"""A shell's convention: exit status 128 + n means "ended by signal n"."""


class Step(Enum):
    """One act of the runner."""

    ADOPT = auto()
    """Find out what an earlier agent left of it."""
    PREPARE = auto()
    """Make image and network ready."""
    START = auto()
    """Create the container and start its process."""
    RUN = auto()
    """Record that it runs."""
    WATCH = auto()
    """Wait until it ends or the order changes."""
    STOP = auto()
    """Stop signal, grace, SIGKILL."""
    SETTLE = auto()
    """Record how it ended; `settle` says how."""
    RELEASE = auto()
    """Remove the container and give its network back."""
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
    rebooted: bool = False
    """It ran in an earlier boot of the host, so nothing of it can run now."""
    confirmed: bool = True
    """A manager assigned it to this agent's process; not only to one before."""


def next_step(task: Task, status: TaskStatus, observed: Observed) -> Step:
    """The next step for `task`, whose newest recorded status is `status`."""
    if is_terminal(status.state):
        return Step.REST if observed.released else Step.RELEASE
    if not observed.looked:
        return Step.ADOPT
    wanted = task.desired_state <= TaskState.RUNNING
    if isinstance(observed.container, Exit):
        return Step.SETTLE
    if isinstance(observed.container, Started):
        if not wanted:
            return Step.STOP
        recorded = status.state is TaskState.RUNNING and status.pid == observed.container.pid
        return Step.WATCH if recorded else Step.RUN
    if not wanted or _lost(status, observed):
        return Step.SETTLE
    if not observed.confirmed and not observed.rebooted:
        return Step.REST
    if not observed.prepared:
        return Step.PREPARE
    return Step.START if task.desired_state is TaskState.RUNNING else Step.REST


def _lost(status: TaskStatus, observed: Observed) -> bool:
    return status.state >= TaskState.STARTING and not observed.rebooted


def settle(task: Task, status: TaskStatus, observed: Observed, now: float) -> TaskStatus:
    """The last status of a task that has ended (`Exit`), was stopped before it started, or was
    lost over a restart of the agent."""
    ordered = task.desired_state > TaskState.RUNNING
    end = observed.container
    if isinstance(end, Exit):
        if ordered:
            state, message = TaskState.SHUTDOWN, ""
        elif end.code == 0 and not end.oom_killed:
            state, message = TaskState.COMPLETE, ""
        else:
            state, message = TaskState.FAILED, explain(end, task.spec.limit.memory)
        return replace(
            status,
            state=state,
            at=now,
            message=message,
            exit_code=end.code,
            oom_killed=end.oom_killed,
            finished_at=end.finished_at,
            pid=0,
            addresses={},
        )
    if ordered:
        state, message = TaskState.SHUTDOWN, "stopped before it started"
        if status.state >= TaskState.STARTING:
            message = "stopped; how it ended was not seen"
    else:
        state, message = TaskState.FAILED, "lost over a restart of the node"
    return _ended(status, state, message, now)


def fail(task: Task, status: TaskStatus, reason: str, now: float) -> TaskStatus:
    """The last status of a task with which a step went wrong. How far it got decides: before it
    was ready the node *rejects* it, later it *failed*; if it was to stop anyway, it has."""
    if task.desired_state > TaskState.RUNNING:
        state = TaskState.SHUTDOWN
    elif status.state < TaskState.READY:
        state = TaskState.REJECTED
    else:
        state = TaskState.FAILED
    return _ended(status, state, reason, now)


def _ended(status: TaskStatus, state: TaskState, message: str, now: float) -> TaskStatus:
    return replace(
        status, state=state, at=now, message=message, finished_at=now, pid=0, addresses={}
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
