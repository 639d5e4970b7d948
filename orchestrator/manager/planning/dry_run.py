# SPDX-License-Identifier: Apache-2.0
"""Dry runs (`orc plan`): the planner itself on a copy of the cluster, with simulated agents.

The view with the change is planned pass by pass, as the leader would, and between two passes each
agent carries out its assignments at once, without failures. Time passes only where the planner asks
for it. The result is compared with the present state, slot by slot. If nothing else changes in the
cluster, the change will have these effects. For a job, the result has the tasks that start at once
and those that are queued, not the runs of its schedule.

Failures that occur only at run time are not predicted, nor how long anything takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

from orchestrator.manager.planning.eligibility import is_eligible
from orchestrator.manager.planning.pipeline import STANDALONE, Dirty, dirty_of, plan
from orchestrator.manager.planning.plan import Change, earliest
from orchestrator.manager.planning.reconcile.job_runs import active_runs
from orchestrator.manager.planning.reconcile.jobs import queued_indexes
from orchestrator.manager.planning.scheduling.scoring import image_of
from orchestrator.manager.planning.slots import Slot, slots_of
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.dependencies import DependencyCondition
from orchestrator.model.jobs import format_indexes
from orchestrator.model.specs import RestartCondition
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Health, Task

_HORIZON = 3600.0
"""Maximum simulated seconds."""
_PASSES = 100_000
_ENDING = (RestartCondition.ON_FAILURE, RestartCondition.NONE)
"""With which a task that has done its work is not started again."""


class Action(IntEnum):
    """What a change does to a slot."""

    START = 0
    STOP = 1
    """Or, of one that waits for a node, no longer does."""
    REPLACE = 2
    """A new task on the same node."""
    MOVE = 3
    """A new task on another node."""
    WAIT = 4
    """A task that no node takes, or that may not leave its node yet; the reason says why."""


@dataclass(frozen=True, slots=True)
class Step:
    """What happens to one slot of a service."""

    action: Action
    service: str
    name: str
    """Of the task, such as `web.3`."""
    source: str = ""
    """Id of the node that it leaves, or stays on."""
    target: str = ""
    """Id of the node that it is on afterwards."""
    reason: str = ""


def simulate(
    view: ClusterView, changes: Iterable[Change], now: float, new_id: Callable[[], str]
) -> list[Step]:
    """The steps that these changes would cause, by service and slot. Steps in progress count as
    done: only those caused by the changes are returned."""
    before = _converged(view, (), now, new_id)
    after = _converged(before, changes, now, new_id)
    steps = []
    names = {service.id: service.spec.name for service in before.services.values()}
    names |= {service.id: service.spec.name for service in after.services.values()}
    for service_id in sorted(names, key=lambda id: (names[id], id)):
        old, new = _slots(before, service_id), _slots(after, service_id)
        for run, number in sorted(old.keys() | new.keys()):
            key = (run, number)
            step = _step(names[service_id], number, old.get(key), new.get(key))
            if step is None and (slot := new.get(key)) is not None:
                step = _stays(before, after, slot)
            if step is not None:
                steps.append(step)
        steps += _queued_indexes(before, after, service_id)
    return [*steps, *_containers(before, after)]


def _slots(view: ClusterView, service_id: str) -> dict[tuple[int, int], Slot]:
    """A service's slots; of a job for each of its runs."""
    runs: dict[int, dict[str, Task]] = {}
    for id, task in view.tasks_of_service(service_id).items():
        runs.setdefault(task.job_run, {})[id] = task
    return {
        (run, number): slot
        for run, tasks in runs.items()
        for number, slot in slots_of(tasks).items()
    }


def _queued_indexes(before: ClusterView, after: ClusterView, service_id: str) -> Iterator[Step]:
    """Indexes of a job's new runs that are queued by its concurrency limit."""
    service, known = after.services.get(service_id), before.services.get(service_id)
    if service is None or not service.spec.mode.is_job:
        return
    name, most = service.spec.name, service.spec.job.parallelism
    old = {run.number for run in known.job.runs} if known else set()
    for run in active_runs(service):
        left = format_indexes(queued_indexes(after, service, run))
        if left and run.number not in old:
            yield Step(Action.WAIT, name, f"{name}.{left}", reason=f"{most} run at a time")


def _containers(before: ClusterView, after: ClusterView) -> Iterator[Step]:
    """Steps of new standalone containers."""
    known = before.tasks_of_service(STANDALONE)
    for id, task in sorted(after.tasks_of_service(STANDALONE).items()):
        if id in known:
            continue
        if task.status.state <= TaskState.PENDING:
            yield Step(Action.WAIT, "", task.name, "", "", task.status.message)
        else:
            yield Step(Action.START, "", task.name, "", task.node_id)


def _step(service: str, number: int, old: Slot | None, new: Slot | None) -> Step | None:
    was, now = _task(old), _task(new)
    name = f"{service}.{number}"
    ran, runs = _running(was), _running(now)
    if was is not None and was.status.state is TaskState.COMPLETE:
        # It has completed: only a further run of it is a step.
        if now is None or now.id == was.id:
            return None
        was = None
    if now is not None and now.status.state is TaskState.COMPLETE:
        runs = True
    if now is not None and not runs and now.status.state is TaskState.PENDING:
        same = was is not None and was.status.message == now.status.message and not ran
        source = was.node_id if was is not None and ran else ""
        reason = now.status.message
        if now.preempted_by and ran:
            reason = f"preempted by {now.preempted_by}; {reason}"
        return None if same else Step(Action.WAIT, service, name, source, "", reason)
    if ran and runs and was is not None and now is not None:
        if was.id == now.id:
            return None
        action = Action.REPLACE if was.node_id == now.node_id else Action.MOVE
        return Step(action, service, name, was.node_id, now.node_id)
    if runs and now is not None:
        return Step(Action.START, service, name, "", now.node_id)
    if was is not None and now is None:
        return Step(Action.STOP, service, name, was.node_id if ran else "")
    return None


