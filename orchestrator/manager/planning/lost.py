"""What becomes of tasks whose node is down or gone.

A node that leaves the cluster takes its tasks along. One that is down may come back, and what is to
be done meanwhile is its service's to say (`--on-disconnect`):

* *replace*: its tasks are given up, at once or after a while, and their slots filled elsewhere. A
  node that comes back stops what was given up.
* *keep*: they stay, and go on when their node does, unless they are to stop anyway.
* *stop*: their node stops them by itself when it has been alone for so long; they are given up when
  they are sure to have ended, which is their grace later.

So a node that comes back has in its orders exactly what is wanted of it.
"""

from __future__ import annotations

from orchestrator.manager.planning.slots import Draft, ended, waits
from orchestrator.manager.planning.views import ClusterView
from orchestrator.model.nodes import Node, NodeState
from orchestrator.model.placement import KEPT, Disconnect, DisconnectAction
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task


def give_up_lost(view: ClusterView, draft: Draft) -> None:
    """Give up the tasks whose node is gone, or down for as long as their service bears."""
    rule = draft.service.spec.on_disconnect if draft.service is not None else Disconnect()
    for task in list(draft.tasks.values()):
        if waits(task) or ended(task):
            continue
        node = view.nodes.get(task.node_id)
        if node is None:
            draft.give_up(task, "its node was removed from the cluster")
        elif node.state is NodeState.DOWN:
            _lose(task, node, rule, draft)


def _lose(task: Task, node: Node, rule: Disconnect, draft: Draft) -> None:
    name = node.description.hostname or node.id
    if rule.action is DisconnectAction.KEEP and task.desired_state <= TaskState.RUNNING:
        draft.say(task, f"{KEPT}{name}, which is down")
        return
    patience = _patience(task, rule)
    at = node.state_since + patience
    if not patience or draft.now >= at:
        draft.give_up(task, f"node {name} is down")
    else:
        draft.look_again(at)


def _patience(task: Task, rule: Disconnect) -> float:
    """Seconds after which the task of a node that is down is given up."""
    match rule.action:
        case DisconnectAction.REPLACE:
            return rule.after
        case DisconnectAction.STOP:
            return rule.after + task.spec.container.stop_grace
        case DisconnectAction.KEEP:
            return 0.0
