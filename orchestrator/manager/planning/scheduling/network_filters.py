# SPDX-License-Identifier: Apache-2.0
"""Filters of networks: which nodes can have a task on a network, and the reason for the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from ipaddress import ip_network

import numpy as np

from orchestrator.manager.planning.networking.addresses import overlap, slice_size
from orchestrator.manager.planning.networking.plugin_networks import Lack, lacks
from orchestrator.manager.planning.scheduling.capacity import BoolArray
from orchestrator.manager.planning.scheduling.node_table import Filter, NodeTable
from orchestrator.manager.planning.scheduling.volume_placement import container_named
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.networks import ENCRYPTED, is_ours, is_sliced, stands_alone
from orchestrator.model.nodes import Node, NodeState
from orchestrator.model.objects import Network
from orchestrator.model.specs import CONTAINER_NETWORK, DEFAULT_NETWORK
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task

NOT_FOR_CONTAINERS = 3
"""Addresses of a slice: its own, the gateway's, the broadcast's."""


def network_filters(network: Network, nodes: Sequence[Node]) -> Iterator[Filter]:
    """The filters that a network adds; `nodes` are all nodes."""
    if not is_ours(network.driver):
        up = [node for node in nodes if node.state is NodeState.READY]
        for lack in lacks(network, up):
            yield _without(lack)
    if is_sliced(network):
        yield from _slice_rules(network)
    if network.encrypted:
        yield Filter(
            lambda table: table.each_node("encrypts", encrypts),
            f"its kernel has no WireGuard, for encrypted network {network.name}",
            lasting=True,
        )


def _without(lack: Lack) -> Filter:
    return Filter(lambda table: _each(table, lack.spares), lack.words, lasting=True)


def _slice_rules(network: Network) -> Iterator[Filter]:
    """Filters of a network whose subnet is cut into slices for nodes."""
    yield Filter(
        lambda table: table.each_node(
            ("slice", network.id), lambda node: node.id in network.slices
        ),
        f"no subnet of network {network.name} left for it",
    )
    room = slice_size(network) - NOT_FOR_CONTAINERS
    yield Filter(
        lambda table: table.attached(network.name) < room,
        f"no address of network {network.name} left on it",
    )
    if not is_ours(network.driver):
        return  # on a node, its plugins choose the subnet, such as the host's LAN
    subnets = tuple(text for text in (network.subnet, network.subnet6) if text)
    yield Filter(
        lambda table: table.each_node(
            ("routes", network.id), lambda node: not _overlap(node.description.routes, subnets)
        ),
        f"a route of it overlaps network {network.name}",
        lasting=True,
    )


def encrypts(node: Node | None) -> bool:
    """Whether a node can have encrypted networks."""
    return node is not None and ENCRYPTED in node.description.network_features


def namespace_holder(view: ClusterView, network: str) -> Task | None:
    """The container that `container:NAME` means."""
    if not network.startswith(CONTAINER_NETWORK):
        return None
    return container_named(view, network.removeprefix(CONTAINER_NETWORK))


def unusable_network(view: ClusterView, name: str) -> str | None:
    """Why no node can take a task on this network; None if some might."""
    if name.startswith(CONTAINER_NETWORK):
        word = name.removeprefix(CONTAINER_NETWORK)
        holder = namespace_holder(view, name)
        if holder is None:
            return f"no container {word}, whose network it shares"
        if holder.status.state is not TaskState.RUNNING:
            return f"container {word}, whose network it shares, is not running"
        return None
    if name == DEFAULT_NETWORK or stands_alone(name):
        return None
    network = view.network_by_name(name)
    if network is None:
        return f"network {name} does not exist"
    return f"network {name} is being removed" if network.removing else None


def _each(table: NodeTable, passes: Callable[[Node], bool]) -> BoolArray:
    return np.array([passes(node) for node in table.nodes], dtype=np.bool_)


@lru_cache(maxsize=1 << 16)
def _overlap(routes: tuple[str, ...], subnets: tuple[str, ...]) -> bool:
    """Whether a route overlaps a subnet. Remembered, since each pass asks it of all nodes."""
    return any(
        overlap(ip_network(route), ip_network(subnet)) for route in routes for subnet in subnets
    )
