# SPDX-License-Identifier: Apache-2.0
"""Replicated and global services: which slots there should be, and removing a service.

The order of the steps matters: tasks of failed nodes are given up first, so that their slots count
as vacant; scaling comes before the update, so that nothing is updated that is about to be removed;
vacant slots are filled last, with the current spec.

A global service has a slot for each eligible node: the one whose newest task is bound to it. A
pending task is bound to its node already (`node_id`), and the scheduler considers no other.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from orchestrator.manager.planning.eligibility import is_eligible
from orchestrator.manager.planning.reconcile import updates
from orchestrator.manager.planning.reconcile.evictions import evict_from_failed_nodes
from orchestrator.manager.planning.reconcile.restarts import decide_restart, max_remembered
from orchestrator.manager.planning.slots import Draft, Slot, Start, ended, is_current, waits
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import Availability, NodeState
from orchestrator.model.services import Service
from orchestrator.model.states import TaskState


def remove_service(draft: Draft) -> None:
    """Stop its tasks, delete ended ones; with the last task, delete the service."""
    for task in list(draft.tasks.values()):
        if ended(task):
            draft.delete(task)
        else:
            draft.stop(task, TaskState.REMOVE)
    draft.service_gone = not draft.tasks


TASK_HISTORY = 5
"""Tasks remembered of a slot, the present one included, as `service ps` shows them."""


def collect_ended(service: Service, draft: Draft) -> None:
    """Delete ended tasks: those of removed slots at once, else the oldest."""
    most = max(TASK_HISTORY, max_remembered(service.spec.task.restart))
    for slot in list(draft.slots().values()):
        for age, task in enumerate(reversed(slot.tasks)):
            if ended(task) and (age >= most or task.desired_state is TaskState.REMOVE):
                draft.delete(task)


def reconcile_replicated(view: ClusterView, service: Service, draft: Draft) -> None:
    """Bring the service's tasks one step nearer to its spec."""
    evict_from_failed_nodes(view, draft)
    _scale(service, draft)
    service = updates.advance_status(service, draft)
    updates.replace_outdated(view, service, draft)
    for slot in draft.kept_slots():
        if slot.vacant:
            start = (
                Start()
                if not is_current(service, slot.newest)
                else decide_restart(service, slot, draft.now)
            )
            if start is not None:
                draft.create(service, slot.number, start, slot)
    collect_ended(service, draft)


def _scale(service: Service, draft: Draft) -> None:
    kept = draft.kept_slots()
    missing = service.replicas - len(kept)
    if missing > 0:
        known = draft.slots()
        for number in draft.free_numbers(draft.may_add(missing)):
            draft.create(service, number, Start(), known.get(number))
    elif missing < 0:
        for slot in scale_down_order(kept, -missing):
            draft.remove_slot(slot)


def scale_down_order(slots: list[Slot], count: int) -> list[Slot]:
    """The `count` slots that go first: those with nothing running, then those on the nodes with
    most tasks of the service, the newest task of such a node first.

    A slot's rank counts how full its node is once those before it have left, so that what stays
    is spread evenly.
    """
    by_node: dict[str, list[Slot]] = defaultdict(list)
    for slot in slots:
        by_node[slot.newest.node_id if _stage(slot) >= _ON_NODE else ""].append(slot)
    ranked: list[tuple[tuple[int, int, float, int], Slot]] = []
    for node_id, on_node in by_node.items():
        on_node.sort(key=lambda slot: (_stage(slot), -slot.newest.created_at, -slot.number))
        for gone, slot in enumerate(on_node):
            fullness = len(on_node) - gone if node_id else 0
            rank = (_stage(slot), -fullness, -slot.newest.created_at, -slot.number)
            ranked.append((rank, slot))
    ranked.sort(key=lambda item: item[0])
    return [slot for _, slot in ranked[:count]]


_VACANT, _WAITING, _ON_NODE, _RUNNING = range(4)


def _stage(slot: Slot) -> int:
    """How far the slot's task has advanced; slots with less are removed first."""
    task = slot.runnable
    if task is None:
        return _VACANT
    if waits(task):
        return _WAITING
    return _RUNNING if task.status.state is TaskState.RUNNING else _ON_NODE


def reconcile_global(view: ClusterView, service: Service, draft: Draft) -> None:
    """Bring the service's tasks one step nearer to one on each node that may have it."""
    evict_from_failed_nodes(view, draft)
    eligible = {id for id, node in view.nodes.items() if is_eligible(node, service)}
    served: set[str] = set()
    for slot in draft.kept_slots():
        home = slot.newest.node_id
        if home not in eligible or home in served:
            draft.remove_slot(slot)
        served.add(home)
    new = [
        id
        for id in sorted(eligible - served)
        if view.nodes[id].state is NodeState.READY
        and view.nodes[id].availability is Availability.ACTIVE
    ]
    new = new[: draft.may_add(len(new))]
    known = draft.slots()
    for number, home in zip(draft.free_numbers(len(new)), new, strict=True):
        draft.create(service, number, Start(node_id=home), known.get(number))
    service = updates.advance_status(service, draft)
    updates.replace_outdated(view, service, draft)
    for slot in draft.kept_slots():
        home = slot.newest.node_id
        if not slot.vacant or view.nodes[home].state is NodeState.DOWN:
            continue
        current = is_current(service, slot.newest)
        start = decide_restart(service, slot, draft.now) if current else Start()
        if start is not None:
            draft.create(service, slot.number, replace(start, node_id=home), slot)
    collect_ended(service, draft)
