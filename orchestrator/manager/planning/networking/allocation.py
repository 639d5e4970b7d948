# SPDX-License-Identifier: Apache-2.0
"""Allocation: each node's slice of each network, and each service's VIPs.

**Slices.** A network's subnet is cut into slices of `node_prefix`; a node gets the lowest that is
free, and keeps it, whatever its state, until it leaves the cluster. The first slice is given to no
node: it is kept for addresses that belong to none, such as VIPs. A node without a slice gets no
task of the network, and the scheduler says so.

**VIPs** are taken from the network's first slice; when that is full, from the last ones that no
node has. A service's id says where the search begins, so that a released address is hardly ever
the next one given, and the same view gives the same plan. A service keeps its VIPs for life. Where
no address is left, its name resolves to its tasks' addresses, as with the endpoint mode dnsrr.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Set
from dataclasses import replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network

from orchestrator.manager.planning.networking.addresses import (
    Address,
    owned_addresses,
    slice_number,
    slice_size,
    twin,
)
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.networks import OVERLAY, is_sliced, slices_in
from orchestrator.model.objects import Network
from orchestrator.model.specs import EndpointMode, ServiceSpec


def allocate_slices(view: ClusterView) -> tuple[Change, ...]:
    """The networks that change so that every node has a slice of each and no one else has."""
    changes: list[Change] = []
    owners = owned_addresses(view)
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


def allocate_vips(view: ClusterView, service_ids: Iterable[str]) -> tuple[Change, ...]:
    """The services among these that change so that each has the VIPs it should have."""
    changes: list[Change] = []
    taken: dict[str, set[int]] | None = None
    for id in sorted(service_ids):
        service = view.services.get(id)
        if service is None or service.removed:
            continue
        networks = list(_networks(view, service.spec))
        vips = {each.id: service.vips[each.id] for each in networks if each.id in service.vips}
        for network in networks:
            if network.id not in vips:
                taken = _taken(view) if taken is None else taken
                used = taken.setdefault(network.id, set())
                if (number := _free(network, used, id)) is not None:
                    used.add(number)
                    vips[network.id] = str(IPv4Address(number))
        vips6 = {
            each.id: twin(each, IPv4Address(vips[each.id]))
            for each in networks
            if each.subnet6 and each.id in vips
        }
        if (vips, vips6) != (service.vips, service.vips6):
            changes.append(Change(service, replace(service, vips=vips, vips6=vips6)))
    return tuple(changes)


def _networks(view: ClusterView, spec: ServiceSpec) -> Iterator[Network]:
    """The networks in which a service of this spec has a VIP."""
    if spec.endpoint_mode is EndpointMode.DNSRR or spec.mode.is_job:
        return
    for attachment in spec.task.attachments:
        network = view.network_by_name(attachment.network)
        if network is not None and network.driver == OVERLAY and network.subnet:
            yield network


def _taken(view: ClusterView) -> dict[str, set[int]]:
    """Network id → the IPv4 addresses in it that are owned."""
    return {
        network_id: {int(address) for address in owners if isinstance(address, IPv4Address)}
        for network_id, owners in owned_addresses(view).items()
    }


def _free(network: Network, taken: set[int], seed: str) -> int | None:
    """An address for a service, as a number."""
    pool, size = IPv4Network(network.pool), slice_size(network)
    # Not the network's address, nor the gateway's, nor the broadcast's, where it is a slice.
    first, count = 2, size - 3
    if count < 1:
        return None
    held = {int(IPv4Network(slice).network_address) for slice in network.slices.values()}
    begin = zlib.crc32(seed.encode())
    for base in _slices(int(pool.network_address), pool.num_addresses // size, size):
        if base in held:
            continue
        for step in range(count):
            number = base + first + (begin + step) % count
            if number not in taken:
                return number
    return None


def _slices(base: int, count: int, size: int) -> Iterator[int]:
    """The first address of each slice: the first one, then from the last backwards."""
    yield base
    for number in range(count - 1, 0, -1):
        yield base + number * size
