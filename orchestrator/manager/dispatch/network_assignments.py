# SPDX-License-Identifier: Apache-2.0
"""The networks that each node is assigned, with their peers.

A node has the networks of its tasks, the default network, and those of services and containers with
published ports, since every node serves those. An agent with the feature "network-changes" gets
each network in full once, then deltas; an older agent gets the full list at each change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from orchestrator.manager.planning.networking.addresses import slice6, slice_gateway
from orchestrator.manager.planning.networking.plugin_networks import conflist_for
from orchestrator.manager.planning.scheduling.network_filters import encrypts
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.convert import to_proto
from orchestrator.model.networks import OVERLAY, is_ours, is_sliced, own_addresses
from orchestrator.model.nodes import Node, TunnelKey
from orchestrator.model.objects import Network
from orchestrator.model.specs import DEFAULT_NETWORK
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.pb import dispatch_pb2

_Fixed = Mapping[str, Mapping[str, list[str]]]
"""Network name → node id → addresses."""


_MadeFor = tuple[int, Node | None, Set[str]]
"""What a node's list was computed from: revision, node, and the names of its tasks' networks."""


class NetworkAssignments:
    """The networks of all nodes; one object serves all sessions. Compares views by identity: what a
    view shares with its predecessor is skipped, so a joining node costs one peer in each of its
    networks."""

    def __init__(self) -> None:
        self.revision = 0
        """Increases with each change that may affect the list of any node other than its
        subject."""
        self._view = ClusterView()
        self._fixed: _Fixed = {}
        self._path_mtu = 0
        self._told: dict[str, _NetworkState] = {}
        """By network id."""
        self._everywhere: frozenset[str] = frozenset()
        """Names of the networks that every node has."""
        self._of: dict[str, tuple[_MadeFor, list[Any]]] = {}
        """Node id → what its list was computed from, and the list."""

    def of(self, view: ClusterView, node_id: str) -> list[Any]:
        """The complete list for one node; the same object as long as it is unchanged."""
        self.follow(view)
        needed = _networks_of_tasks(view, node_id)
        made_for = self.revision, view.nodes.get(node_id), needed
        known = self._of.get(node_id)
        if known is not None and known[0] == made_for:
            return known[1]
        found = []
        for network in self._of_node(view, node_id, needed):
            order = self._own_assignment(view, network, node_id)
            order.peers.extend(
                peer
                for subnet, peer in self._told[network.id].peers.items()
                if subnet != order.subnet
            )
            found.append(order)
        if known is not None and known[1] == found:
            found = known[1]
        self._of[node_id] = made_for, found
        return found

    def changes(
        self, view: ClusterView, node_id: str, told: SentNetworks
    ) -> tuple[list[Any], list[str]]:
        """The changes for a node that was sent `told`, which is updated: a `NetworkChange` per
        changed network, and ids of networks that it no longer has."""
        self.follow(view)
        needed = _networks_of_tasks(view, node_id)
        made_for = self.revision, view.nodes.get(node_id), needed
        if told.made_for == made_for:
            return [], []
        told.made_for = made_for
        changes: list[Any] = []
        wanted: set[str] = set()
        for network in self._of_node(view, node_id, needed):
            wanted.add(network.id)
            here, (known, revision) = self._told[network.id], told.of.get(network.id, (None, 0))
            own = self._own_assignment(view, network, node_id)
            if known != own or revision != here.revision:
                told.of[network.id] = own, here.revision
                changes.append(here.since(revision, own))
        removed = sorted(told.of.keys() - wanted)
        for network_id in removed:
            del told.of[network_id]
        return changes, removed

    def follow(self, view: ClusterView) -> None:
        """Process a new view."""
        if view is self._view:
            return
        before, self._view = self._view, view
        grown = False
        if view.services is not before.services or view.publishing is not before.publishing:
            everywhere = frozenset(_everywhere(view))
            grown, self._everywhere = everywhere != self._everywhere, everywhere
        networks, nodes = before.networks, before.nodes
        looked_at: set[str] | None = set()
        if view.fixed is not before.fixed:
            fixed = fixed_addresses(view)
            looked_at = looked_at if fixed == self._fixed else None
            self._fixed = fixed
        path_mtu = self._path_mtu
        if view.nodes is not nodes:
            path_mtu = least_path_mtu(view)
            if looked_at is not None:
                looked_at = {
                    id
                    for id in view.nodes.keys() | nodes.keys()
                    if view.nodes.get(id) is not nodes.get(id)
                }
        same_mtu, self._path_mtu = path_mtu == self._path_mtu, path_mtu
        for id, network in view.networks.items():
            if network is not networks.get(id):
                self._refresh(view, network, None)
                grown = True
            elif looked_at is None or looked_at or not same_mtu:
                grown = self._refresh(view, network, looked_at) or grown
        if view.networks is not networks:
            for id in self._told.keys() - view.networks.keys():
                del self._told[id]
                grown = True
        self.revision += grown

    def _refresh(self, view: ClusterView, network: Network, nodes: Set[str] | None) -> bool:
        """Refresh the network's record, considering only peers in `nodes` (None: all nodes). Return
        whether it changed."""
        told = self._told.get(network.id)
        known = told is not None
        if told is None:
            told = self._told[network.id] = _NetworkState()
        base = _assignment(network, self._path_mtu)
        changed = not known or base != told.base
        told.base = base
        fixed = self._fixed.get(network.name, {})
        if network.driver != OVERLAY:
            return told.set_peers({}) or changed
        if nodes is None:
            peers: dict[str, _PeerAttributes] = {}
            for id, subnet in sorted(network.slices.items()):
                if (facts := _peer(view, network, id, subnet, fixed)) is not None:
                    peers[subnet] = facts
            return told.set_peers(peers) or changed
        for id in nodes:
            if subnet := network.slices.get(id, ""):
                changed = told.set_peer(subnet, _peer(view, network, id, subnet, fixed)) or changed
        return changed

    def _of_node(self, view: ClusterView, node_id: str, needed: Set[str]) -> Iterator[Network]:
        """The networks of a node, by id."""
        named = map(view.network_by_name, self._everywhere | needed)
        for network in sorted(filter(None, named), key=lambda each: each.id):
            if is_sliced(network) and not network.slices.get(node_id):
                continue
            if network.name not in needed and not is_ours(network.driver):
                continue  # its ports are published on its own node only
            if network.encrypted and not encrypts(view.nodes.get(node_id)):
                continue
            yield network

    def _own_assignment(self, view: ClusterView, network: Network, node_id: str) -> Any:
        """The network's assignment for one node, without peers."""
        order = dispatch_pb2.AssignedNetwork()
        order.CopyFrom(self._told[network.id].base)
        if slice_ := network.slices.get(node_id, ""):
            order.subnet = slice_
            order.subnet6 = slice6(network, slice_)
            order.gateway = slice_gateway(network, slice_)
        if network.conflist and (node := view.nodes.get(node_id)) is not None:
            order.conflist = conflist_for(network, node, order.subnet6, order.gateway)
        if network.encrypted:
            order.key_rotation = view.nodes[node_id].key_rotation
        return order


