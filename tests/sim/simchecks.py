# SPDX-License-Identifier: Apache-2.0
"""Invariants of the simulated cluster, checked at every step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import replace

from orchestrator.manager.planning.disruptions import unavailable
from orchestrator.manager.planning.eligibility import is_eligible
from orchestrator.manager.planning.node_load import occupies, published
from orchestrator.manager.planning.plan import Change, Plan
from orchestrator.manager.planning.reconcile.evictions import has_drain_deadline
from orchestrator.manager.planning.reconcile.service_dependencies import unmet_dependency
from orchestrator.manager.planning.scheduling.capacity import reserved
from orchestrator.manager.planning.scheduling.rebalancing import Move
from orchestrator.manager.planning.slots import Slot, is_current, slots_of
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import Availability
from orchestrator.model.scheduling.disruptions import most_unavailable
from orchestrator.model.services import Service
from orchestrator.model.specs import ServiceMode, UpdateOrder
from orchestrator.model.states import Owner, TaskState, is_terminal, may_move
from orchestrator.model.tasks import Task


def check_nodes(view: ClusterView) -> None:
    """No node has more than it can take, and none what is to be apart."""
    for node in view.nodes.values():
        tasks = [task for task in view.tasks_of_node(node.id).values() if occupies(task)]
        taken, size = reserved(tasks), node.description.resources
        assert taken.shares <= size.shares, f"{node.id} is over capacity: {taken.shares}"
        assert taken.memory <= size.memory, f"{node.id} is over capacity: {taken.memory}"
        ports = Counter(port for task in tasks for port in published(task))
        assert all(count == 1 for count in ports.values()), f"{node.id}: ports {ports}"
        gpus = Counter(task.generic_resources.get("gpu") for task in tasks)
        assert all(n == 1 for gpu, n in gpus.items() if gpu), f"{node.id}: given twice: {gpus}"
        alone = Counter(
            task.service_name
            for task in tasks
            if task.desired_state <= TaskState.RUNNING
            and (service := view.services.get(task.service_id))
            and service.spec.affinities
        )
        assert all(count == 1 for count in alone.values()), f"{node.id}: not apart: {alone}"


def check_change(view: ClusterView, read: ClusterView, change: Change, owner: Owner) -> None:
    """A change of a task is one that its owner may make, and a step forward. `view` is as before
    it, `read` as it was when it was decided about."""
    before, after = change.before, change.after
    waited = not isinstance(before, Task) or before.status.state < TaskState.ASSIGNED
    if isinstance(after, Task) and after.status.state is TaskState.ASSIGNED and waited:
        reasons = [
            unmet_dependency(each, each.services.get(after.service_id)) for each in (view, read)
        ]
        assert None in reasons, f"{after.name} is started although it {reasons[0]}"
    if isinstance(before, Task):
        assert view.tasks[before.id] == before, "a change of something else than what is stored"
    if isinstance(before, Task) and isinstance(after, Task):
        source, target = before.status.state, after.status.state
        move = f"{before.name} from {source.name} to {target.name}"
        assert source is target or may_move(owner, source, target), f"{owner.name} moves {move}"
        assert after.desired_state >= before.desired_state, "a desired state shrank"
        assert not before.node_id or after.node_id == before.node_id, "it moved"


def check_slots(view: ClusterView, started_first: Iterable[str], *, settled: bool) -> None:
    """Never more tasks than slots, but for those that an update starts first; and history ends.
    `settled`: nothing is left to decide now, so that what users wanted is ordered."""
    twice = set(started_first)
    for service_id, service in view.services.items():
        if service.spec.mode.is_job:
            continue
        slots = slots_of(view.tasks_of_service(service_id))
        for slot in slots.values():
            alive = sum(not is_terminal(task.status.state) for task in slot.tasks)
            most = 2 if service_id in twice else 1
            assert alive <= most, f"{alive} live tasks in slot {slot.number} of {service_id}"
            assert len(slot.tasks) <= 8, f"history grows: {slot}"
        if settled and not service.removed and service.spec.mode is ServiceMode.REPLICATED:
            _check_count(service, [slot for slot in slots.values() if slot.kept])


def _check_count(service: Service, slots: list[Slot]) -> None:
    """Never more that may run than replicas and what an update may have beside them."""
    replicas, policy = service.spec.replicas, service.policy
    beside = sum(
        max(len(slot.live) - 1, 0)
        for slot in slots
        if not any(task.move_to or task.moved_from for task in slot.live)
    )
    moving = sum(
        len(slot.live) - 1
        for slot in slots
        if any(task.move_to or task.moved_from for task in slot.live)
    )
    live = sum(len(slot.live) for slot in slots)
    assert live - beside - moving <= replicas, f"{service.spec.name}: {live} of {replicas} may run"
    if policy.order is UpdateOrder.START_FIRST and policy.parallelism:
        most = policy.parallelism
        assert beside <= most, f"{service.spec.name}: {beside} more than there should be"


def check_update(view: ClusterView, plan: Plan) -> None:
    """An update never makes less of a service than it may: what works is stopped only in exchange
    for another that works (start first), or if no more than `parallelism` slots are down then.
    `view` is as before the plan is written."""
    after = view.evolve(plan.changes)
    stops = [
        (was, now)
        for was, now in ((change.before, change.after) for change in plan.changes)
        if isinstance(was, Task) and isinstance(now, Task) and _is_stopped(was, now)
    ]
    updated = {
        was.slot
        for was, _ in stops
        if (service := after.services.get(was.service_id)) and not is_current(service, was)
    }
    preempting = {was.slot for was, now in stops if now.preempted_by != was.preempted_by}
    for was, now in stops:
        service, node = after.services.get(was.service_id), view.nodes.get(was.node_id)
        if service is None or service.removed or service.spec.mode.is_job or node is None:
            continue
        if service.spec.mode is ServiceMode.GLOBAL and not is_eligible(node, service):
            continue
        if has_drain_deadline(node):  # its deadline ends what has found no other node
            continue
        slots = slots_of(after.tasks_of_service(service.id))
        preempted = now.preempted_by != was.preempted_by
        if preempted or (is_current(service, was) and not is_eligible(node, service)):
            kept = [slot for slot in slots.values() if slot.kept]
            _check_budget(service, kept, was.slot, updated)
        if preempted:
            _check_priority(view, service, now)
            continue
        works = any(task.status.works for task in slots[was.slot].live)
        if service.policy.order is UpdateOrder.START_FIRST:
            assert works, f"{now.name} is stopped, and nothing stands in for it"
        elif is_eligible(node, service) and service.policy.parallelism and not works:
            down = [slot.number for slot in slots.values() if slot.kept and _is_down(view, slot)]
            down = [number for number in down if number not in preempting]
            most = service.policy.parallelism
            assert len(down) <= most, f"{now.name} is stopped while {down} are down"


def check_moves(view: ClusterView, moves: Iterable[Move]) -> None:
    """Each move makes the measures smaller, and none is of data or to a node that takes nothing."""
    view = _after_moves(view)
    before = measure(view)
    for move in moves:
        assert move.task.status.works, f"{move.task.name} does not work and is moved"
        target = view.nodes[move.target.id]
        assert target.availability is Availability.ACTIVE, f"{target.id} takes nothing"
        # Which of the node's generic resources it will have is not decided yet.
        moved = replace(move.task, node_id=target.id, generic_resources={})
        view = view.evolve([Change(move.task, moved)])
        after = measure(view)
        assert after < before, f"{move} makes {before} to {after}"
        before = after


def _after_moves(view: ClusterView) -> ClusterView:
    """The cluster once the moves in progress are done."""
    changes: list[Change] = []
    for task in view.tasks.values():
        running = not is_terminal(task.status.state) and task.desired_state <= TaskState.RUNNING
        if not (task.move_to in view.nodes and running):
            continue
        beside = any(
            occupies(other) and other.slot == task.slot and other.node_id == task.move_to
            for other in view.tasks_of_service(task.service_id).values()
        )
        moved = replace(task, node_id=task.move_to, generic_resources={})
        changes.append(Change(task, None if beside else moved))
    return view.evolve(changes)


def check_queues(view: ClusterView) -> None:
    """No queue's tasks reserve more than its quota."""
    for queue in view.cluster.queues if view.cluster is not None else ():
        tasks = [
            task
            for service in view.services.values()
            if service.spec.job.queue == queue.name
            for task in view.tasks_of_service(service.id).values()
        ]
        taken = reserved(tasks)
        most = queue.quota.shares or taken.shares
        assert taken.shares <= most, f"queue {queue.name} has {taken.shares} shares of {most}"


