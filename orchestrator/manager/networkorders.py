"""What each node is told of networks.

A node has the networks that its tasks are on, the default one, and those of services and containers
with published ports, since any node is asked for them. What is told is made anew only when
something has changed that it was made from.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Set
from typing import Any

from orchestrator.manager.planning.addressing import slice6, slice_gateway
from orchestrator.manager.planning.foreignnetworks import conflist_for
from orchestrator.manager.planning.networkrules import encrypts
from orchestrator.manager.planning.views import ClusterView
from orchestrator.model.convert import to_proto
from orchestrator.model.networks import OVERLAY, is_ours, is_sliced, own_addresses
from orchestrator.model.objects import Network
from orchestrator.model.specs import DEFAULT_NETWORK
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.pb import dispatch_pb2

_Fixed = Mapping[str, Mapping[str, list[str]]]
"""Network name → node id → addresses."""


class NetworkOrders:
    """The networks of all nodes; one object serves all sessions."""

    def __init__(self) -> None:
        self._made_from: tuple[object, ...] = ()
        self._users: tuple[object, ...] = ()
        self._orders: dict[str, Any] = {}
        """Network id → its AssignedNetwork, but for what is a node's own."""
        self._everywhere: frozenset[str] = frozenset()
        """Names of the networks that every node has."""
        self._of: dict[str, tuple[tuple[Set[str], Set[str]], list[Any]]] = {}
        """Node id → the names that its list was made for, all and those of its own tasks, and the
        list."""

    def of(self, view: ClusterView, node_id: str) -> list[Any]:
        """The complete list for one node; the same object for as long as it is the same."""
        self._follow(view)
        needed = {
            name
            for task in view.tasks_of_node(node_id).values()
            if not is_terminal(task.status.state)
            for name in task.spec.network_names
        }
        names = self._everywhere | needed
        known = self._of.get(node_id)
        if known is not None and known[0] == (names, needed):
            return known[1]
        found = []
        for network in sorted(view.networks.values(), key=lambda each: each.id):
            slice_ = network.slices.get(node_id, "")
            if network.name not in names or (is_sliced(network) and not slice_):
                continue
            if network.name not in needed and not is_ours(network.driver):
                continue  # its ports are published where its containers are
            if network.encrypted and not encrypts(view.nodes.get(node_id)):
                continue
            order = dispatch_pb2.AssignedNetwork()
            order.CopyFrom(self._orders[network.id])
            if slice_:
                order.subnet = slice_
                order.subnet6 = slice6(network, slice_)
                order.gateway = slice_gateway(network, slice_)
            if network.conflist and (node := view.nodes.get(node_id)) is not None:
                order.conflist = conflist_for(network, node, order.subnet6, order.gateway)
            if network.encrypted:
                order.key_rotation = view.nodes[node_id].key_rotation
            for index, peer in enumerate(order.peers):
                if peer.subnet == slice_:
                    del order.peers[index]
                    break
            found.append(order)
        self._of[node_id] = (names, needed), found
        return found

    def _follow(self, view: ClusterView) -> None:
        users = view.services, view.publishing
        if not _same(users, self._users):
            self._users = users
            self._everywhere = frozenset(_everywhere(view))
        made_from = view.networks, view.nodes, view.fixed
        if _same(made_from, self._made_from):
            return
        self._made_from = made_from
        self._of = {}
        fixed = fixed_addresses(view)
        self._orders = {
            network.id: _order(view, network, fixed.get(network.name, {}))
            for network in view.networks.values()
        }


def _same(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    """Whether these are the same objects: a view shares with the one before what is as it was."""
    return len(one) == len(other) and all(map(operator.is_, one, other))


def _everywhere(view: ClusterView) -> Iterable[str]:
    yield DEFAULT_NETWORK
    for service in view.services.values():
        if service.spec.task.ports:
            yield from service.spec.task.network_names
    for task in view.publishing.values():
        if not is_terminal(task.status.state):
            yield from task.spec.network_names


def _order(view: ClusterView, network: Network, fixed: Mapping[str, list[str]]) -> Any:
    order = dispatch_pb2.AssignedNetwork(
        id=network.id,
        name=network.name,
        vni=network.vni,
        cluster_cidr=network.subnet,
        driver=network.driver,
        internal=network.internal,
        cluster_cidr6=network.subnet6,
        options=network.options,
        encrypted=network.encrypted,
        policies=map(to_proto, network.policies),
        path_mtu=least_path_mtu(view),
        ipam_driver=network.ipam_driver,
        ipam_options=network.ipam_options,
    )
    for id, subnet in sorted(network.slices.items()):
        peer = view.nodes.get(id)
        if network.driver == OVERLAY and peer is not None and peer.description.address:
            order.peers.add(
                subnet=subnet,
                address=peer.description.address,
                subnet6=slice6(network, subnet),
                addresses=fixed.get(id, ()),
                tunnel_keys=map(to_proto, peer.description.tunnel_keys)
                if network.encrypted
                else (),
            )
    return order


def least_path_mtu(view: ClusterView) -> int:
    """Bytes of the largest packet that gets from each node to each other one, as far as they have
    found out; also from those that are down, as they come back. 0: nothing is known."""
    known = (node.description.path_mtu for node in view.nodes.values())
    return min(filter(None, known), default=0)


def fixed_addresses(view: ClusterView) -> _Fixed:
    """Where the addresses are that specs fix: those of tasks that run or are about to. While a
    replacement begins elsewhere, it has the address and not the one before it."""
    owners: dict[tuple[str, str], str] = {}
    for task in sorted(view.fixed.values(), key=lambda each: (each.created_at, each.id)):
        if not task.node_id or not TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING:
            continue
        for attachment in task.spec.networks:
            for address in filter(None, own_addresses(attachment, task.slot)):
                owners[attachment.network, address] = task.node_id
    found: dict[str, dict[str, list[str]]] = {}
    for (network, address), node_id in sorted(owners.items()):
        found.setdefault(network, {}).setdefault(node_id, []).append(address)
    return found
