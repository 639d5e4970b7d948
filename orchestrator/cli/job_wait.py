"""What a user sees until a run of a job has ended."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import click

from orchestrator.cli.client import Client
from orchestrator.cli.groups import INTERRUPTED, CliError, NotConverged, StillRunning
from orchestrator.cli.job_rows import next_run_text
from orchestrator.cli.screen import is_live
from orchestrator.cli.wait import pictures, progress_view, reasons
from orchestrator.model.convert import from_proto
from orchestrator.model.services import JobRun, JobState, Service
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task
from orchestrator.model.units import format_duration


def until_done(client: Client, written: Any, timeout: float | None, quiet: bool = False) -> None:
    """Show the run that a write began, unless `quiet`, until it has ended.

    `written` is the job as we wrote it. Raises NotConverged when the run failed, after the last log
    lines of the task that did; CliError when it was stopped; StillRunning when it has not ended
    after `timeout` seconds (None: no limit). Ctrl-C detaches: it says so and exits. With no run
    under way there is nothing to wait for.
    """
    job: Service = from_proto(written)
    name = job.spec.name
    if not job.job.runs or job.job.runs[0].state is not JobState.RUNNING:
        if job.spec.job.schedule and not quiet:
            text = next_run_text(job, time.time())
            click.echo(f"{name}: {text if job.spec.job.suspended else f'runs next at {text}'}",
                       err=True)  # fmt: skip
        return
    number = job.job.runs[0].number
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    last, ended = None, None
    try:
        with progress_view(quiet) as view:
            for picture in pictures(client, name, deadline):
                if picture.removed:
                    raise CliError(f"job '{name}' was removed meanwhile")
                run = _run(picture, number)
                if picture.service.revision < written.revision:
                    continue
                if run is None:
                    raise CliError(f"run {number} of job '{name}' is forgotten; see 'orc job ls'")
                last = picture
                view.show(picture, _shown(picture, number), picture.hostnames)
                if run.state is not JobState.RUNNING:
                    ended = run
                    break
    except KeyboardInterrupt:
        click.echo(f"orc: detached; job '{name}' goes on by itself, see 'orc job ps {name}'",
                   err=True)  # fmt: skip
        sys.exit(INTERRUPTED)
    except TimeoutError:
        raise StillRunning(_late(name, last, timeout or 0.0)) from None
    if last is None or ended is None:
        return
    if ended.state is JobState.FAILED and (task := _culprit(last, number)) is not None:
        from orchestrator.cli.crash import show_last_lines

        show_last_lines(client, task, last.hostnames)
    _tell(name, ended, last, quiet)


def _run(picture: Any, number: int) -> JobRun | None:
    job: Service = from_proto(picture.service)
    return next((run for run in job.job.runs if run.number == number), None)


def _culprit(picture: Any, number: int) -> Task | None:
    """The task for which a run has failed: the newest of the lowest index that failed last."""
    newest: dict[int, Task] = {}
    for task in map(from_proto, picture.tasks):
        if task.job_run == number and task.status.state is not TaskState.COMPLETE:
            newest[task.slot] = max(newest.get(task.slot, task), task, key=lambda t: t.created_at)
    failed = [task for task in newest.values() if task.status.failed]
    return min(failed, key=lambda task: task.slot, default=None)


def _shown(picture: Any, number: int) -> list[Task]:
    """The tasks of the run; on a terminal, which has few lines, not those that are done."""
    tasks: list[Task] = [task for task in map(from_proto, picture.tasks) if task.job_run == number]
    if not is_live(sys.stderr):
        return tasks
    return [task for task in tasks if task.status.state is not TaskState.COMPLETE]


def _tell(name: str, run: JobRun, picture: Any, quiet: bool) -> None:
    """Say how a run has ended. Raises NotConverged if it failed, CliError if it was stopped."""
    if run.state is JobState.FAILED:
        raise NotConverged(f"job '{name}' failed: {run.message}; see 'orc job logs {name}'")
    if run.state is JobState.STOPPED:
        raise CliError(f"run {run.number} of job '{name}' did not end by itself: {run.message}")
    if not quiet:
        took = format_duration(round(run.finished_at - run.started_at, 1))
        count = f"{picture.completed} of {picture.completions} completed"
        click.echo(f"{name}: {count} in {took}", err=True)


def _late(name: str, picture: Any, timeout: float) -> str:
    done = f"{picture.completed} of {picture.completions} completed" if picture else ""
    why = "; ".join(filter(None, (done, reasons(picture) if picture else "no manager answered")))
    return (
        f"job '{name}' has not ended in {format_duration(timeout)}: {why}; it goes on in the "
        f"background, see 'orc job ps {name}'"
    )
