# SPDX-License-Identifier: Apache-2.0
"""Validation of jobs, and of settings that only jobs have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from orchestrator.model.jobs import JobSpec
from orchestrator.model.specs import EndpointMode, RestartCondition, ServiceSpec, UpdatePolicy

DEFAULT_RETRIES = 3
"""Default number of retries of an index."""


def job_faults(spec: ServiceSpec) -> Iterator[tuple[str, str]]:
    """Path in the spec and message for each invalid field that concerns jobs."""
    job, task = spec.job, spec.task
    if not spec.mode.is_job:
        if job != JobSpec():
            yield (
                "job",
                (
                    "only jobs have a parallelism, deadline, schedule, queue or history; "
                    "choose --mode replicated-job or global-job"
                ),
            )
        return
    for name in ("parallelism", "deadline"):
        if getattr(job, name) < 0:
            yield f"job.{name}", f"{name} {getattr(job, name):g} is negative; 0 is no limit"
    if job.history < 1:
        yield "job.history", f"history {job.history} is below 1, the run that is the newest"
    if job.schedule or job.time_zone:
        # Slow to import, and most specs have no schedule.
        from orchestrator.model.formats.schedules import ScheduleError, parse_schedule, parse_zone

        try:
            parse_zone(job.time_zone)
            if job.schedule:
                parse_schedule(job.schedule)
        except ScheduleError as error:
            yield "job.schedule", str(error)
    if (job.queue or job.all_or_nothing) and spec.mode.is_global:
        yield "job.queue", "a global job runs on all nodes at once and is in no queue"
    if job.all_or_nothing and not job.queue:
        yield "job.all_or_nothing", "all-or-nothing is for jobs in a queue; give --queue as well"
    timed = replace(job, parallelism=0, deadline=0.0, history=5, queue="", all_or_nothing=False)
    if not job.schedule and timed != JobSpec():
        yield (
            "job.schedule",
            (
                "a time zone, overlap, missed runs and suspension are of a schedule; give one, "
                "such as --schedule '0 2 * * *'"
            ),
        )
    if task.restart.condition not in (RestartCondition.ON_FAILURE, RestartCondition.NONE):
        yield (
            "task.restart.condition",
            (
                "a job's task that has done its work does not run again; "
                "its restart condition is on-failure or none"
            ),
        )
    if task.restart.window:
        yield (
            "task.restart.window",
            ("a job counts its retries over its whole run; leave out the restart window"),
        )
    if replace(spec.update, canary=0) != UpdatePolicy() or spec.update.canary:
        yield "update", "a job is not updated step by step: another spec is another run"
    if spec.rollback != UpdatePolicy():
        yield "rollback", "a job is not rolled back step by step: another spec is another run"
    if spec.endpoint_mode is not EndpointMode.VIP:
        yield "endpoint_mode", "a job has no endpoint mode"
