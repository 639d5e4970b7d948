# SPDX-License-Identifier: Apache-2.0
"""Waiting until a service has converged, or until removed ones are gone.

Progress goes to stderr, so that stdout holds the id alone: on a terminal a line per task that is
redrawn in place, elsewhere a plain line for each change. That tasks cannot be placed is printed
immediately, once per reason; the wait goes on, as capacity may become free.

A manager decides whether a service has converged, and how long its tasks have yet to stay up; the
client counts that time down. When a task crashes, its last log lines are shown before the error.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from typing import Any, Protocol

import click

from orchestrator.cli.app.errors import INTERRUPTED, CliError, ManagerLost, NotConverged, RolledBack
from orchestrator.cli.output.screen import is_live
from orchestrator.cli.rpc.client import RECONNECT_PAUSE, Client
from orchestrator.cli.rpc.task_pages import list_tasks
from orchestrator.cli.service.progress_text import (
    _is_rolling_back,
    crash_text,
    is_starting,
    is_waiting,
    overall,
    reasons,
    rollback_text,
    stable_text,
    task_text,
    waiting_reasons,
    waiting_text,
)
from orchestrator.cli.service.service_rows import has_exit_code
from orchestrator.model.convert import from_proto, recognized
from orchestrator.model.services import Service, UpdateState
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.tasks import Task
from orchestrator.model.units import format_duration
from orchestrator.pb import control_pb2


class _View(Protocol):
    def show(self, progress: Any, tasks: list[Task], hostnames: Mapping[str, str]) -> None: ...


def until_converged(
    client: Client,
    written: Any,
    timeout: float,
    quiet: bool = False,
    *,
    monitor: float | None = None,
    changed: bool = True,
) -> None:
    """Show a service's progress, unless `quiet`, until it has converged.

    `written` is the service as we wrote it; progress of an older version is ignored.
    `monitor` is how many seconds tasks without a probe must stay up, if not as the service's update
    policy says. If the service was not `changed` by us, only crashes from now on count.

    Raises NotConverged with the reasons after `timeout` seconds, when a task crashes, when failures
    have paused the update, or when failed tasks are not restarted; RolledBack when failures caused
    a rollback; CliError if the service was removed. Ctrl-C detaches with a message.
    """
    name, ours = written.spec.name, _Update(written, monitor)
    deadline = time.monotonic() + timeout
    request = control_pb2.WatchServiceRequest(
        service=name, since=written.revision if changed else 0, monitor=monitor
    )
    last = None
    try:
        with progress_view(quiet) as view:
            for progress in watch_progress(client, name, deadline, request):
                if progress.removed:
                    raise CliError(f"service '{name}' was removed")
                last = progress
                tasks = [from_proto(task) for task in progress.tasks]
                view.show(progress, tasks, progress.hostnames)
                if ours.ended(progress):
                    break
    except KeyboardInterrupt:
        click.echo(
            f"orc: detached; service '{name}' converges in the background, "
            f"see 'orc service ps {name}'",
            err=True,
        )
        sys.exit(INTERRUPTED)
    except TimeoutError:
        _show_crash(client, ours, last)
        raise NotConverged(_reasons(name, last, timeout)) from None
    except (NotConverged, RolledBack):
        _show_crash(client, ours, last)
        raise
    if not quiet:
        click.echo(f"{name}: {overall(last)}, {_outcome(last)}", err=True)


def _show_crash(client: Client, ours: _Update, progress: Any) -> None:
    """Show the last log lines of a crashed task, if there is one."""
    if progress is not None and (task := ours.crashed(progress)) is not None:
        show_last_lines(client, task, progress.hostnames)


class _Update:
    """Tracks our update, if any, in the progress."""

    def __init__(self, written: Any, monitor: float | None) -> None:
        self._revision = written.revision
        self._version = written.spec_version
        self._began = recognized(UpdateState, written.update.state)
        self._monitor = monitor

    def crashed(self, progress: Any) -> Task | None:
        """The newest crashed task of our version in the lowest slot; also after a rollback."""
        ids = set(progress.crashed)
        tasks: list[Task] = [from_proto(task) for task in progress.tasks]
        found = [task for task in tasks if task.id in ids] or [
            task
            for task in tasks
            if task.status.failed
            and task.spec_version == self._version
            and task.revision > self._revision
            and task.desired_state <= TaskState.RUNNING
        ]
        return min(found, key=lambda task: (task.slot, -task.created_at), default=None)

    def ended(self, progress: Any) -> bool:
        """Whether the service has converged. Raises NotConverged or RolledBack."""
        service = progress.service
        if service.revision < self._revision:
            return False
        name, state = service.spec.name, recognized(UpdateState, service.update.state)
        begun = self._began in (UpdateState.UPDATING, UpdateState.ROLLING_BACK)
        if begun and state in (UpdateState.PAUSED, UpdateState.ROLLBACK_PAUSED):
            raise NotConverged(
                f"the update of service '{name}' is paused: {service.update.message}; update it "
                f"again, or roll back with 'orc service rollback {name}'"
            )
        if progress.failing:
            raise NotConverged(self._failing(progress))
        if progress.given_up:
            raise NotConverged(
                f"service '{name}' does not converge: {overall(progress)}; {reasons(progress)}; "
                "it is not restarted; fix it with "
                f"'orc service update {name}'"
            )
        if not progress.converged:
            return False
        if self._began is UpdateState.UPDATING and state in _ROLLBACK_STATES:
            raise RolledBack(f"service '{name}' was rolled back: {service.update.message}")
        return True

    def _failing(self, progress: Any) -> str:
        """The error of crashed tasks, as one line."""

        service: Service = from_proto(progress.service)
        name, task = service.spec.name, self.crashed(progress)
        monitor = service.policy.monitor if self._monitor is None else self._monitor
        why = crash_text(task, monitor) if task is not None else "tasks crashed"
        slots = {task.slot for task in progress.tasks if task.id in progress.crashed}
        others = f", and {len(slots) - 1} more of {progress.desired}" if len(slots) > 1 else ""
        hint = f"see 'orc service ps {name}' and 'orc service logs {name}'"
        if progress.given_up:
            hint = f"it is not restarted; fix it with 'orc service update {name}'"
        elif task is not None and task.status.state is TaskState.COMPLETE:
            hint = (
                "a service keeps its tasks running; for run-to-completion work use 'orc job run', "
                "or a "
                "restart condition of on-failure"
            )
        return f"service '{name}' has not converged: {why}{others}; {hint}"


_ROLLBACK_STATES = (UpdateState.ROLLING_BACK, UpdateState.ROLLED_BACK)


def _outcome(progress: Any) -> str:
    if progress.service.update.state == UpdateState.CANARY:
        return (
            f"{progress.service.update.message}; "
            f"'orc service promote {progress.service.spec.name}' continues the update"
        )
    return "converged"


def watch_progress(
    client: Client, name: str, deadline: float, request: Any | None = None
) -> Iterator[Any]:
    """Stream ServiceProgress until the deadline (TimeoutError), across failures of managers."""
    reported, failures = False, 0
    request = request or control_pb2.WatchServiceRequest(service=name)
    while (left := deadline - time.monotonic()) > 0:
        try:
            bound = left if isfinite(left) else None
            for progress in client.stream("WatchService", request, timeout=bound):
                failures = 0
                yield progress
        except ManagerLost as lost:
            failures += 1
            if client.has_alternatives and failures == 1:
                continue  # at another manager
            if not reported:
                click.echo(f"{name}: {lost.message}; trying again", err=True)
            reported = True
        # Reopen a stream that ended or broke: a manager may be restarting.
        client.close()
        time.sleep(min(RECONNECT_PAUSE, max(0.0, deadline - time.monotonic())))
    raise TimeoutError


def progress_view(quiet: bool) -> AbstractContextManager[_View]:
    if quiet:
        return nullcontext(_NoView())
    if is_live(sys.stderr):
        from orchestrator.cli.service.live_view import LiveView

        return LiveView()
    return nullcontext(PlainView())


class _NoView:
    def show(self, progress: Any, tasks: list[Task], hostnames: Mapping[str, str]) -> None:
        """Shows nothing."""


STEP_DELAY = 1.0
"""Seconds after which the states of a starting task get a line each."""


_RESTART_SLACK = 0.5
"""Seconds of delay from which a countdown counts as restarted."""


class PlainView:
    """One line per task that runs or has ended, and per new pending reason; for a slow task, also
    per state."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._patient_until: dict[str, float] = {}
        """By task."""
        self._shown: dict[str, str] = {}
        self._reasons: set[str] = set()
        self._first = True
        self._stable_at = 0.0
        """Time at which all tasks should be stable."""

    def show(self, progress: Any, tasks: list[Task], hostnames: Mapping[str, str]) -> None:
        for task in sorted(tasks, key=lambda task: (task.slot, task.created_at)):
            text = task_text(task, hostnames)
            ended = is_terminal(task.status.state)
            old = self._first and ended and task.id not in progress.crashed
            until = self._patient_until.setdefault(task.id, self._clock() + STEP_DELAY)
            if is_starting(task.status) and self._clock() < until:
                continue
            if self._shown.get(task.id) != text and not old and not is_waiting(task):
                click.echo(f"{task.name}  {text}", err=True)
            self._shown[task.id] = text
        self._first = False
        update = progress.service.update
        if _is_rolling_back(update) and update.message not in self._reasons:
            self._reasons.add(update.message)
            click.echo(f"{progress.service.spec.name}: {rollback_text(update)}", err=True)
        for reason, count in waiting_reasons(tasks).items():
            if reason not in self._reasons:
                self._reasons.add(reason)
                click.echo(waiting_text(progress.service.spec.name, reason, count), err=True)
        self._count_down(progress)

    def _count_down(self, progress: Any) -> None:
        """Print how long tasks must stay up; again if the countdown restarts."""
        stable_at = self._clock() + progress.stable_in
        if progress.stable_in and stable_at > self._stable_at + _RESTART_SLACK:
            self._stable_at = stable_at
            name, left = progress.service.spec.name, stable_text(progress.stable_in)
            click.echo(f"{name}: {overall(progress)}, {left}", err=True)


