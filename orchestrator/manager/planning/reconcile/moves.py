# SPDX-License-Identifier: Apache-2.0
"""Moves of running tasks to other nodes (`orc rebalance`).

A task with `move_to` is to be moved. A task of the same slot is created for that node; when it
works, the former one is stopped. The service's update order does not matter: a move never makes it
less available. A move is given up, and the former task stays, if the new one fails or finds no
room, if the node is no longer ready and active, or if the service is updated meanwhile.
"""

from __future__ import annotations

from orchestrator.manager.planning.eligibility import is_eligible
from orchestrator.manager.planning.slots import Draft, Slot, Start, ended, is_current, waits
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import Availability, NodeState
from orchestrator.model.services import Service
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task


def is_being_moved(slot: Slot) -> bool:
    """Whether a task of it is to change to another node."""
    return any(task.move_to for task in slot.live)


def advance_moves(view: ClusterView, service: Service, draft: Draft) -> None:
    """Take the next step of each move of the service."""
    for slot in draft.kept_slots():
        moving = [task for task in slot.live if task.move_to]
        if moving:
            _advance(view, service, slot, moving[0], draft)


def _advance(view: ClusterView, service: Service, slot: Slot, old: Task, draft: Draft) -> None:
    beside = [task for task in slot.live if task is not old]
    if not _may_go_on(view, service, old):
        draft.give_up_move(old)
        return
    if beside:
        new = beside[-1]
        if new.status.works:
            draft.stop(old, TaskState.SHUTDOWN)
        elif waits(new) and new.status.message:
            draft.give_up_move(old)
            draft.stop(new, TaskState.SHUTDOWN, "the move was given up")
    elif slot.newest is not old and ended(slot.newest):
        draft.give_up_move(old)
    elif not slot.stopping:
        start = Start(node_id=old.move_to, moved_from=old.node_id)
        draft.create(service, slot.number, start, slot)


def _may_go_on(view: ClusterView, service: Service, task: Task) -> bool:
    home, target = view.nodes.get(task.node_id), view.nodes.get(task.move_to)
    return (
        home is not None
        and target is not None
        and target.state is NodeState.READY
        and target.availability is Availability.ACTIVE
        and is_eligible(home, service)
        and is_eligible(target, service)
        and is_current(service, task)
        and not service.update.moving
    )