@dataclass(slots=True)
class SentNetworks:
    """What a node was sent of its networks."""

    made_for: _MadeFor | None = None
    of: dict[str, tuple[Any, int]] = field(default_factory=dict)
    """Network id → the network without peers, and the revision of its peers."""


@dataclass(frozen=True, slots=True)
class _PeerAttributes:
    """The node attributes that a peer entry is made from."""

    subnet: str
    address: str
    subnet6: str
    addresses: tuple[str, ...]
    keys: tuple[TunnelKey, ...]


class _NetworkState:
    """A network's assignment, common to all nodes; each change of its peers is a revision."""

    def __init__(self) -> None:
        self.base = dispatch_pb2.AssignedNetwork()
        """All that is the same on every node, without peers."""
        self.peers: dict[str, Any] = {}
        """Subnet → NetworkPeer."""
        self.revision = 1
        self._facts: dict[str, _PeerAttributes] = {}
        self._changed: dict[str, int] = {}
        """Subnet → revision of its last change, in that order; includes removed peers."""

    def set_peers(self, peers: Mapping[str, _PeerAttributes]) -> bool:
        """Set all peers; whether anything has changed."""
        changed = [self.set_peer(subnet, None) for subnet in self.peers.keys() - peers.keys()]
        changed += [self.set_peer(subnet, facts) for subnet, facts in peers.items()]
        return any(changed)

    def set_peer(self, subnet: str, facts: _PeerAttributes | None) -> bool:
        """Set or remove one peer; whether anything has changed."""
        if self._facts.get(subnet) == facts:
            return False
        self.revision += 1
        self._changed.pop(subnet, None)
        self._changed[subnet] = self.revision
        if facts is None:
            del self._facts[subnet], self.peers[subnet]
            return True
        self._facts[subnet] = facts
        self.peers[subnet] = dispatch_pb2.NetworkPeer(
            subnet=subnet,
            address=facts.address,
            subnet6=facts.subnet6,
            addresses=facts.addresses,
            tunnel_keys=map(to_proto, facts.keys),
        )
        return True

    def since(self, revision: int, own: Any) -> Any:
        """The change for a node that is at peer revision `revision` (0 for none), and now has
        `own`."""
        change = dispatch_pb2.NetworkChange(network=own, complete=not revision)
        if not revision:
            change.network.peers.extend(self.peers.values())
            return change
        for subnet, changed in reversed(self._changed.items()):
            if changed <= revision:
                break
            if subnet in self.peers:
                change.network.peers.append(self.peers[subnet])
            else:
                change.gone_peers.append(subnet)
        return change


