"""The address that a service has of its own in each of its networks.

VIPs are taken from the network's first slice, which no node has; when that is full, from the last
ones that no node has. A service's id says where the search begins, so that an address that has just
come back is hardly ever the next one given, and the same view gives the same plan. A service keeps
its VIPs for life and they go with it. Where no address is left its name stands for its tasks'
addresses, as with the endpoint mode dnsrr.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from orchestrator.manager.planning.addressing import owned, slice_size, twin
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.views import ClusterView
from orchestrator.model.networks import OVERLAY
from orchestrator.model.objects import Network
from orchestrator.model.specs import EndpointMode, ServiceSpec


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


def without_room(view: ClusterView, spec: ServiceSpec) -> str | None:
    """The name of the first network that has no VIP left for a new service of this spec."""
    taken = _taken(view)
    for network in _networks(view, spec):
        if _free(network, taken.get(network.id, set()), spec.name) is None:
            return network.name
    return None


def _networks(view: ClusterView, spec: ServiceSpec) -> Iterator[Network]:
    """The networks in which a service of this spec has a VIP."""
    if spec.endpoint_mode is EndpointMode.DNSRR or spec.mode.is_job:
        return
    for attachment in spec.task.attachments:
        network = view.network_by_name(attachment.network)
        if network is not None and network.driver == OVERLAY and network.subnet:
            yield network


def _taken(view: ClusterView) -> dict[str, set[int]]:
    """Network id → the IPv4 addresses in it that are somebody's."""
    return {
        network_id: {int(address) for address in owners if isinstance(address, IPv4Address)}
        for network_id, owners in owned(view).items()
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
