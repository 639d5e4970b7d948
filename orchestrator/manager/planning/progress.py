"""How far a service is on its way to what its spec says."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.manager.planning.accounting import running_tasks
from orchestrator.manager.planning.constraints import welcome
from orchestrator.manager.planning.jobruns import active
from orchestrator.manager.planning.jobs import job_count, job_tasks
from orchestrator.manager.planning.restart import finished, given_up
from orchestrator.manager.planning.slots import Slot, ended, is_current, slots_of
from orchestrator.manager.planning.views import ClusterView
from orchestrator.model.nodes import NodeState
from orchestrator.model.services import Service, UpdateState
from orchestrator.model.specs import ServiceMode


@dataclass(frozen=True, slots=True)
class Progress:
    """Tasks wanted and running, and whether all is as it should be."""

    desired: int
    running: int
    converged: bool
    completed: int = 0
    """Of a job's newest run."""
    completions: int = 0
    given_up: int = 0
    """Slots whose task failed and is not started again, once nothing else is left to do: the
    service is what it will be until somebody changes it."""


def progress(view: ClusterView, service_id: str) -> Progress:
    """The progress of a service.

    It has converged when each slot that it should have runs a task of the present spec, or has
    done its work, nothing else of it runs any more, and no update is under way; at canaries, when
    each slot's task works. A job has when no run of it is under way. One that is removed, or
    unknown, has converged when it has no task left.
    """
    service = view.services.get(service_id)
    tasks = view.tasks_of_service(service_id)
    running = running_tasks(view, service_id)
    if service is None or service.removed:
        return Progress(0, running, converged=not tasks)
    if service.spec.mode.is_job:
        busy = any(not ended(task) for task in tasks.values())
        done, of = job_count(view, service)
        return Progress(job_tasks(view, service), running, not (busy or active(service)), done, of)
    slots = [slot for slot in slots_of(tasks).values() if slot.kept]
    arrived = sum(_arrived(service, slot) for slot in slots)
    live = sum(not ended(task) for task in tasks.values())
    at_work = sum(not slot.vacant for slot in slots)
    desired = wanted(view, service)
    lost = sum(given_up(service, slot) for slot in slots if is_current(service, slot.newest))
    still = not service.update.moving and live == at_work
    if lost and still and arrived + lost == len(slots) == desired:
        return Progress(desired, running, converged=False, given_up=lost)
    there = arrived == len(slots) == desired
    return Progress(desired, running, converged=there and still)


def wanted(view: ClusterView, service: Service) -> int:
    """How many tasks the service should have."""
    if service.spec.mode is ServiceMode.REPLICATED:
        return service.spec.replicas
    return sum(
        node.state is not NodeState.DOWN and welcome(node, service) for node in view.nodes.values()
    )


def _arrived(service: Service, slot: Slot) -> bool:
    task = slot.runnable
    if service.update.state is UpdateState.CANARY and task is not None:
        return task.status.works
    if task is None:
        return is_current(service, slot.newest) and finished(service, slot)
    return is_current(service, task) and task.status.works
