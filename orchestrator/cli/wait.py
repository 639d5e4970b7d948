"""What a user sees until a service has converged.

Progress goes to stderr, so that stdout holds the id alone: on a terminal a line a task that is
redrawn in place, elsewhere a plain line for each change. That tasks cannot be placed is said at
once, and once for each reason; the wait goes on, as room may come.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from typing import Any, Protocol

import click

from orchestrator.cli.client import RECONNECT_PAUSE, Client, ManagerLost
from orchestrator.cli.groups import INTERRUPTED, CliError, NotConverged, RolledBack
from orchestrator.cli.output import word
from orchestrator.cli.rows import health_text, task_error
from orchestrator.cli.screen import is_live
from orchestrator.model.convert import from_proto
from orchestrator.model.services import UpdateState
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.model.units import format_duration
from orchestrator.pb import control_pb2


class _View(Protocol):
    def show(self, progress: Any, tasks: list[Task], hostnames: Mapping[str, str]) -> None: ...


def until_converged(client: Client, written: Any, timeout: float, quiet: bool = False) -> None:
    """Show a service's progress, unless `quiet`, until it has converged.

    `written` is the service as we wrote it: what a manager says of an older one is not the answer.
    Raises NotConverged with the reasons after `timeout` seconds, when failures have paused the
    update, or when what failed is not started again; RolledBack when failures took the update
    back; CliError if the service was removed. Ctrl-C detaches: it says so and exits.
    """
    name, ours = written.spec.name, _Update(written)
    deadline = time.monotonic() + timeout
    last = None
    try:
        with progress_view(quiet) as view:
            for progress in pictures(client, name, deadline):
                last = progress
                if progress.removed:
                    raise CliError(f"service '{name}' was removed meanwhile")
                tasks = [from_proto(task) for task in progress.tasks]
                view.show(progress, tasks, progress.hostnames)
                if ours.ended(progress):
                    break
    except KeyboardInterrupt:
        click.echo(
            f"orc: detached; service '{name}' goes on by itself, see 'orc service ps {name}'",
            err=True,
        )
        sys.exit(INTERRUPTED)
    except TimeoutError:
        raise NotConverged(_reasons(name, last, timeout)) from None
    if not quiet:
        click.echo(f"{name}: {overall(last)}, {_outcome(last)}", err=True)


class _Update:
    """The update that we made, if any, as progress tells of it."""

    def __init__(self, written: Any) -> None:
        self._revision = written.revision
        self._began = UpdateState(written.update.state)

    def ended(self, progress: Any) -> bool:
        """Whether the service has converged. Raises NotConverged or RolledBack."""
        service = progress.service
        if service.revision < self._revision:
            return False
        name, state = service.spec.name, UpdateState(service.update.state)
        begun = self._began in (UpdateState.UPDATING, UpdateState.ROLLING_BACK)
        if begun and state in (UpdateState.PAUSED, UpdateState.ROLLBACK_PAUSED):
            raise NotConverged(
                f"the update of service '{name}' is paused: {service.update.message}; update it "
                f"again, or go back with 'orc service rollback {name}'"
            )
        if progress.given_up:
            raise NotConverged(
                f"service '{name}' does not converge: {overall(progress)}; {reasons(progress)}; "
                "its restart policy tries no more, change what fails with "
                f"'orc service update {name}'"
            )
        if not progress.converged:
            return False
        if self._began is UpdateState.UPDATING and state is UpdateState.ROLLED_BACK:
            raise RolledBack(f"service '{name}' was rolled back: {service.update.message}")
        return True


def _outcome(progress: Any) -> str:
    if progress.service.update.state == UpdateState.CANARY:
        return (
            f"{progress.service.update.message}; "
            f"'orc service promote {progress.service.spec.name}' lets the others follow"
        )
    return "converged"


def pictures(client: Client, name: str, deadline: float) -> Iterator[Any]:
    """Each ServiceProgress until the deadline (TimeoutError), whatever becomes of managers."""
    told = False
    while (left := deadline - time.monotonic()) > 0:
        request = control_pb2.WatchServiceRequest(service=name)
        try:
            bound = left if isfinite(left) else None
            yield from client.stream("WatchService", request, timeout=bound)
        except ManagerLost as lost:
            if not told:
                click.echo(f"{name}: {lost.message}; trying again", err=True)
            told = True
        # A stream that ended, or broke, is opened again: a manager may just be restarting.
        client.close()
        time.sleep(min(RECONNECT_PAUSE, max(0.0, deadline - time.monotonic())))
    raise TimeoutError


def progress_view(quiet: bool) -> AbstractContextManager[_View]:
    if quiet:
        return nullcontext(_NoView())
    if is_live(sys.stderr):
        from orchestrator.cli.live import LiveView

        return LiveView()
    return nullcontext(PlainView())


class _NoView:
    def show(self, progress: Any, tasks: list[Task], hostnames: Mapping[str, str]) -> None:
        """Nothing: the user asked for none."""


PATIENCE = 1.0
"""Seconds on its way before a task's steps are worth a line each."""


