"""Sums for listings."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.manager.planning.resources import occupies, reserved
from orchestrator.manager.planning.views import ClusterView
from orchestrator.model.nodes import Node, NodeState
from orchestrator.model.specs import Resources
from orchestrator.model.states import TaskState


@dataclass(frozen=True, slots=True)
class NodeUsage:
    """What a node's tasks take from it: the sum of what the scheduler counts, and their number."""

    reserved: Resources
    tasks: int


def node_usage(view: ClusterView, node_id: str) -> NodeUsage:
    """What the tasks of the node take that have not ended."""
    tasks = view.tasks_of_node(node_id).values()
    return NodeUsage(reserved(tasks), sum(occupies(task) for task in tasks))


def running_tasks(view: ClusterView, service_id: str) -> int:
    """How many tasks of the service do their work, on a node that is not down, and are not told
    to stop."""
    return sum(
        task.status.works
        and task.desired_state <= TaskState.RUNNING
        and not _is_down(view.nodes.get(task.node_id))
        for task in view.tasks_of_service(service_id).values()
    )


def _is_down(node: Node | None) -> bool:
    return node is not None and node.state is NodeState.DOWN