def measure(view: ClusterView) -> tuple[int, list[float]]:
    """What rebalancing makes smaller: the sum of the squares of a service's tasks on each node,
    then the nodes' loads, in descending order."""
    counts = Counter(
        (task.service_id, task.node_id)
        for task in view.tasks.values()
        if occupies(task) and task.desired_state <= TaskState.RUNNING
    )
    loads = []
    for node in view.nodes.values():
        taken, size = reserved(view.tasks_of_node(node.id).values()), node.description.resources
        shares, memory = taken.shares / max(size.shares, 1), taken.memory / max(size.memory, 1)
        loads.append(max(shares, memory))
    return sum(count * count for count in counts.values()), sorted(loads, reverse=True)


def _check_budget(
    service: Service, slots: list[Slot], stopped: int, updated: Container[int]
) -> None:
    """What leaves its node, or makes room for others, leaves as many as the budget demands. What an
    update stops at the same time, in the slots `updated`, is not bound by it."""
    if any(task.status.works for slot in slots if slot.number == stopped for task in slot.live):
        return
    most = most_unavailable(service.spec.disruption, len(slots))
    down = unavailable(slot for slot in slots if slot.number not in updated)
    assert down <= most, f"{service.spec.name}: {down} are unavailable, over {most}"


def _check_priority(view: ClusterView, service: Service, victim: Task) -> None:
    """Only tasks of higher priority preempt."""
    by = view.service_by_name(victim.preempted_by.rpartition(".")[0])
    assert by is None or by.spec.priority > service.spec.priority, (
        f"{victim.name} of priority {service.spec.priority} is preempted by {victim.preempted_by}"
    )


def _is_stopped(was: Task, now: Task) -> bool:
    """Whether a working task that is not lost is told to stop, though its slot goes on."""
    works = now.status.works and was.desired_state <= TaskState.RUNNING
    return works and TaskState.RUNNING < now.desired_state < TaskState.REMOVE


def _is_down(view: ClusterView, slot: Slot) -> bool:
    """Whether nothing works in it, and that is not for want of a node until now."""
    before = view.tasks.get(slot.newest.id, slot.newest)
    is_new = len(slot.tasks) == 1 and slot.newest.id not in view.tasks
    waits = is_new or before.status.state <= TaskState.PENDING
    return not waits and not any(task.status.works for task in slot.live)