def _reasons(name: str, progress: Any, timeout: float) -> str:
    """Why a service has not converged, as one line."""
    time_text, hint = format_duration(timeout), f"see 'orc service ps {name}'"
    if progress is None:
        return f"service '{name}' has not converged in {time_text}: no manager answered; {hint}"
    why = stable_text(progress.stable_in) if progress.stable_in else reasons(progress)
    return (
        f"service '{name}' has not converged in {time_text}: {overall(progress)}"
        f"{'; ' + why if why else ''}; it continues in the background, {hint}"
    )


CRASH_LOG_LINES = 10
"""Log lines that are shown."""
_TIMEOUT = 10.0
"""Timeout of a node in seconds."""


def show_last_lines(client: Client, task: Task, hostnames: Mapping[str, str]) -> None:
    """Print a task's last log lines on stderr. A task that never ran has none."""
    if not has_exit_code(task):
        return
    lines: list[bytes] = []
    trouble = ""
    request = control_pb2.LogsRequest(service=task.id, tail=CRASH_LOG_LINES)
    try:
        for batch in client.stream("Logs", request, timeout=_TIMEOUT):
            lines += [record.line for record in batch.records if not record.notice]
    except TimeoutError:
        trouble = f"no answer in {format_duration(_TIMEOUT)}"
    except CliError as error:
        trouble = error.format_message()
    where = hostnames.get(task.node_id, task.node_id)
    if lines:
        click.echo(f"{task.name} on {where} logged last:", err=True)
    elif trouble:
        click.echo(f"the log of {task.name} on {where} cannot be read: {trouble}", err=True)
    else:
        click.echo(f"{task.name} on {where} logged nothing", err=True)
    for line in lines[-CRASH_LOG_LINES:]:
        click.echo(f"  {line.decode(errors='replace').rstrip()}", err=True)


