# SPDX-License-Identifier: Apache-2.0
"""Dependencies between services: tasks wait for what their service depends on.

A task is scheduled only while all conditions of its service's dependencies hold; until then it is
pending, with the reason. That holds for every new task, also for one that replaces another: the
dependency may have failed with the same node.

On removal the order is reversed: a service keeps its tasks until the removed services that depend
on it have none left on a node.
"""

from __future__ import annotations

from orchestrator.manager.planning.reconcile.convergence import desired_tasks
from orchestrator.manager.planning.reconcile.restarts import finished
from orchestrator.manager.planning.slots import Slot, ended, placed, slots_of
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.dependencies import Dependency, DependencyCondition
from orchestrator.model.services import JobState, Service
from orchestrator.model.states import TaskState


def unmet_dependency(view: ClusterView, service: Service | None) -> str | None:
    """The first unmet dependency as a pending reason; None if all are met."""
    for each in service.spec.depends_on if service is not None else ():
        if (reason := _unmet(view, each)) is not None:
            return f"waits for service {each.service}: {reason}"
    return None


def has_completed(view: ClusterView, service: Service) -> bool:
    """Whether the service has completed; of a job, its newest run."""
    if service.spec.mode.is_job:
        return any(run.state is JobState.COMPLETE for run in service.job.runs[:1])
    slots = [slot for slot in slots_of(view.tasks_of_service(service.id)).values() if slot.kept]
    done = all(finished(service, slot) for slot in slots)
    return done and len(slots) == desired_tasks(view, service) > 0


def still_needed(view: ClusterView, service: Service) -> bool:
    """Whether a service that is being removed keeps its tasks for now, as others that are being
    removed still need it."""
    return any(
        placed(task) and not ended(task)
        for other in view.services.values()
        if other.removed and other.id != service.id and depends_on(other, service)
        for task in view.tasks_of_service(other.id).values()
    )


def depends_on(service: Service, other: Service) -> bool:
    """Whether a service depends on the other."""
    return any(each.service == other.spec.name for each in service.spec.depends_on)


def _unmet(view: ClusterView, dependency: Dependency) -> str | None:
    other = view.service_by_name(dependency.service)
    if other is None or other.removed:
        return None if dependency.optional else "it does not exist"
    tasks = view.tasks_of_service(other.id).values()
    live = [task for task in tasks if task.desired_state <= TaskState.RUNNING]
    match dependency.condition:
        case DependencyCondition.STARTED:
            runs = any(task.status.state is TaskState.RUNNING for task in live)
            return None if runs or has_completed(view, other) else "no task is running yet"
        case DependencyCondition.HEALTHY:
            works = any(task.status.works for task in live)
            return None if works else "no task is healthy yet"
        case DependencyCondition.COMPLETED:
            return None if has_completed(view, other) else _unfinished(view, other)


def _unfinished(view: ClusterView, service: Service) -> str:
    for run in service.job.runs[:1]:
        if run.message:
            return f"it has not completed; {run.message}"
    for slot in slots_of(view.tasks_of_service(service.id)).values():
        if slot.kept and _failed(slot):
            status = slot.newest.status
            why = status.message or f"exit status {status.exit_code}"
            return f"it has not completed; {slot.newest.name} failed: {why}"
    return "it has not completed yet"


def _failed(slot: Slot) -> bool:
    return slot.vacant and slot.newest.status.state in (TaskState.FAILED, TaskState.REJECTED)
