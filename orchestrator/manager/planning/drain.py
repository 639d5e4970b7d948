"""How tasks leave a node that is drained.

Without more said, what stops first leaves at once, and what starts first leaves when its
replacement works. A drain may be told how many tasks of a service it makes unavailable at the
most (`--max-unavailable`): then what stops first is stopped only while fewer of the service's
slots are without a task that works, for whatever reason. And it may have a deadline: from then on
all leave at once, however they are replaced.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.manager.planning.slots import Draft, Slot, ended, waits
from orchestrator.manager.planning.views import ClusterView
from orchestrator.model.nodes import Availability, Node
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task


def keep_deadlines(view: ClusterView, draft: Draft) -> None:
    """Stop what is still on a node whose drain waits no more; asks the draft to look again at the
    next deadline."""
    for task in list(draft.tasks.values()):
        node = view.nodes.get(task.node_id)
        if node is None or not draining(node) or ended(task) or waits(task):
            continue
        if draft.now >= node.drain_deadline:
            draft.stop(task, TaskState.SHUTDOWN)
        elif task.desired_state <= TaskState.RUNNING:
            draft.look_again(node.drain_deadline)


def must_leave(view: ClusterView, task: Task, draft: Draft) -> bool:
    """Whether a task that stops first, and has no place on its node any more, is stopped now."""
    node = view.nodes.get(task.node_id)
    if node is None or node.availability is not Availability.DRAIN:
        return True
    if not node.drain_most or not task.status.works:
        return True
    return _away(draft.kept_slots()) < node.drain_most


def draining(node: Node) -> bool:
    """Whether time alone may decide something of its tasks."""
    return node.availability is Availability.DRAIN and node.drain_deadline > 0


def _away(slots: Iterable[Slot]) -> int:
    """How many slots have no task that works."""
    return sum(not any(task.status.works for task in slot.live) for slot in slots)
