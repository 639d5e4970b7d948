"""Each node's slice of each network.

A network's subnet is cut into slices of `node_prefix`; a node gets the lowest that is free, and
keeps it, whatever its state, until it leaves the cluster. The first slice is given to no node: it
is kept for addresses that belong to none, such as those of services. A node that finds none left
gets no task of the network, and the scheduler says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_network

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.views import ClusterView
from orchestrator.model.objects import Network

_Subnet = IPv4Network | IPv6Network


def allocate_slices(view: ClusterView) -> tuple[Change, ...]:
    """The networks that change so that every node has a slice of each and no one else has."""
    changes: list[Change] = []
    for id in sorted(view.networks):
        network = view.networks[id]
        slices = _allocate(network, view.nodes.keys(), _vips(view, id))
        if slices != network.slices:
            changes.append(Change(network, replace(network, slices=slices)))
    return tuple(changes)


def _vips(view: ClusterView, network_id: str) -> Iterator[str]:
    """The addresses of services, which are outside the first slice when that is full."""
    for service in view.services.values():
        if vip := service.vips.get(network_id):
            yield vip


def _allocate(network: Network, node_ids: Set[str], vips: Iterable[str]) -> dict[str, str]:
    kept = {id: subnet for id, subnet in network.slices.items() if id in node_ids}
    missing = sorted(node_ids - kept.keys())
    if not missing or not network.subnet:
        return kept
    pool = ip_network(network.subnet)
    taken = {_position(pool, network.node_prefix, subnet) for subnet in kept.values()}
    taken |= {_position(pool, network.node_prefix, vip) for vip in vips}
    total = 1 << max(network.node_prefix - pool.prefixlen, 0)
    free = (number for number in range(1, total) if number not in taken)
    for id, number in zip(missing, free, strict=False):
        kept[id] = _slice(pool, network.node_prefix, number)
    return kept


def _position(pool: _Subnet, prefix: int, subnet: str) -> int:
    """The number of a slice within the pool."""
    offset = int(ip_network(subnet).network_address) - int(pool.network_address)
    return offset >> (pool.max_prefixlen - prefix)


def _slice(pool: _Subnet, prefix: int, number: int) -> str:
    """The slice of this number, such as `10.128.3.0/24`."""
    return f"{pool.network_address + (number << (pool.max_prefixlen - prefix))}/{prefix}"
