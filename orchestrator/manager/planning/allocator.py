"""Each node's slice of each network.

A network's subnet is cut into slices of `node_prefix`; a node gets the lowest that is free, and
keeps it, whatever its state, until it leaves the cluster. The first slice is given to no node: it
is kept for addresses that belong to none, such as those of services. A node that finds none left
gets no task of the network, and the scheduler says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network

from orchestrator.manager.planning.addressing import Address, owned, slice_number
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.views import ClusterView
from orchestrator.model.networks import is_sliced, slices_in
from orchestrator.model.objects import Network


def allocate_slices(view: ClusterView) -> tuple[Change, ...]:
    """The networks that change so that every node has a slice of each and no one else has."""
    changes: list[Change] = []
    owners = owned(view)
    for id in sorted(view.networks):
        network = view.networks[id]
        slices = _allocate(network, view.nodes.keys(), owners.get(id, ()))
        if slices != network.slices:
            changes.append(Change(network, replace(network, slices=slices)))
    return tuple(changes)


def _allocate(
    network: Network, node_ids: Set[str], owned_addresses: Iterable[Address]
) -> dict[str, str]:
    kept = {id: subnet for id, subnet in network.slices.items() if id in node_ids}
    missing = sorted(node_ids - kept.keys())
    if not missing or not is_sliced(network):
        return kept
    taken = {slice_number(network, _first(subnet)) for subnet in kept.values()}
    taken |= {slice_number(network, address) for address in owned_addresses}
    pool = IPv4Network(network.pool)
    free = (number for number in range(1, slices_in(network)) if number not in taken)
    for id, number in zip(missing, free, strict=False):
        kept[id] = _slice(pool, network.node_prefix, number)
    return kept


@lru_cache(1 << 14)
def _first(subnet: str) -> IPv4Address:
    """The first address of a subnet. Every pass asks it of each slice there is."""
    return IPv4Network(subnet).network_address


def _slice(pool: IPv4Network, prefix: int, number: int) -> str:
    """The slice of this number, such as `10.128.3.0/24`."""
    return f"{pool.network_address + (number << (pool.max_prefixlen - prefix))}/{prefix}"
