# SPDX-License-Identifier: Apache-2.0
"""Job schedules: when a run starts, and when one is skipped.

Of all firings since the last decision, only the latest counts: after any downtime of managers, at
most one run is made up for. A firing is *missed* if it is decided more than a minute late.
`decided_until` is stored with the run that it begins, so that no firing counts twice, even after a
change of leader or a clock step. Only when the clock is set back by more than an hour the schedule
begins anew with the time that it shows now, rather than stand still until it has caught up.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from orchestrator.manager.planning.reconcile import job_runs
from orchestrator.manager.planning.slots import Draft
from orchestrator.model.formats.schedules import (
    ScheduleError,
    next_firing,
    parse_schedule,
    parse_zone,
)
from orchestrator.model.jobs import JobSpec, Missed, Overlap
from orchestrator.model.services import Service
from orchestrator.model.units import format_duration

SET_BACK = 3600.0
"""Seconds by which `decided_until` may lie in the future: more, and the clock was set back."""

LATE = 60.0
"""Seconds after which a run that has not begun was missed."""


def begin_due_run(service: Service, draft: Draft) -> Service:
    """The job with the run that is due, if one is; requeues the draft at the next."""
    job, now = service.spec.job, draft.now
    if not job.schedule or job.suspended:
        return service
    if service.job.decided_until > now + SET_BACK:
        service = replace(service, job=replace(service.job, decided_until=now))
    try:
        due = _latest(job, service.job.decided_until, now)
        if due is not None:
            service = _decided(service, due, now)
        draft.requeue_by(_next(job, service.job.decided_until))
    except ScheduleError:  # of a newer version; validation lets none through
        return service
    return service


def _decided(service: Service, due: float, now: float) -> Service:
    job = service.spec.job
    moment = datetime.fromtimestamp(due, parse_zone(job.time_zone)).strftime("%Y-%m-%d %H:%M %Z")
    service = replace(service, job=replace(service.job, decided_until=due))
    under_way = job_runs.active_runs(service)
    if now - due > LATE and job.missed is Missed.SKIP:
        late = format_duration(float(round(now - due)))
        return _skip(service, f"the run due at {moment} was missed by {late}")
    if under_way and job.overlap is Overlap.FORBID:
        reason = f"run {under_way[0].number} was still in progress"
        return _skip(service, f"the run due at {moment} was skipped: {reason}")
    if job.overlap is Overlap.REPLACE:
        service = job_runs.stop_runs(service, now, "replaced by another run")
    return job_runs.begin_run(service, now, due_at=due)


def _skip(service: Service, message: str) -> Service:
    job = replace(service.job, skipped=service.job.skipped + 1, message=message)
    return replace(service, job=job)


def _latest(job: JobSpec, after: float, now: float) -> float | None:
    """The last firing after a moment, and not after now. Looked for backwards, so that a month
    without a manager costs no more than a minute."""
    span = LATE
    while True:
        begin = max(after, now - span)
        found = _next(job, begin)
        if found <= now:
            break
        if begin <= after:
            return None
        span *= 2
    while (later := _next(job, found)) <= now:
        found = later
    return found


def _next(job: JobSpec, after: float) -> float:
    return next_firing(parse_schedule(job.schedule), parse_zone(job.time_zone), after)
