# SPDX-License-Identifier: Apache-2.0
"""Evictions: tasks leave nodes that have failed, were removed, or are drained.

**Failed nodes.** A node that leaves the cluster takes its tasks along. One that is down may come
back; its service's `--on-disconnect` policy decides meanwhile:

* *replace*: its tasks are given up (ORPHANED), at once or after a while, and rescheduled. A node
  that comes back stops what was given up.
* *keep*: they stay, and continue when their node is back, unless they are to stop anyway.
* *stop*: their node stops them itself once it has been disconnected for that time; they are given
  up one grace period later, when they must have ended.

**Drained nodes.** By default, a service that stops first leaves at once, and one that starts first
leaves when its replacement works. The drain's `--max-unavailable` and the service's disruption
budget bound how many of a service's slots may be without a working task, for whatever reason,
before the next is stopped. From the drain's deadline on, all tasks leave at once, however they are
replaced. The budget also holds for tasks whose node no longer meets a constraint.
"""

from __future__ import annotations

from orchestrator.manager.planning.disruptions import disruptions_left, unavailable
from orchestrator.manager.planning.slots import Draft, ended, waits
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import Availability, Node, NodeState
from orchestrator.model.placement import KEPT, Disconnect, DisconnectAction
from orchestrator.model.scheduling.disruptions import DisruptionBudget
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task


def evict_from_failed_nodes(view: ClusterView, draft: Draft) -> None:
    """Give up the tasks whose node is removed, or down for longer than their service's policy
    allows."""
    rule = draft.service.spec.on_disconnect if draft.service is not None else Disconnect()
    for task in list(draft.tasks.values()):
        if waits(task) or ended(task):
            continue
        node = view.nodes.get(task.node_id)
        if node is None:
            draft.orphan(task, "its node was removed from the cluster")
        elif node.state is NodeState.DOWN:
            _evict(task, node, rule, draft)


def _evict(task: Task, node: Node, rule: Disconnect, draft: Draft) -> None:
    name = node.description.hostname or node.id
    if rule.action is DisconnectAction.KEEP and task.desired_state <= TaskState.RUNNING:
        draft.set_message(task, f"{KEPT}{name}, which is down")
        return
    patience = _disconnect_timeout(task, rule)
    at = node.state_since + patience
    if not patience or draft.now >= at:
        draft.orphan(task, f"node {name} is down")
    else:
        draft.requeue_by(at)


def _disconnect_timeout(task: Task, rule: Disconnect) -> float:
    """Seconds after which the task of a node that is down is given up."""
    match rule.action:
        case DisconnectAction.REPLACE:
            return rule.after
        case DisconnectAction.STOP:
            return rule.after + task.spec.container.stop_grace
        case DisconnectAction.KEEP:
            return 0.0


def enforce_drain_deadlines(view: ClusterView, draft: Draft) -> None:
    """Stop the remaining tasks of nodes whose drain deadline has passed; requeues the draft at the
    next deadline."""
    for task in list(draft.tasks.values()):
        node = view.nodes.get(task.node_id)
        if node is None or not has_drain_deadline(node) or ended(task) or waits(task):
            continue
        if draft.now >= node.drain_deadline:
            draft.stop(task, TaskState.SHUTDOWN)
        elif task.desired_state <= TaskState.RUNNING:
            draft.requeue_by(node.drain_deadline)


def may_evict_now(view: ClusterView, task: Task, draft: Draft) -> bool:
    """Whether a task that stops first, and is no longer eligible for its node, is stopped now."""
    if not task.status.works:
        return True
    node = view.nodes.get(task.node_id)
    if (
        node is not None
        and node.availability is Availability.DRAIN
        and node.drain_most
        and unavailable(draft.kept_slots()) >= node.drain_most
    ):
        return False
    if draft.service is None or draft.service.spec.disruption == DisruptionBudget():
        return True
    return disruptions_left(draft.service, draft.kept_slots()) > 0


def has_drain_deadline(node: Node) -> bool:
    """Whether it is drained with a deadline."""
    return node.availability is Availability.DRAIN and node.drain_deadline > 0
