"""The specs that a service had, and going back to one of them."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.manager.planning.jobruns import with_job_spec
from orchestrator.model.objects import PastSpec, Service, UpdateState, UpdateStatus
from orchestrator.model.specs import ServiceSpec

REMEMBERED = 10
"""Earlier specs that a service can go back to."""


def with_spec(service: Service, spec: ServiceSpec, image_digest: str, now: float) -> Service:
    """The service with a new spec; the one before is remembered, unless only the number of replicas
    differs. An update begins if the tasks are to be others."""
    if spec.mode.is_job:
        return with_job_spec(service, spec, image_digest, now, _with(service, now))
    new_tasks = spec.task != service.spec.task or image_digest != service.image_digest
    after = replace(
        service,
        spec=spec,
        updated_at=now,
        spec_version=service.spec_version + new_tasks,
        image_digest=image_digest,
    )
    if new_tasks:
        after = replace(after, update=UpdateStatus(UpdateState.UPDATING, started_at=now))
    if new_tasks or replace(spec, replicas=0) != replace(service.spec, replicas=0):
        after = replace(after, history=_with(service, now))
    return after


def rolled_back(
    service: Service, past: PastSpec, now: float, message: str, *, failed: bool = False
) -> Service:
    """The service on its way back to an earlier spec. How many replicas there are stays, as it
    is more often scaled than meant by a spec. One that `failed` is not remembered: nobody wants to
    go back to it."""
    history = service.history if failed else _with(service, now)
    spec = replace(past.spec, replicas=service.spec.replicas)
    if spec.mode.is_job:
        return with_job_spec(service, spec, past.image_digest, now, history)
    return replace(
        service,
        spec=spec,
        updated_at=now,
        spec_version=service.spec_version + 1,
        image_digest=past.image_digest,
        update=UpdateStatus(UpdateState.ROLLING_BACK, started_at=now, message=message),
        history=tuple(each for each in history if each != past),
    )


def _with(service: Service, now: float) -> tuple[PastSpec, ...]:
    past = PastSpec(service.spec, service.image_digest, service.spec_version, now)
    return (past, *service.history)[:REMEMBERED]