def _stays(before: ClusterView, after: ClusterView, slot: Slot) -> Step | None:
    """A task that is to leave its node after the changes, and stays for its service's budget or the
    drain's limit."""
    task = slot.newest
    service, node = after.services.get(task.service_id), after.nodes.get(task.node_id)
    if service is None or node is None or not _running(task) or is_eligible(node, service):
        return None
    known, was = before.services.get(service.id), before.nodes.get(node.id)
    if known is None or was is None or not is_eligible(was, known):
        return None
    reason = "no more of its service may be unavailable; it stays on its node"
    return Step(Action.WAIT, service.spec.name, task.name, task.node_id, task.node_id, reason)


def _task(slot: Slot | None) -> Task | None:
    if slot is None or slot.runnable is not None:
        return slot.runnable if slot is not None else None
    return slot.newest if slot.newest.status.state is TaskState.COMPLETE else None


def _running(task: Task | None) -> bool:
    return task is not None and task.status.state is TaskState.RUNNING


def _converged(
    view: ClusterView, changes: Iterable[Change], now: float, new_id: Callable[[], str]
) -> ClusterView:
    """The cluster once it has converged after the changes."""
    made = list(changes)
    view = view.evolve(made)
    view = view.evolve(_without_schedules(view))
    dirty, horizon = dirty_of(made) if made else _everything(), now + _HORIZON
    wake: float | None = None
    for _ in range(_PASSES):
        made_now = plan(view, dirty, now, new_id)
        wake = earliest(wake, made_now.requeue_at)
        written = [change for each in made_now.plans for change in each.changes]
        view = view.evolve(written)
        obeyed = list(_agent_reports(view, now))
        view = view.evolve(obeyed)
        obeyed += (pulled := list(_pulls(view, obeyed)))
        view = view.evolve(pulled)
        if written or obeyed:
            dirty = dirty_of([*written, *obeyed])
        elif ended := list(_completions(view, now)):
            view = view.evolve(ended)
            dirty = dirty_of(ended)
        elif wake is not None and wake <= horizon:
            now, wake, dirty = max(now, wake), None, Dirty(timer=True)
        else:
            break
    return view


def _pulls(view: ClusterView, obeyed: Iterable[Change]) -> Iterator[Change]:
    """The images that nodes have once they run their assignments."""
    holders: dict[str, set[str]] = {}
    for change in obeyed:
        task = change.after
        if not isinstance(task, Task) or task.status.state is not TaskState.RUNNING:
            continue
        image = image_of(view, task.spec.container.image, task.image_digest)
        if image is not None and task.node_id not in image.nodes:
            holders.setdefault(image.id, set()).add(task.node_id)
    for id, nodes in sorted(holders.items()):
        image = view.images[id]
        yield Change(image, replace(image, nodes=tuple(sorted({*image.nodes, *nodes}))))


def _completions(view: ClusterView, now: float) -> Iterator[Change]:
    """Completions of the tasks that other services wait for."""
    live = [service for service in view.services.values() if not service.removed]
    awaited = {
        each.service
        for service in live
        for each in service.spec.depends_on
        if each.condition is DependencyCondition.COMPLETED
    }
    for service in live:
        ends = service.spec.task.restart.condition in _ENDING
        if service.spec.name not in awaited or not ends:
            continue
        for _, task in sorted(view.tasks_of_service(service.id).items()):
            if task.status.state is TaskState.RUNNING and task.desired_state is TaskState.RUNNING:
                done = replace(task.status, state=TaskState.COMPLETE, at=now, finished_at=now)
                yield Change(task, replace(task, status=done))


def _without_schedules(view: ClusterView) -> Iterator[Change]:
    """Jobs without deadlines and schedules, since no time passes, and no automatic moves."""
    if view.cluster is not None and view.cluster.rebalance_every:
        yield Change(view.cluster, replace(view.cluster, rebalance_every=0.0))
    for service in view.services.values():
        if service.spec.mode.is_job:
            job = replace(service.spec.job, deadline=0.0, suspended=True)
            yield Change(service, replace(service, spec=replace(service.spec, job=job)))


def _everything() -> Dirty:
    return Dirty(nodes_changed=True, capacity_freed=True, timer=True)


def _agent_reports(view: ClusterView, now: float) -> Iterator[Change]:
    """What agents would report next without failures: tasks that are to stop end, then others
    run."""
    on_nodes = [
        task
        for task in view.tasks.values()
        if not task.standalone and TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING
    ]
    on_nodes.sort(key=lambda task: (task.service_id, task.slot, task.created_at, task.id))
    for task in on_nodes:
        status = task.status
        if task.desired_state > TaskState.RUNNING:
            after = replace(status, state=TaskState.SHUTDOWN, at=now, finished_at=now)
        elif not status.works:
            healthy = Health.NONE if status.health is Health.NONE else Health.HEALTHY
            after = replace(status, state=TaskState.RUNNING, at=now, started_at=now, health=healthy)
        else:
            continue
        yield Change(task, replace(task, status=after))
