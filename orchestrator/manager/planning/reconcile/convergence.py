# SPDX-License-Identifier: Apache-2.0
"""Convergence: how far a service is from its spec, for listings and waiting commands."""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.manager.planning.eligibility import is_eligible
from orchestrator.manager.planning.reconcile.job_runs import active_runs
from orchestrator.manager.planning.reconcile.jobs import job_count, job_tasks
from orchestrator.manager.planning.reconcile.restarts import (
    STABLE,
    crashes,
    finished,
    given_up,
    stable_at,
)
from orchestrator.manager.planning.slots import Slot, ended, is_current, slots_of
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import Node, NodeState
from orchestrator.model.services import Service, UpdateState
from orchestrator.model.specs import FailureAction, ServiceMode
from orchestrator.model.states import TaskState


@dataclass(frozen=True, slots=True)
class Watch:
    """What a command that waits for convergence observes."""

    now: float
    since: int = 0
    """Crashes up to this revision of the store do not count."""
    monitor: float | None = None
    """Seconds that tasks without a probe must stay up; None: as the update policy says."""
    written: int = 0
    """The revision of the change that is waited for; 0: none. What ran before it is not monitored,
    unless it changed since."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Desired and running tasks, and whether the service has converged."""

    desired: int
    running: int
    converged: bool
    completed: int = 0
    """Of a job's newest run."""
    completions: int = 0
    given_up: int = 0
    """Slots whose task failed and is not started again, once nothing else is left to do: the
    service stays as it is until a user changes it."""
    stable_in: float = 0.0
    """Seconds until all tasks are stable, once all of them work; 0: they are."""
    crashed: tuple[str, ...] = ()
    """Ids of the tasks that ended before they were stable, by slot and age."""
    failing: bool = False
    """More of them crashed than the update policy allows, with no update in progress that would act
    on it."""


def progress(view: ClusterView, service_id: str, watch: Watch | None = None) -> Progress:
    """The progress of a service.

    It has converged when each slot that it should have runs a task of the present spec, or has
    done its work, nothing else of it runs any more, and no update is under way; at canaries, when
    each slot's task works. A job has when no run of it is under way. One that is removed, or
    unknown, has converged when it has no task left.

    With a `watch`, each task must be stable as well. A watch with a monitor period of its own does
    not wait for an update that is only monitored any more, unless that would be rolled back.
    """
    service = view.services.get(service_id)
    tasks = view.tasks_of_service(service_id)
    running = running_tasks(view, service_id)
    if service is None or service.removed:
        return Progress(0, running, converged=not tasks)
    if service.spec.mode.is_job:
        busy = any(not ended(task) for task in tasks.values())
        done, of = job_count(view, service)
        return Progress(
            job_tasks(view, service), running, not (busy or active_runs(service)), done, of
        )
    slots = [slot for slot in slots_of(tasks).values() if slot.kept]
    arrived = sum(_arrived(service, slot) for slot in slots)
    live = sum(not ended(task) for task in tasks.values())
    at_work = sum(not slot.vacant for slot in slots)
    desired = desired_tasks(view, service)
    lost = sum(given_up(service, slot) for slot in slots if is_current(service, slot.newest))
    alone = live == at_work
    there = alone and arrived == len(slots) == desired
    still = alone and not service.update.moving
    state = Progress(desired, running, converged=there and still)
    if lost and still and arrived + lost == len(slots) == desired:
        state = replace(state, given_up=lost)
    return state if watch is None else _watched(service, slots, state, there, watch)


def _watched(
    service: Service, slots: list[Slot], state: Progress, there: bool, watch: Watch
) -> Progress:
    """The progress, judged by the monitor period; `there`: all tasks work."""
    policy = service.policy
    monitor = policy.monitor if watch.monitor is None else watch.monitor
    settled = state.converged
    undone = policy.failure_action is FailureAction.ROLLBACK
    if there and service.update.moving and watch.monitor is not None and not undone:
        settled = _stable_in(service, slots, policy.monitor, replace(watch, written=0)) > 0
    if monitor <= 0:
        return replace(state, converged=settled)
    stable_in = _stable_in(service, slots, monitor, watch) if there else 0.0
    fallen = [found for slot in slots if (found := crashes(service, slot, monitor, watch.since))]
    excused = policy.failure_action is FailureAction.CONTINUE or service.update.moving
    too_many = len(fallen) > policy.max_failure_ratio * len(slots)
    return replace(
        state,
        converged=settled and not stable_in,
        stable_in=stable_in,
        crashed=tuple(task.id for found in fallen for task in found),
        failing=too_many and not excused,
    )


def _stable_in(service: Service, slots: list[Slot], monitor: float, watch: Watch) -> float:
    """Seconds until all tasks are stable."""
    at = max(
        (
            stable_at(service, task, monitor, watch.now)
            for slot in slots
            if (task := slot.runnable) is not None
            and (task.revision > watch.written or not watch.written)
        ),
        default=STABLE,
    )
    return max(at - watch.now, 0.0)


def desired_tasks(view: ClusterView, service: Service) -> int:
    """How many tasks the service should have."""
    if service.spec.mode is ServiceMode.REPLICATED:
        return service.replicas
    return sum(
        node.state is not NodeState.DOWN and is_eligible(node, service)
        for node in view.nodes.values()
    )


def _arrived(service: Service, slot: Slot) -> bool:
    task = slot.runnable
    if service.update.state is UpdateState.CANARY and task is not None:
        return task.status.works
    if task is None:
        return is_current(service, slot.newest) and finished(service, slot)
    return is_current(service, task) and task.status.works


def running_tasks(view: ClusterView, service_id: str) -> int:
    """How many tasks of the service work, on a node that is not down, and are not being
    stopped."""
    return sum(
        task.status.works
        and task.desired_state <= TaskState.RUNNING
        and not _is_down(view.nodes.get(task.node_id))
        for task in view.tasks_of_service(service_id).values()
    )


def _is_down(node: Node | None) -> bool:
    return node is not None and node.state is NodeState.DOWN
