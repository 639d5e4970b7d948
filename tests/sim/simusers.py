# SPDX-License-Identifier: Apache-2.0
"""What users declare in the simulated cluster, and how they change their minds."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from orchestrator.manager.planning.reconcile import job_runs
from orchestrator.manager.planning.reconcile.spec_history import rolled_back, with_spec
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.dependencies import Dependency, DependencyCondition
from orchestrator.model.jobs import JobSpec, Missed, Overlap
from orchestrator.model.placement import Disconnect, DisconnectAction, GenericResource
from orchestrator.model.scheduling.affinities import Affinity
from orchestrator.model.scheduling.disruptions import DisruptionBudget
from orchestrator.model.scheduling.queues import Queue
from orchestrator.model.services import Service, UpdateState
from orchestrator.model.specs import (
    ContainerSpec,
    FailureAction,
    HealthCheck,
    PortSpec,
    Resources,
    RestartCondition,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    UpdateOrder,
    UpdatePolicy,
)

MIB = 1 << 20


QUEUES = (Queue("a", weight=2), Queue("b", quota=Resources(shares=512)))


def any_service(random: Random, view: ClusterView, id: str, now: float) -> Service:
    """A new service, or a job."""
    return _any_job(random, id, now) if random.random() < 0.3 else _any_service(random, view, id)


def changed(random: Random, service: Service, now: float) -> Service:
    """The service as its user wants it from now on."""
    if random.randrange(8) == 0:
        return replace(service, removed=True)
    if service.spec.mode.is_job:
        return _changed_job(random, service, now)
    return _changed_service(random, service, now)


def _task(random: Random, restart: RestartPolicy, **fields: Any) -> TaskSpec:
    pick = random.choice
    return TaskSpec(
        container=ContainerSpec(image="web:1", health=pick((HealthCheck(), _PROBED))),
        reservation=Resources(pick((64, 128)), pick((32, 64)) * MIB),
        restart=restart,
        **fields,
    )


_DISCONNECTS = (
    Disconnect(),
    Disconnect(),
    Disconnect(DisconnectAction.REPLACE, 3.0),
    Disconnect(DisconnectAction.KEEP),
)
_BUDGETS = (
    DisruptionBudget(),
    DisruptionBudget(min_available="50%"),
    DisruptionBudget(max_unavailable="1"),
)
_PRIORITIES = (0, 0, 0, 5, 100)
_PROBED = HealthCheck(test=("TCP", "80"))


def _any_service(random: Random, view: ClusterView, id: str) -> Service:
    pick = random.choice
    ports = (PortSpec(8080 + random.randrange(2), 80),) if random.random() < 0.3 else ()
    task = _task(
        random,
        RestartPolicy(delay=pick((0.0, 0.5, 1.0))),
        ports=ports,
        generic_resources=pick(((), (), (), (GenericResource("gpu", 1),))),
    )
    name = f"web{id}"
    mode = ServiceMode.GLOBAL if random.random() < 0.2 else ServiceMode.REPLICATED
    spec = ServiceSpec(
        name=name,
        mode=mode,
        replicas=random.randrange(0, 3 if ports else 9),
        task=task,
        update=UpdatePolicy(
            pick((0, 1, 2)),
            pick((0.0, 0.0, 1.0)),
            pick(tuple(UpdateOrder)),
            monitor=pick((1.0, 5.0)),
            failure_action=pick(tuple(FailureAction)),
            max_failure_ratio=pick((0.0, 0.5)),
            canary=pick((0, 0, 0, 1)),
        ),
        depends_on=_dependencies(random, view),
        on_disconnect=pick(_DISCONNECTS),
        disruption=pick(_BUDGETS) if mode is ServiceMode.REPLICATED else DisruptionBudget(),
        priority=pick(_PRIORITIES),
        affinities=pick(((), (), (), (Affinity(f"service=={name}", anti=True),))),
    )
    return Service(id=id, spec=spec)


def _dependencies(random: Random, view: ClusterView) -> tuple[Dependency, ...]:
    """On one of the services that are there, or on none."""
    names = sorted(each.spec.name for each in view.services.values() if not each.removed)
    if not names or random.random() < 0.7:
        return ()
    conditions = (DependencyCondition.STARTED, DependencyCondition.HEALTHY)
    return (Dependency(random.choice(names), random.choice(conditions)),)


def _any_job(random: Random, id: str, now: float) -> Service:
    pick = random.choice
    restart = RestartPolicy(
        pick((RestartCondition.ON_FAILURE, RestartCondition.ON_FAILURE, RestartCondition.NONE)),
        delay=pick((0.0, 0.5)),
        max_attempts=pick((0, 1, 3)),
    )
    schedule = pick(("", "", "* * * * *"))
    job = JobSpec(
        parallelism=pick((0, 1, 2, 3)),
        deadline=pick((0.0, 0.0, 15.0)),
        schedule=schedule,
        history=pick((1, 3)),
    )
    mode = pick((ServiceMode.REPLICATED_JOB, ServiceMode.REPLICATED_JOB, ServiceMode.GLOBAL_JOB))
    replicas = random.randrange(0, 12)
    if mode is ServiceMode.REPLICATED_JOB:
        queue = pick(("", "a", "b"))
        # Together only as many as there is room for in the end.
        together = queue == "a" and replicas <= 4 and pick((True, False))
        job = replace(job, queue=queue, all_or_nothing=together)
    if schedule:
        job = replace(job, overlap=pick(tuple(Overlap)), missed=pick(tuple(Missed)))
    spec = ServiceSpec(
        name=f"job{id}",
        mode=mode,
        replicas=replicas,
        priority=pick((-5, 0, 0, 5)),
        task=_task(random, restart),
        job=job,
    )
    return job_runs.with_first_run(Service(id=id, created_at=now, spec=spec))


def _changed_service(random: Random, service: Service, now: float) -> Service:
    spec = service.spec
    match random.randrange(7):
        case 0 if service.history:
            return rolled_back(service, service.history[-1], now, "by hand")
        case 1 if service.update.state is UpdateState.CANARY:
            update = replace(service.update, state=UpdateState.UPDATING, promoted=True)
            return replace(service, update=update)
        case 2 | 3 | 4:
            most = 3 if spec.task.ports else 9
            return replace(service, spec=replace(spec, replicas=random.randrange(0, most)))
        case 5:
            task = replace(spec.task, restart=replace(spec.task.restart, delay=0.25))
        case _:
            task = replace(spec.task, force=spec.task.force + 1)
    return with_spec(service, replace(spec, task=task), "", now)


def _changed_job(random: Random, job: Service, now: float) -> Service:
    spec = job.spec
    match random.randrange(5):
        case 0 if job_runs.active_runs(job):
            return job_runs.stop_runs(job, now, "stopped by its user")
        case 1 if not job_runs.active_runs(job) or spec.job.overlap is Overlap.ALLOW:
            return job_runs.begin_run(job, now)
        case 2 if spec.job.schedule:
            suspended = replace(spec.job, suspended=not spec.job.suspended)
            return with_spec(job, replace(spec, job=suspended), "", now)
        case 3:
            task = replace(spec.task, force=spec.task.force + 1)
            return with_spec(job, replace(spec, task=task), "", now)
        case _:
            return with_spec(job, replace(spec, labels={"changed": str(now)}), "", now)
