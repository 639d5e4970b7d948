# SPDX-License-Identifier: Apache-2.0
"""Jobs and their runs: rows, and waiting until a run has ended."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import click

from orchestrator.cli.app.errors import INTERRUPTED, CliError, NotConverged, StillRunning
from orchestrator.cli.output.listings import (
    Column,
    Row,
    column,
    enum_word,
    jsonable,
    rfc3339,
    short,
)
from orchestrator.cli.output.screen import is_live
from orchestrator.cli.rpc.client import Client
from orchestrator.cli.service.convergence import progress_view, watch_progress
from orchestrator.cli.service.progress_text import reasons
from orchestrator.cli.service.service_rows import task_columns, task_row
from orchestrator.model.convert import from_proto
from orchestrator.model.services import JobRun, JobState, Service
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task
from orchestrator.model.units import format_ago, format_duration


def job_row(message: Any, now: float) -> Row:
    """From the ServiceRow of a job."""
    job: Service = from_proto(message.service)
    spec, runs = job.spec, job.job.runs
    newest = runs[0] if runs else None
    at = next_run(job)
    return {
        "id": job.id,
        "name": spec.name,
        "mode": enum_word(spec.mode),
        "image": spec.task.container.image,
        "state": enum_word(newest.state) if newest else "waiting",
        "completed": message.completed,
        "completions": message.completions,
        "running": message.running,
        "run": newest.number if newest else None,
        "started_at": rfc3339(newest.started_at) if newest else None,
        "finished_at": rfc3339(newest.finished_at) if newest else None,
        "error": newest.message if newest else "",
        "schedule": spec.job.schedule,
        "time_zone": spec.job.time_zone,
        "suspended": spec.job.suspended,
        "next_run_at": rfc3339(at),
        "skipped": job.job.skipped,
        "labels": spec.labels,
        "created_at": rfc3339(job.created_at),
        "_state": _state(newest, now),
        "_next": next_run_text(job, now),
    }


def _state(run: JobRun | None, now: float) -> str:
    if run is None:
        return "Waiting"
    at = run.finished_at or run.started_at
    error = f": {run.message}" if run.message else ""
    return f"{enum_word(run.state).capitalize()} {format_ago(at, now)}{error}"


def job_columns(whole: bool) -> list[Column]:
    return [
        short("ID", "id", whole),
        column("NAME", "name"),
        Column("RUN", lambda row: str(row["run"] or "")),
        Column("COMPLETED", lambda row: f"{row['completed']}/{row['completions']}"),
        column("RUNNING", "running"),
        column("IMAGE", "image"),
        column("SCHEDULE", "schedule"),
        Column("NEXT RUN", lambda row: row["_next"]),
        Column("STATE", lambda row: row["_state"]),
    ]


def next_run(job: Service) -> float:
    """Unix time of the next scheduled run; 0: never."""
    spec = job.spec.job
    if not spec.schedule or spec.suspended:
        return 0.0
    from orchestrator.model.formats.schedules import next_firing, parse_schedule, parse_zone

    zone = parse_zone(spec.time_zone)
    return next_firing(parse_schedule(spec.schedule), zone, job.job.decided_until)


def next_run_text(job: Service, now: float) -> str:
    """Such as `2026-01-31 02:00 CET`, or `suspended`; empty without a schedule."""
    spec = job.spec.job
    if not spec.schedule:
        return ""
    if spec.suspended:
        return "suspended"
    from orchestrator.model.formats.schedules import parse_zone

    at = datetime.fromtimestamp(max(next_run(job), now), parse_zone(spec.time_zone))
    return at.strftime("%Y-%m-%d %H:%M %Z")


def job_task_rows(messages: Iterable[Any], hostnames: Mapping[str, str], now: float) -> list[Row]:
    """From the tasks of a ListTasksReply: the newest run first, then by index, the newest of an
    index first."""
    tasks: list[Task] = [from_proto(message) for message in messages]
    tasks.sort(key=lambda task: (task.service_name, -task.job_run, task.slot, -task.created_at))
    rows, before = [], None
    for task in tasks:
        key = (task.service_id, task.job_run, task.slot)
        row = task_row(task, hostnames)
        rows.append({**row, "run": task.job_run, "_old": key == before, "_now": now})
        before = key
    return rows


def job_task_columns(whole: bool) -> list[Column]:
    columns = task_columns(whole)
    return [*columns[:2], column("RUN", "run"), *columns[2:]]


def job_document(message: Any) -> Row:
    """A job in full."""
    document: Row = jsonable(from_proto(message.service))
    return {
        **document,
        "name": document["spec"]["name"],
        "completed": message.completed,
        "completions": message.completions,
        "running": message.running,
        "next_run_at": rfc3339(next_run(from_proto(message.service))),
    }


def job_fields(message: Any, now: float) -> list[tuple[str, str]]:
    """A job in the table form."""
    job: Service = from_proto(message.service)
    spec = job.spec
    container, restart = spec.task.container, spec.task.restart
    retries = str(restart.max_attempts or "no limit") if restart.condition.name != "NONE" else "0"
    return [
        ("ID", job.id),
        ("Name", spec.name),
        ("Mode", enum_word(spec.mode)),
        ("Completed", f"{message.completed} of {message.completions}"),
        ("Parallelism", str(spec.job.parallelism or "all")),
        ("Retries", f"{retries}, delay {format_duration(restart.delay)}"),
        ("Deadline", format_duration(spec.job.deadline) if spec.job.deadline else ""),
        ("Image", container.image),
        ("Command", " ".join((*container.entrypoint, *container.command))),
        ("Schedule", spec.job.schedule),
        ("Time zone", spec.job.time_zone or ("UTC" if spec.job.schedule else "")),
        ("Overlap", enum_word(spec.job.overlap) if spec.job.schedule else ""),
        ("Missed", enum_word(spec.job.missed) if spec.job.schedule else ""),
        ("Next run", next_run_text(job, now)),
        ("Left out", f"{job.job.skipped}; {job.job.message}" if job.job.skipped else ""),
        *((f"Run {run.number}", _state(run, now)) for run in job.job.runs),
    ]


def until_done(client: Client, written: Any, timeout: float | None, quiet: bool = False) -> None:
    """Show the run that our request started, unless `quiet`, until it has ended.

    `written` is the job as we wrote it. Raises NotConverged when the run failed, after printing the
    last log lines of the failed task; CliError when it was stopped; StillRunning after `timeout`
    seconds (None: no limit). Ctrl-C detaches with a message. Returns at once without a current
    run.
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
            for picture in watch_progress(client, name, deadline):
                if picture.removed:
                    raise CliError(f"job '{name}' was removed")
                run = _run(picture, number)
                if picture.service.revision < written.revision:
                    continue
                if run is None:
                    raise CliError(
                        f"run {number} of job '{name}' is no longer kept; see 'orc job ls'"
                    )
                last = picture
                view.show(picture, _shown(picture, number), picture.hostnames)
                if run.state is not JobState.RUNNING:
                    ended = run
                    break
    except KeyboardInterrupt:
        click.echo(f"orc: detached; job '{name}' continues in the background, "
            f"see 'orc job ps {name}'",
                   err=True)  # fmt: skip
        sys.exit(INTERRUPTED)
    except TimeoutError:
        raise StillRunning(_timeout_text(name, last, timeout or 0.0)) from None
    if last is None or ended is None:
        return
    if ended.state is JobState.FAILED and (task := _failed_task(last, number)) is not None:
        from orchestrator.cli.service.convergence import show_last_lines

        show_last_lines(client, task, last.hostnames)
    _report(name, ended, last, quiet)


