# SPDX-License-Identifier: Apache-2.0
"""Liveness: which nodes are down, judged by the time of their last heartbeat.

Heartbeats are not stored. The leader knows those of its own sessions, and of the sessions of other
managers whether their nodes are silent (`leader.hearing`). A new leader gives each node that it has
not heard of twice the timeout from the start of its own term, long enough for every agent to find a
manager, before it calls a node down. So a change of leader moves no tasks.

Silence is measured with the leader's monotonic clock: a step of its wall clock takes no node down.

If most nodes are quiet at once (silent for half of that time), the likelier cause is the leader's
own network or host. It then suspects itself: none of the nodes counts as down until they have been
silent for another grace period. While nodes reconnect, as after a loss of all sessions, the period
is extended: it restarts whenever fewer nodes are quiet than at any time since the suspicion began.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from orchestrator.manager.planning.plan import Change, Plan, earliest
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import Node, NodeDescription, NodeState, SessionRecord
from orchestrator.model.objects import Cluster

FLAPS = 2
"""Failures within `STEADY` that make a node unsteady."""

STEADY = 300.0
"""Seconds of being up after which a node is steady."""


FEWEST_TO_DOUBT = 3
"""Quiet nodes from which on the leader may doubt itself: with fewer, "most" says little."""


@dataclass(frozen=True, slots=True)
class Hearing:
    """The heartbeats that a leader has received; all times are of its monotonic clock."""

    started: float
    """When its term began."""
    now: float
    heard: Mapping[str, float] = field(default_factory=dict)
    """Node id → time of its last heartbeat."""
    joined: Mapping[str, float] = field(default_factory=dict)
    """Node id → when the leader first saw a node that joined in its term."""
    doubt_since: float | None = None
    """When the leader began to doubt itself, while it does, or when nodes last came back then."""
    fewest: int = 0
    """The fewest nodes that were quiet at a time since it began to."""


@dataclass(frozen=True, slots=True)
class Silence:
    """The nodes that are silent for too long."""

    plans: tuple[Plan, ...]
    """One for each node that is down."""
    look_again_at: float | None
    """The next time, of the monotonic clock, at which a node may be down."""
    doubt_since: float | None = None
    silent: int = 0
    """Nodes that would be down, but for the doubt."""
    fewest: int = 0
    """See `Hearing`."""


def expire(view: ClusterView, hearing: Hearing, now: float) -> Silence:
    """Nodes that have been silent for too long are DOWN since `now`, a time of the wall clock."""
    timeout = (view.cluster or Cluster()).node_timeout
    up = [
        node
        for _, node in sorted(view.nodes.items())
        if node.state is not NodeState.DOWN and not node.awaited
    ]
    silent: list[tuple[Node, float]] = []
    deadlines: list[float] = []
    quiet = 0
    for node in up:
        heard = hearing.heard.get(node.id)
        if heard is not None and heard >= hearing.started:
            since, patience = heard, timeout
        else:  # not in this term
            since = max(hearing.started, hearing.joined.get(node.id, hearing.started))
            patience = 2 * timeout
        quiet += hearing.now > since + patience / 2
        if hearing.now < since + patience:
            deadlines.append(since + patience)
        else:
            silent.append((node, hearing.now - since))
    doubts = quiet >= FEWEST_TO_DOUBT and 2 * quiet > len(up)
    if quiet and (doubts or hearing.doubt_since is not None):
        doubt_since, fewest = hearing.doubt_since, hearing.fewest
        if doubt_since is None or quiet < fewest:
            doubt_since, fewest = hearing.now, quiet
        if hearing.now < doubt_since + 2 * timeout:
            again = earliest(doubt_since + 2 * timeout, *deadlines)
            return Silence((), again, doubt_since, len(silent), fewest)
    plans = tuple(
        _goes_down(node, view.sessions.get(node.id), seconds, now) for node, seconds in silent
    )
    return Silence(plans, earliest(*deadlines))


def _goes_down(node: Node, record: SessionRecord | None, seconds: float, now: float) -> Plan:
    """Mark the node DOWN, unless a session of it begins meanwhile."""
    after = node_down(node, f"no heartbeat for {seconds:.1f} s", now)
    session = record or SessionRecord(id=node.id)
    return Plan((Change(node, after),), (session,), reason=f"nodes: {node.id} is down")


def node_down(node: Node, message: str, now: float) -> Node:
    """The node, marked DOWN."""
    downs = (*node.downs, now)[-FLAPS:]
    return replace(node, state=NodeState.DOWN, state_since=now, message=message, downs=downs)


def unsteady(node: Node, now: float) -> bool:
    """Whether the node was down repeatedly in the last `STEADY` seconds."""
    return len(node.downs) >= FLAPS and node.downs[0] > now - STEADY


def node_up(node: Node, description: NodeDescription, now: float) -> Node:
    """The node, marked READY with its description; the same object if nothing changed."""
    if node.state is NodeState.READY and node.description == description and not node.message:
        return node
    since = node.state_since if node.state is NodeState.READY else now
    return replace(
        node,
        state=NodeState.READY,
        state_since=since,
        message="",
        description=description,
        awaited=False,
    )
