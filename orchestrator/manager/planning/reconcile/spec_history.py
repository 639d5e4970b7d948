# SPDX-License-Identifier: Apache-2.0
"""Spec history: the earlier specs of a service, and rollback to one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from orchestrator.manager.planning.reconcile.job_runs import with_job_spec
from orchestrator.model.scheduling.autoscaling import AutoscaleStatus
from orchestrator.model.services import PastSpec, Service, UpdateState, UpdateStatus
from orchestrator.model.specs import ServiceSpec

REMEMBERED = 10
"""Earlier specs that a service can be rolled back to."""


def with_spec(
    service: Service,
    spec: ServiceSpec,
    image_digest: str,
    now: float,
    documents: Mapping[str, int] | None = None,
) -> Service:
    """The service with a new spec; the one before is remembered, unless only the number of replicas
    differs. An update begins if the tasks are to be others; they have these versions of the secrets
    and configs."""
    if spec.mode.is_job:
        return with_job_spec(service, spec, image_digest, now, _with(service, now))
    new_tasks = spec.task != service.spec.task or image_digest != service.image_digest
    scale = service.autoscale
    if not spec.autoscale.enabled or spec.replicas != service.spec.replicas:
        # Autoscaling goes on from the number that a user has set.
        scale = AutoscaleStatus()
    after = replace(
        service,
        spec=spec,
        autoscale=scale,
        updated_at=now,
        spec_version=service.spec_version + new_tasks,
        image_digest=image_digest,
    )
    if new_tasks:
        after = replace(
            after,
            update=UpdateStatus(UpdateState.UPDATING, started_at=now),
            documents=dict(documents or {}),
            declined={},
        )
    if new_tasks or replace(spec, replicas=0) != replace(service.spec, replicas=0):
        after = replace(after, history=_with(service, now))
    return after


def with_documents(service: Service, documents: Mapping[str, int], now: float) -> Service:
    """The service with other versions of its secrets and configs, which is an update of it."""
    return replace(
        service,
        updated_at=now,
        spec_version=service.spec_version + 1,
        update=UpdateStatus(UpdateState.UPDATING, started_at=now),
        documents=dict(documents),
        declined={},
        history=_with(service, now),
    )


def rolled_back(
    service: Service,
    past: PastSpec,
    now: float,
    message: str,
    *,
    failed: bool = False,
    documents: Mapping[str, int] | None = None,
) -> Service:
    """The service on its way back to an earlier spec, with these versions of its secrets and
    configs (none: those that it had). The number of replicas stays, since it usually comes from
    scaling and not from a spec. One that `failed` is not remembered."""
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
        documents=dict(past.documents if documents is None else documents),
        declined=_declined(service),
    )


def _with(service: Service, now: float) -> tuple[PastSpec, ...]:
    past = PastSpec(
        service.spec, service.image_digest, service.spec_version, now, service.documents
    )
    return (past, *service.history)[:REMEMBERED]


def _declined(service: Service) -> dict[str, int]:
    """The versions that it is rolled back from."""
    ids = service.documents.keys() | service.declined.keys()
    return {
        id: max(service.documents.get(id, 0), service.declined.get(id, 0)) for id in sorted(ids)
    }
