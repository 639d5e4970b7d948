"""Jobs, their runs and their tasks as rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from orchestrator.cli.output import Column, Row, column, jsonable, moment, short, word
from orchestrator.cli.rows import task_columns, task_row
from orchestrator.model.convert import from_proto
from orchestrator.model.services import JobRun, Service
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
        "mode": word(spec.mode),
        "image": spec.task.container.image,
        "state": word(newest.state) if newest else "waiting",
        "completed": message.completed,
        "completions": message.completions,
        "running": message.running,
        "run": newest.number if newest else None,
        "started_at": moment(newest.started_at) if newest else None,
        "finished_at": moment(newest.finished_at) if newest else None,
        "error": newest.message if newest else "",
        "schedule": spec.job.schedule,
        "time_zone": spec.job.time_zone,
        "suspended": spec.job.suspended,
        "next_run_at": moment(at),
        "skipped": job.job.skipped,
        "labels": spec.labels,
        "created_at": moment(job.created_at),
        "_state": _state(newest, now),
        "_next": next_run_text(job, now),
    }


def _state(run: JobRun | None, now: float) -> str:
    if run is None:
        return "Waiting"
    at = run.finished_at or run.started_at
    error = f": {run.message}" if run.message else ""
    return f"{word(run.state).capitalize()} {format_ago(at, now)}{error}"


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
    """When the schedule begins the next run, seconds since the epoch; 0: never."""
    spec = job.spec.job
    if not spec.schedule or spec.suspended:
        return 0.0
    from orchestrator.model.cron import next_firing, parse_schedule, parse_zone

    zone = parse_zone(spec.time_zone)
    return next_firing(parse_schedule(spec.schedule), zone, job.job.decided_until)


def next_run_text(job: Service, now: float) -> str:
    """Such as `2026-01-31 02:00 CET`, or `suspended`; empty without a schedule."""
    spec = job.spec.job
    if not spec.schedule:
        return ""
    if spec.suspended:
        return "suspended"
    from orchestrator.model.cron import parse_zone

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
        "next_run_at": moment(next_run(from_proto(message.service))),
    }


def job_fields(message: Any, now: float) -> list[tuple[str, str]]:
    """A job as lines for a reader."""
    job: Service = from_proto(message.service)
    spec = job.spec
    container, restart = spec.task.container, spec.task.restart
    retries = str(restart.max_attempts or "no limit") if restart.condition.name != "NONE" else "0"
    return [
        ("ID", job.id),
        ("Name", spec.name),
        ("Mode", word(spec.mode)),
        ("Completed", f"{message.completed} of {message.completions}"),
        ("At a time", str(spec.job.parallelism or "all")),
        ("Retries", f"{retries}, delay {format_duration(restart.delay)}"),
        ("Deadline", format_duration(spec.job.deadline) if spec.job.deadline else ""),
        ("Image", container.image),
        ("Command", " ".join((*container.entrypoint, *container.command))),
        ("Schedule", spec.job.schedule),
        ("Time zone", spec.job.time_zone or ("UTC" if spec.job.schedule else "")),
        ("Overlap", word(spec.job.overlap) if spec.job.schedule else ""),
        ("Missed", word(spec.job.missed) if spec.job.schedule else ""),
        ("Next run", next_run_text(job, now)),
        ("Left out", f"{job.job.skipped}; {job.job.message}" if job.job.skipped else ""),
        *((f"Run {run.number}", _state(run, now)) for run in job.job.runs),
    ]