STOP_TIMEOUT = 120.0
"""Timeout of stopping tasks in seconds."""
_POLL_INTERVAL = 0.1
"""Seconds between two polls."""
_NOTICE_AFTER = 1.0
"""Seconds after which the wait is explained."""


def until_stopped(client: Client, services: Collection[str], quiet: bool = False) -> None:
    """Wait until no active task of these removed services, by id, is left; progress is printed on
    stderr unless `quiet`. Ctrl-C detaches with a message.

    Raises NotConverged, with the tasks that have not stopped, after `STOP_TIMEOUT`."""
    begun = time.monotonic()
    printed = ""
    try:
        while services and (left := _running_tasks(client, services)):
            waited = time.monotonic() - begun
            if waited > STOP_TIMEOUT:
                raise NotConverged(
                    f"{', '.join(sorted(left))}: not stopped within "
                    f"{format_duration(STOP_TIMEOUT)}; see 'orc node ls'"
                )
            text = f"waiting for {_counted(left.values())} to stop"
            if waited > _NOTICE_AFTER and text != printed and not quiet:
                click.echo(text, err=True)
                printed = text
            time.sleep(_POLL_INTERVAL)
    except KeyboardInterrupt:
        click.echo("orc: detached; the removal continues in the background", err=True)
        sys.exit(INTERRUPTED)


def _counted(services: Collection[str]) -> str:
    """Such as `2 tasks of web and 1 task of db`."""
    return " and ".join(
        f"{count} {'task' if count == 1 else 'tasks'} of {name}"
        for name, count in sorted(Counter(services).items())
    )


def _running_tasks(client: Client, services: Collection[str]) -> dict[str, str]:
    """The active tasks, including pending ones: name → name of the service."""
    tasks = list_tasks(client).tasks
    return {
        f"{task.service_name}.{task.slot}": task.service_name
        for task in tasks
        if task.service_id in services and not is_terminal(recognized(TaskState, task.status.state))
    }
