# SPDX-License-Identifier: Apache-2.0
"""Operations on nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orchestrator.manager.errors import failed_precondition, invalid_argument, not_found
from orchestrator.manager.event_loop import offload
from orchestrator.manager.object_lookup import find_node
from orchestrator.manager.operations.context import Caller, Operations, on_current_state
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.reports.claims import false_node_address
from orchestrator.manager.planning.scheduling.capacity import node_usage
from orchestrator.manager.planning.scheduling.generic_pool import free_on_node
from orchestrator.manager.planning.scheduling.network_filters import encrypts
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.security.certificates import commit_serialized, new_revocation
from orchestrator.manager.store.commit import commit
from orchestrator.model.convert import to_proto
from orchestrator.model.nodes import Availability, Node, NodeState
from orchestrator.model.validation.host_access import ALLOWANCES, allowed, parse_allowances
from orchestrator.model.validation.service_specs import MAX_REPLICAS, check_labels
from orchestrator.pb import control_pb2, types_pb2


class NodeOperations(Operations):
    """Operations of `orc node ls|inspect|update|rm`."""

    async def list_nodes(self, request: control_pb2.ListNodesRequest) -> control_pb2.ListNodesReply:
        """List nodes with their reserved resources."""
        return await offload(_list, self.ctx.view)

    @on_current_state
    async def update_node(self, request: control_pb2.UpdateNodeRequest) -> types_pb2.Node:
        """Change a node's availability, labels, address, allowances, or rotate its key."""
        ctx = self.ctx
        node = find_node(ctx.view, request.node)
        after = _updated(node, request, ctx.now())
        if request.address:
            after = _moved(ctx.view, after, request.address)
        if after == node:
            return to_proto(node)
        # The leader writes the node's health, which this does not touch.
        revision = await commit(ctx.kv, [Change(node, after)])
        await ctx.cache.wait_for(revision)
        return to_proto(replace(after, revision=revision))

    async def remove_node(
        self, request: control_pb2.RemoveNodeRequest, caller: Caller
    ) -> control_pb2.RemoveNodeReply:
        """Remove a node from the cluster and revoke its certificates."""

        def removed(view: ClusterView) -> list[Change]:
            node = find_node(view, request.node)
            if node.state is NodeState.READY and not request.force:
                raise failed_precondition(
                    f"node {node.description.hostname} is up; stop 'orc agent' there first, "
                    "or use --force (its agent then stops its containers and leaves the cluster)"
                )
            # With its certificates, or it could still fetch images from other nodes.
            revocation = new_revocation(
                view,
                role="worker",
                name=node.id,
                now=self.ctx.now(),
                reason="the node was removed from the cluster",
                by=caller.identity.id,
            )
            before = view.revocations.get(revocation.id)
            orphans = [Change(o, None) for o in view.orphans.values() if o.node_id == node.id]
            return [*orphans, Change(node, None), Change(before, revocation)]

        await commit_serialized(self.ctx.kv, self.ctx.cache, removed)
        return control_pb2.RemoveNodeReply()


def _list(view: ClusterView) -> Any:
    rows = []
    for node in sorted(view.nodes.values(), key=lambda n: (n.description.hostname, n.id)):
        usage = node_usage(view, node.id)
        rows.append(
            control_pb2.NodeRow(
                node=to_proto(node),
                reserved=to_proto(usage.reserved),
                tasks=usage.tasks,
                generic_free={
                    kind: free_on_node(view, node, kind)[1]
                    for kind in node.description.generic_resources
                },
            )
        )
    return control_pb2.ListNodesReply(nodes=rows)


def _moved(view: ClusterView, node: Node, address: str) -> Node:
    """The node with the address that its operator sets. Raises RequestError."""
    if reason := false_node_address(view, node, address, address):
        raise failed_precondition(
            f"node {node.description.hostname} cannot have {address}: {reason}"
        )
    return replace(node, description=replace(node.description, address=address))


def _updated(node: Node, request: Any, now: float) -> Node:
    missing = [key for key in request.label_rm if key not in node.labels]
    if missing:
        raise not_found(f"node {request.node} has no label '{missing[0]}'")
    labels = {k: v for k, v in node.labels.items() if k not in set(request.label_rm)}
    labels.update(request.label_add)
    try:
        check_labels(request.label_add)
    except ValueError as error:
        raise invalid_argument(str(error)) from None
    availability = node.availability
    if request.HasField("availability"):
        availability = Availability(request.availability)
        most, deadline = request.max_unavailable, request.deadline
        if (most or deadline) and availability is not Availability.DRAIN:
            raise invalid_argument(
                "max-unavailable and deadline are of a drain; give --availability drain"
            )
        if not 0 <= most <= MAX_REPLICAS or not 0 <= deadline < float("inf"):
            raise invalid_argument("max-unavailable and deadline cannot be negative or without end")
        if availability is Availability.ACTIVE:
            node = replace(node, downs=())  # the operator vouches for it
        node = replace(node, drain_most=most, drain_deadline=now + deadline if deadline else 0.0)
    rotation = node.key_rotation
    if request.rotate_key:
        if not encrypts(node):
            raise failed_precondition(
                f"node {node.description.hostname} has no key: its kernel has no WireGuard, so it"
                " has no encrypted network"
            )
        rotation += 1
    if request.remove_orphans:
        node = replace(node, orphan_removals=node.orphan_removals + 1)
    try:
        allow, disallow = map(parse_allowances, (request.allow, request.disallow))
    except ValueError as error:
        raise invalid_argument(str(error)) from None
    if allow or disallow:
        granted = {*allowed(node), *allow} - set(disallow)
        names = tuple(name for name in ALLOWANCES if name in granted)
        node = replace(node, restricted=True, allowed=names)
    return replace(node, labels=labels, availability=availability, key_rotation=rotation)
