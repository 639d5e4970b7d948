# SPDX-License-Identifier: Apache-2.0
"""Services at rest: those that need not be reconciled while their tasks only advance.

Most changes of tasks are steps towards RUNNING. They matter to a service that is being updated or
moved, since its next step waits for them. In a service at rest every replica has one task that may
stay, so there is nothing to decide until a task ends, the service changes, or a node does. That
makes the start of a large service cost what is started, not its size with each report.
"""

from __future__ import annotations

from dataclasses import fields

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.reconcile.updates import outdated
from orchestrator.manager.planning.slots import Draft, ended, waits
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import NodeState
from orchestrator.model.services import Service
from orchestrator.model.specs import ServiceMode
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task

_ADVANCES = {"status", "running_since", "revision"}
"""Fields of a task that change as it advances."""

_PLACED = {"node_id", "generic_resources", "nominated_node"}
"""Further fields that change when it is placed."""

_KEPT = tuple(each.name for each in fields(Task) if each.name not in _ADVANCES)


def is_at_rest(view: ClusterView, service: Service, draft: Draft) -> bool:
    """Whether nothing is left to decide about a service that has been reconciled in this draft,
    until one of its tasks ends, or something else than its tasks changes."""
    if service.spec.mode is not ServiceMode.REPLICATED or service.removed:
        return False
    if service.update.moving or draft.limited:
        return False
    return all(
        len(slot.live) <= 1 and all(_may_stay(view, service, task) for task in slot.live)
        for slot in draft.kept_slots()
    )


def _may_stay(view: ClusterView, service: Service, task: Task) -> bool:
    if task.move_to or outdated(view, service, task):
        return False
    if waits(task):
        return True
    node = view.nodes.get(task.node_id)
    return node is not None and node.state is not NodeState.DOWN


def only_advances(change: Change) -> bool:
    """Whether a task was created, was placed, or came nearer to RUNNING, and nothing else."""
    before, after = change.before, change.after
    if not isinstance(after, Task) or ended(after):
        return False
    if before is None:
        return after.desired_state <= TaskState.RUNNING
    if not isinstance(before, Task) or ended(before):
        return False
    is_placed = waits(before) and not waits(after)
    return all(
        (is_placed and name in _PLACED) or _same(getattr(before, name), getattr(after, name))
        for name in _KEPT
    )


def _same(old: object, new: object) -> bool:
    return old is new or old == new