class PlainView:
    """One line for each task that runs or has ended, and for each new reason to wait; of a task
    that takes its time, also for each step on its way."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._patient_until: dict[str, float] = {}
        """By task."""
        self._shown: dict[str, str] = {}
        self._reasons: set[str] = set()
        self._first = True

    def show(self, progress: Any, tasks: list[Task], hostnames: Mapping[str, str]) -> None:
        for task in sorted(tasks, key=lambda task: (task.slot, task.created_at)):
            text = task_text(task, hostnames)
            old = self._first and is_terminal(task.status.state)
            until = self._patient_until.setdefault(task.id, self._clock() + PATIENCE)
            if _on_its_way(task.status) and self._clock() < until:
                continue
            if self._shown.get(task.id) != text and not old and not is_waiting(task):
                click.echo(f"{task.name}  {text}", err=True)
            self._shown[task.id] = text
        self._first = False
        update = progress.service.update
        if _goes_back(update) and update.message not in self._reasons:
            self._reasons.add(update.message)
            click.echo(f"{progress.service.spec.name}: {back_text(update)}", err=True)
        for reason, count in waiting_reasons(tasks).items():
            if reason not in self._reasons:
                self._reasons.add(reason)
                click.echo(waiting_text(progress.service.spec.name, reason, count), err=True)


def _on_its_way(status: TaskStatus) -> bool:
    return status.state <= TaskState.RUNNING and not status.works


def task_text(task: Task, hostnames: Mapping[str, str]) -> str:
    """Such as `running on node2` or `failed on node1: exit status 3`."""
    where = hostnames.get(task.node_id, task.node_id)
    error = task_error(task)
    return (
        word(task.status.state)
        + health_text(task)
        + (f" on {where}" if where else "")
        + (f": {error}" if error else "")
    )


def is_waiting(task: Task) -> bool:
    """Whether a task is wanted, and waits for a node with a reason."""
    return (
        task.status.state is TaskState.PENDING
        and bool(task.status.message)
        and task.desired_state <= TaskState.RUNNING
    )


def waiting_reasons(tasks: list[Task]) -> Counter[str]:
    """Why tasks wait for a node → how many of them."""
    return Counter(task.status.message for task in tasks if is_waiting(task))


def waiting_text(name: str, reason: str, count: int) -> str:
    what = "1 task waits" if count == 1 else f"{count} tasks wait"
    return f"{name}: {what}: {reason}"


def _running(progress: Any) -> int:
    return sum(
        task.status.works and task.desired_state <= TaskState.RUNNING
        for task in map(from_proto, progress.tasks)
    )


def overall(progress: Any) -> str:
    """A service in one line; of a job what is done."""
    running = _running(progress)
    if progress.service.job.runs:
        return f"{progress.completed} of {progress.completions} completed, {running} running"
    text = f"{running} of {progress.desired} running"
    update = progress.service.update
    return f"{text}, {back_text(update)}" if _goes_back(update) else text


def _goes_back(update: Any) -> bool:
    return bool(update.state == UpdateState.ROLLING_BACK)


def back_text(update: Any) -> str:
    """Why a service is on its way back."""
    return f"rolling back: {update.message}"


def _reasons(name: str, progress: Any, timeout: float) -> str:
    """Why a service has not converged, as one line."""
    time_text, hint = format_duration(timeout), f"see 'orc service ps {name}'"
    if progress is None:
        return f"service '{name}' has not converged in {time_text}: no manager answered; {hint}"
    why = reasons(progress)
    return (
        f"service '{name}' has not converged in {time_text}: {overall(progress)}"
        f"{'; ' + why if why else ''}; it goes on in the background, {hint}"
    )


def reasons(progress: Any) -> str:
    """Why tasks wait or fail, the most frequent reasons first."""
    tasks = [from_proto(task) for task in progress.tasks]
    wanted = [task for task in tasks if task.desired_state <= TaskState.RUNNING]
    found = Counter(
        f"{word(task.status.state)}: {task_error(task)}" for task in wanted if task_error(task)
    )
    # What failed before the tasks that are being tried now tells why those may not run either.
    if not found:
        found = Counter(
            f"failed: {task_error(task)}" for task in tasks if task.status.state is TaskState.FAILED
        )
    return "; ".join(f"{count} {reason}" for reason, count in found.most_common(3))
