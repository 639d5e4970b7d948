# SPDX-License-Identifier: Apache-2.0
"""Filters: which nodes can take a task, and the reason for those that cannot.

A filter has both the condition and its message. `filters_for` yields those that apply to a demand,
in the order in which a user would ask: is the node up, does it accept tasks, is it eligible, has it
the capacity. A new rule is one `Filter` there, and a field of `node_table.Demand` if it needs one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from orchestrator.manager.planning.eligibility import satisfies, satisfies_rule
from orchestrator.manager.planning.node_load import Port
from orchestrator.manager.planning.reconcile.service_dependencies import unmet_dependency
from orchestrator.manager.planning.scheduling.affinity import affinity_filters
from orchestrator.manager.planning.scheduling.capacity import BoolArray, fits
from orchestrator.manager.planning.scheduling.network_filters import (
    namespace_holder,
    network_filters,
    unusable_network,
)
from orchestrator.manager.planning.scheduling.node_table import Demand, Filter, NodeTable
from orchestrator.manager.planning.scheduling.volume_placement import (
    NodeRule,
    container_named,
    node_rules,
    only_on,
    unusable_volume,
)
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.compatibility.agent_features import describe_feature
from orchestrator.model.names import parse_image
from orchestrator.model.networks import takes_foreign_sources
from orchestrator.model.nodes import Availability, NodeState
from orchestrator.model.placement import GenericResource
from orchestrator.model.scheduling.constraints import NODE_LABELS, Rule, parse_rule
from orchestrator.model.specs import Protocol
from orchestrator.model.states import TaskState
from orchestrator.model.validation.host_access import UNCHECKED_SOURCES, allows, refusal

NO_NODES = "no suitable node (the cluster has no nodes; join one with orc cluster join)"


def filters_for(view: ClusterView, table: NodeTable, demand: Demand) -> Iterator[Filter]:
    """The rules that apply to this demand. Raises `RuleError` for one that cannot be parsed."""
    yield from _UP
    if not demand.is_rerun:
        yield from _WELCOME
        for text in demand.constraints:
            yield _constraint(view, text)
        yield from affinity_filters(view, table, demand)
    for rule in node_rules(view, table.pinned, demand.volumes, demand.volumes_from):
        yield _node_rule(rule)
    for name in demand.networks:
        network = view.network_by_name(name)
        if network is not None:
            yield from network_filters(network, table.nodes)
            if takes_foreign_sources(network.options):
                yield _allowance(table, demand, UNCHECKED_SOURCES)
        elif (holder := namespace_holder(view, name)) is not None:
            yield _node_rule(only_on(view, holder.node_id, f"container {holder.name} is on"))
    if demand.namespace_of and (holder := container_named(view, demand.namespace_of)) is not None:
        yield _node_rule(only_on(view, holder.node_id, f"container {holder.name} is on"))
    for name in demand.allowances:
        yield _allowance(table, demand, name)
    for feature in demand.features:
        yield _feature(feature)
    for port in demand.ports:
        yield _port(port)
    if most := demand.max_per_node:
        yield Filter(
            lambda table: table.tasks_of_service(demand.service_id) < most,
            f"already has {most} {'task' if most == 1 else 'tasks'} of the service, the maximum",
        )
    shares, memory = demand.resources.shares, demand.resources.memory
    yield Filter(
        lambda table: fits(table.free_shares, shares), "insufficient shares", capacity=True
    )
    yield Filter(
        lambda table: fits(table.free_memory, memory), "insufficient memory", capacity=True
    )
    for each in demand.generic:
        yield _generic(each)


def _cannot_share_namespaces(view: ClusterView, word: str) -> str | None:
    """Why the namespaces of this container cannot be shared; None if they can."""
    holder = container_named(view, word)
    if holder is None:
        return f"no container {word}, whose namespaces it shares"
    if holder.status.state is not TaskState.RUNNING:
        return f"container {word}, whose namespaces it shares, is not running"
    return None


def impossible(view: ClusterView, demand: Demand) -> str | None:
    """Why no node can take it regardless of capacity; None if some might."""
    if not view.nodes:
        return NO_NODES
    if (reason := unmet_dependency(view, view.services.get(demand.service_id))) is not None:
        return reason
    for name in demand.networks:
        if (reason := unusable_network(view, name)) is not None:
            return reason
    if (
        demand.namespace_of
        and (reason := _cannot_share_namespaces(view, demand.namespace_of)) is not None
    ):
        return reason
    if demand.image_digest:
        image = view.images.get(demand.image_digest)
        holders = image.nodes if image else ()
        up = any(id in view.nodes and view.nodes[id].state is NodeState.READY for id in holders)
        # An image that no node ever had, or that is named after a registry, is pulled from there.
        # One that was built here waits for a node that has it.
        if image is not None and not up and not parse_image(demand.image).registry:
            return f"no node that is up has image {demand.image}"
    return unusable_volume(view, demand.volumes, demand.volumes_from)


def candidates(table: NodeTable, demand: Demand) -> BoolArray:
    """The rows to consider: all, or the one row of a task that is bound to a node."""
    if not demand.node_id:
        return np.ones(len(table.nodes), dtype=np.bool_)
    return _mask(table, {table.row[demand.node_id]} if demand.node_id in table.row else set())


def explain(rejects: Sequence[tuple[str, int]], summary: str = "no suitable node") -> str:
    """The pending reason for counts of rejected nodes, such as
    `no suitable node (2 nodes: insufficient memory; 1 node: down)`."""
    ordered = sorted((item for item in rejects if item[1]), key=lambda item: -item[1])
    if not ordered:
        return f"{summary} (its node was removed from the cluster)"
    parts = (f"{count} {'node' if count == 1 else 'nodes'}: {why}" for why, count in ordered)
    return f"{summary} ({'; '.join(parts)})"


_UP = (
    Filter(lambda table: table.state != NodeState.DOWN, "down"),
    Filter(lambda table: table.state != NodeState.UNKNOWN, "no report received yet"),
)
_WELCOME = (
    Filter(lambda table: table.availability != Availability.PAUSE, "paused"),
    Filter(lambda table: table.availability != Availability.DRAIN, "drained"),
)


def _constraint(view: ClusterView, text: str) -> Filter:
    rule = parse_rule(text)
    words = f"constraint {text} not met"
    if rule.attribute == "node.id" and not rule.negated and len(rule.values) == 1:
        # As --node is kept, where a user wrote a name.
        node = view.nodes.get(*rule.values)
        words = f"not {node.description.hostname}" if node else words
    elif rule.attribute.startswith(NODE_LABELS) and not rule.negated:
        words += _reported(view, rule)
    return Filter(
        lambda table: table.each_node(("rule", text), lambda node: satisfies_rule(rule, node)),
        words,
        lasting=True,
    )


def _reported(view: ClusterView, rule: Rule) -> str:
    """A hint, if an agent reports the label but no operator has set it."""
    label = rule.attribute.removeprefix(NODE_LABELS)
    if any(node.description.labels.get(label) in rule.values for node in view.nodes.values()):
        return f", though an agent reports engine.labels.{label}"
    return ""


def _node_rule(rule: NodeRule) -> Filter:
    return Filter(
        lambda table: np.array([rule.allows(node) for node in table.nodes], dtype=np.bool_),
        rule.words,
        rule.lasting,
    )


def _feature(name: str) -> Filter:
    return Filter(
        lambda table: table.each_node(
            ("feature", name), lambda node: name in node.description.features
        ),
        f"its agent is too old for {describe_feature(name)}",
    )


def _allowance(table: NodeTable, demand: Demand, name: str) -> Filter:
    passing = table.each_node(("allowance", name), lambda node: allows(node, name))
    refusing = [table.nodes[row] for row in np.flatnonzero(~passing & candidates(table, demand))]
    asked = [node for node in refusing if satisfies(node, demand.constraints)]
    hostname = asked[0].description.hostname if len(asked) == 1 else ""
    return Filter(lambda table: passing, refusal(name, hostname), lasting=True)


def _generic(wanted: GenericResource) -> Filter:
    words = f"insufficient {wanted.kind}"
    if wanted.names:
        words = f"no free {wanted.kind} {', '.join(wanted.names)}"
    elif wanted.every:
        words = f"no {wanted.kind}, or not all of them free"
    # Which tasks have the ones that are named is not considered.
    relievable = not wanted.names
    return Filter(lambda table: table.generic.available(wanted), words, capacity=relievable)


def _port(port: Port) -> Filter:
    number, protocol = port
    name = "udp" if protocol is Protocol.UDP else "tcp"
    return Filter(
        lambda table: ~_mask(table, table.ports.get(port, set())),
        f"port {number}/{name} in use",
        capacity=True,
    )


def _mask(table: NodeTable, rows: set[int]) -> BoolArray:
    mask = np.zeros(len(table.nodes), dtype=np.bool_)
    mask[list(rows)] = True
    return mask