def _run(picture: Any, number: int) -> JobRun | None:
    job: Service = from_proto(picture.service)
    return next((run for run in job.job.runs if run.number == number), None)


def _failed_task(picture: Any, number: int) -> Task | None:
    """The task that failed the run: the newest of the lowest index that failed last."""
    newest: dict[int, Task] = {}
    for task in map(from_proto, picture.tasks):
        if task.job_run == number and task.status.state is not TaskState.COMPLETE:
            newest[task.slot] = max(newest.get(task.slot, task), task, key=lambda t: t.created_at)
    failed = [task for task in newest.values() if task.status.failed]
    return min(failed, key=lambda task: task.slot, default=None)


def _shown(picture: Any, number: int) -> list[Task]:
    """The tasks of the run; on a terminal, to save lines, without completed ones."""
    tasks: list[Task] = [task for task in map(from_proto, picture.tasks) if task.job_run == number]
    if not is_live(sys.stderr):
        return tasks
    return [task for task in tasks if task.status.state is not TaskState.COMPLETE]


def _report(name: str, run: JobRun, picture: Any, quiet: bool) -> None:
    """Print the result of a run. Raises NotConverged if it failed, CliError if it was stopped."""
    if run.state is JobState.FAILED:
        raise NotConverged(f"job '{name}' failed: {run.message}; see 'orc job logs {name}'")
    if run.state is JobState.STOPPED:
        raise CliError(f"run {run.number} of job '{name}' was stopped: {run.message}")
    if not quiet:
        took = format_duration(round(run.finished_at - run.started_at, 1))
        count = f"{picture.completed} of {picture.completions} completed"
        click.echo(f"{name}: {count} in {took}", err=True)


def _timeout_text(name: str, picture: Any, timeout: float) -> str:
    done = f"{picture.completed} of {picture.completions} completed" if picture else ""
    why = "; ".join(filter(None, (done, reasons(picture) if picture else "no manager answered")))
    return (
        f"job '{name}' has not ended in {format_duration(timeout)}: {why}; it continues in the "
        f"background, see 'orc job ps {name}'"
    )
