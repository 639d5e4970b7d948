# SPDX-License-Identifier: Apache-2.0
"""Runs of a job: starting, stopping and ending one, and changing the job's spec.

Only numbers and reasons are written here; `jobs` makes and stops the tasks. A run begins in a write
of its own, before any task of it is made, so that a number is never given twice.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.model.services import JobRun, JobState, PastSpec, Service
from orchestrator.model.specs import RestartPolicy, ServiceSpec


def begin_run(service: Service, now: float, due_at: float = 0.0) -> Service:
    """The job with another run, of its current spec."""
    runs = service.job.runs
    run = JobRun(
        number=runs[0].number + 1 if runs else 1,
        version=service.spec_version,
        due_at=due_at,
        started_at=now,
        since=now,
    )
    return replace(service, job=replace(service.job, runs=(run, *runs)))


def with_first_run(service: Service) -> Service:
    """A service as it is created: a job without a schedule runs at once."""
    if not service.spec.mode.is_job:
        return service
    service = replace(service, job=replace(service.job, decided_until=service.created_at))
    return service if service.spec.job.schedule else begin_run(service, service.created_at)


def active_runs(service: Service) -> tuple[JobRun, ...]:
    """The runs in progress, the newest first."""
    return tuple(run for run in service.job.runs if run.state is JobState.RUNNING)


def end_run(run: JobRun, state: JobState, now: float, message: str = "") -> JobRun:
    """The run, ended."""
    return replace(run, state=state, finished_at=now, message=message)


def stop_runs(service: Service, now: float, reason: str) -> Service:
    """The job with its runs in progress stopped."""
    runs = tuple(
        end_run(run, JobState.STOPPED, now, reason) if run.state is JobState.RUNNING else run
        for run in service.job.runs
    )
    return replace(service, job=replace(service.job, runs=runs))


def service_at_run(service: Service, run: JobRun) -> Service:
    """The job as it was when the run began: what its tasks are, and how many. Concurrency,
    retries and deadline are the current ones."""
    past = next((past for past in service.history if past.version == run.version), None)
    if run.version == service.spec_version or past is None:
        return service
    task = replace(past.spec.task, restart=service.spec.task.restart)
    spec = replace(service.spec, task=task, replicas=past.spec.replicas)
    return replace(
        service,
        spec=spec,
        spec_version=past.version,
        image_digest=past.image_digest,
        documents=past.documents,
    )


def with_job_spec(
    service: Service,
    spec: ServiceSpec,
    image_digest: str,
    now: float,
    history: tuple[PastSpec, ...],
) -> Service:
    """The job with a new spec; `history` is what it remembers if that is of other work.

    Other work is another task or number of them. Without a schedule it begins at once, in place of
    what is under way; with one, runs under way go on as they began.
    """
    before = service.spec
    other = _work(spec) != _work(before) or image_digest != service.image_digest
    job = service.job
    if _timing(spec) != _timing(before):
        # Never back, even if a former leader's clock was ahead: no firing counts twice.
        job = replace(job, decided_until=max(job.decided_until, now))
    after = replace(
        service,
        spec=spec,
        updated_at=now,
        spec_version=service.spec_version + other,
        image_digest=image_digest,
        history=history if other else service.history,
        job=job,
    )
    if other and not spec.job.schedule:
        return begin_run(stop_runs(after, now, "replaced by another run"), now)
    return after


def _work(spec: ServiceSpec) -> tuple[object, ...]:
    return spec.replicas, replace(spec.task, restart=RestartPolicy())


def _timing(spec: ServiceSpec) -> tuple[object, ...]:
    return spec.job.schedule, spec.job.time_zone, spec.job.suspended