def _networks_of_tasks(view: ClusterView, node_id: str) -> Set[str]:
    """Names of the networks of a node's own tasks."""
    return {
        name
        for task in view.tasks_of_node(node_id).values()
        if not is_terminal(task.status.state)
        for name in task.spec.network_names
    }


def _peer(
    view: ClusterView, network: Network, id: str, subnet: str, fixed: Mapping[str, list[str]]
) -> _PeerAttributes | None:
    node = view.nodes.get(id)
    if node is None or not node.description.address:
        return None
    return _PeerAttributes(
        subnet,
        node.description.address,
        slice6(network, subnet),
        tuple(fixed.get(id, ())),
        node.description.tunnel_keys if network.encrypted else (),
    )


def _everywhere(view: ClusterView) -> Iterable[str]:
    yield DEFAULT_NETWORK
    for service in view.services.values():
        if service.spec.task.ports:
            yield from service.spec.task.network_names
    for task in view.publishing.values():
        if not is_terminal(task.status.state):
            yield from task.spec.network_names


def _assignment(network: Network, path_mtu: int) -> Any:
    """The part of a network's assignment that is the same on every node."""
    return dispatch_pb2.AssignedNetwork(
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
        path_mtu=path_mtu,
        ipam_driver=network.ipam_driver,
        ipam_options=network.ipam_options,
    )


def least_path_mtu(view: ClusterView) -> int:
    """The smallest path MTU between nodes in bytes, as far as it was measured, including nodes that
    are down, since they will return; 0 if unknown."""
    known = (node.description.path_mtu for node in view.nodes.values())
    return min(filter(None, known), default=0)


def fixed_addresses(view: ClusterView) -> _Fixed:
    """Locations of the addresses that specs fix: those of tasks that run or are about to. While a
    replacement starts elsewhere, the address is there and not at its predecessor."""
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
