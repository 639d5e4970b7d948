"""Which nodes are up, judged by when they were last heard of.

When a node was heard of is only in the leader's memory: heartbeats are not written. A new leader
therefore gives each node twice the timeout from the start of its own term, long enough for every
agent to find it, before it calls a node down. So a change of leader moves no tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from orchestrator.manager.planning.plan import Change, Plan, earliest
from orchestrator.manager.planning.views import ClusterView
from orchestrator.model.nodes import Node, NodeDescription, NodeState
from orchestrator.model.objects import Cluster

FLAPS = 2
"""Times that a node goes down lately which make it one to avoid."""

STEADY = 300.0
"""Seconds after which a node that has stayed up is as good as any."""


def expire(
    view: ClusterView, last_heard: Mapping[str, float | None], term_started: float, now: float
) -> Plan:
    """Nodes that have been silent for too long are DOWN; `requeue_at` is the next that may be.

    `last_heard` holds when each node was last heard of in this term, if it was.
    """
    timeout = (view.cluster or Cluster()).node_timeout
    changes: list[Change] = []
    deadlines: list[float] = []
    for id in sorted(view.nodes):
        node = view.nodes[id]
        if node.state is NodeState.DOWN:
            continue
        heard = last_heard.get(id)
        since = max(term_started, node.created_at) if heard is None else heard
        deadline = since + (timeout if heard is not None else 2 * timeout)
        if now < deadline:
            deadlines.append(deadline)
        else:
            changes.append(
                Change(node, node_down(node, f"no heartbeat for {now - since:.1f} s", now))
            )
    return Plan(
        tuple(changes),
        requeue_at=earliest(*deadlines),
        reason="nodes: " + ", ".join(f"{change.subject.id} is down" for change in changes),
    )


def node_down(node: Node, message: str, now: float) -> Node:
    """The node as it is once it is known to be down."""
    downs = (*node.downs, now)[-FLAPS:]
    return replace(node, state=NodeState.DOWN, state_since=now, message=message, downs=downs)


def unsteady(node: Node, now: float) -> bool:
    """Whether the node was down more than once lately: what is placed there would be lost again."""
    return len(node.downs) >= FLAPS and node.downs[0] > now - STEADY


def node_up(node: Node, description: NodeDescription, now: float) -> Node:
    """The node as it is once it has said hello; the same object if that is nothing new."""
    if node.state is NodeState.READY and node.description == description and not node.message:
        return node
    since = node.state_since if node.state is NodeState.READY else now
    return replace(
        node, state=NodeState.READY, state_since=since, message="", description=description
    )
