# SPDX-License-Identifier: Apache-2.0
"""Addresses of networks: subnets, VNIs, slices, and addresses with an owner. Pure.

A network's pool is cut into slices. Nodes have one each and give out its addresses themselves. The
first slice belongs to no node: VIPs come from it. A fixed address may be any in the subnet that is
in no node's slice, and a slice with a VIP or a fixed address is not given to a node. The IPv6
subnet is cut in the same way: the nth slice has the nth /64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.networks import (
    CNI,
    NODE_PREFIX,
    SLICE6,
    check_network,
    is_sliced,
    node_prefix,
    slices_in,
)
from orchestrator.model.objects import Network
from orchestrator.model.services import Service
from orchestrator.model.specs import NetworkAttachment, ServiceSpec, TaskSpec
from orchestrator.model.tasks import Task

Address = IPv4Address | IPv6Address
Subnet = IPv4Network | IPv6Network

FIRST_VNI, LAST_VNI = 4097, (1 << 24) - 1
"""Numbers of the networks that users make; the default network has the one before."""

PRIVATE = (IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/12"))
"""Pools from which subnets are chosen by default (RFC 1918)."""

CHOSEN_PREFIX = 16
UNIQUE_LOCAL = 0xFD << 120
"""IPv6 subnets are chosen as RFC 4193 has it: fd, forty bits of an id, and a /48 of that."""


class AddressRefused(Exception):
    """A subnet or address that is not available; one line for the user."""


# -- slices ---------------------------------------------------------------------------------------


@lru_cache(1024)
def _parsed(subnet: str) -> IPv4Network:
    """Cached: every pass parses it for each slice."""
    return IPv4Network(subnet)


def slice_size(network: Network) -> int:
    """How many IPv4 addresses a slice has."""
    pool = _parsed(network.pool)
    return int(1 << (pool.max_prefixlen - max(network.node_prefix, pool.prefixlen)))


def slice_number(network: Network, address: Address) -> int | None:
    """The number of the slice that an address is in; None outside of the pool."""
    if not is_sliced(network):
        return None
    if isinstance(address, IPv4Address):
        pool = _parsed(network.pool)
        if address not in pool:
            return None
        return (int(address) - int(pool.network_address)) // slice_size(network)
    pool6 = IPv6Network(network.subnet6)
    number = (int(address) - int(pool6.network_address)) >> SLICE6
    return number if address in pool6 and number < slices_in(network) else None


def slice6(network: Network, slice_: str) -> str:
    """The IPv6 slice that belongs to an IPv4 slice; empty where the network has none."""
    if not network.subnet6:
        return ""
    number = slice_number(network, IPv4Network(slice_).network_address)
    assert number is not None  # slices are of the pool
    first = IPv6Network(network.subnet6).network_address + (number << SLICE6)
    return f"{first}/{SLICE6}"


def slice_gateway(network: Network, slice_: str) -> str:
    """The gateway's address in a slice: at the place that the network's has in the first one.
    Empty: the first address."""
    if not network.gateway:
        return ""
    place = int(IPv4Address(network.gateway)) - int(IPv4Network(network.pool)[0])
    return str(IPv4Network(slice_)[place])


def twin(network: Network, address: IPv4Address) -> str:
    """The IPv6 address at the place that an IPv4 address of the pool has: the host of the same
    number in the slice of the same number."""
    pool = IPv4Network(network.pool)
    number, host = divmod(int(address) - int(pool.network_address), slice_size(network))
    return str(IPv6Network(network.subnet6).network_address + (number << SLICE6) + host)


# -- addresses with an owner ----------------------------------------------------------------------


def fixed_of(attachment: NetworkAttachment) -> Iterator[Address]:
    """The addresses that an attachment fixes."""
    for text in (*attachment.ip, *attachment.ip6):
        yield ip_address(text)


def owned_addresses(view: ClusterView) -> dict[str, dict[Address, str]]:
    """Network id → addresses that are owned, and their owner: VIPs, fixed addresses, gateways, and
    what damaged objects have claimed."""
    found: dict[str, dict[Address, str]] = {}
    for network in view.networks.values():
        if network.gateway:
            found.setdefault(network.id, {})[IPv4Address(network.gateway)] = "gateway"
    for service in view.services.values():
        for vips in (service.vips, service.vips6):
            for network_id, vip in vips.items():
                found.setdefault(network_id, {})[ip_address(vip)] = _owner(service)
        _note(view, found, service.spec.task, _owner(service))
    for task in view.fixed.values():
        _note(view, found, task.spec, _owner(task))
    for aside in view.quarantined.values():
        for address in map(ip_address, aside.addresses):
            for network in view.networks.values():
                subnet = network.subnet if address.version == 4 else network.subnet6
                if subnet and address in ip_network(subnet):
                    found.setdefault(network.id, {})[address] = f"{aside.key}, which is damaged"
    return found


def _note(
    view: ClusterView, found: dict[str, dict[Address, str]], spec: TaskSpec, owner: str
) -> None:
    for attachment in spec.networks:
        if attachment.ip or attachment.ip6:
            network = view.network_by_name(attachment.network)
            if network is not None:
                found.setdefault(network.id, {}).update(dict.fromkeys(fixed_of(attachment), owner))


def _owner(owner: Service | Task) -> str:
    if isinstance(owner, Service):
        return f"service {owner.spec.name}"
    return f"service {owner.service_name}" if owner.service_id else f"container {owner.name}"


def check_fixed(view: ClusterView, spec: ServiceSpec, owner: str) -> None:
    """Raise AddressRefused unless the spec can have the addresses that it fixes; `owner` is whose
    it is, such as `service web`. Its networks exist."""
    taken: dict[str, dict[Address, str]] | None = None
    for attachment in spec.task.networks:
        if not (attachment.ip or attachment.ip6):
            continue
        network = view.network_by_name(attachment.network)
        assert network is not None
        _check_count(attachment, spec)
        taken = owned_addresses(view) if taken is None else taken
        for address in fixed_of(attachment):
            _check_place(view, network, address)
            whose = taken.get(network.id, {}).get(address, owner)
            if whose != owner:
                raise AddressRefused(
                    f"address {address} of network '{network.name}' belongs to {whose}; choose "
                    "another"
                )


def _check_count(attachment: NetworkAttachment, spec: ServiceSpec) -> None:
    if not spec.name:
        return
    if spec.mode.is_global:
        raise AddressRefused("a global service has a task on every node: it has no fixed addresses")
    most = max(spec.replicas, spec.autoscale.most)
    for addresses in (attachment.ip, attachment.ip6):
        if addresses and len(addresses) < most:
            raise AddressRefused(
                f"service '{spec.name}' has {most} replicas and {len(addresses)} fixed "
                f"addresses in network '{attachment.network}'; give one for each"
            )


def _check_place(view: ClusterView, network: Network, address: Address) -> None:
    if network.driver == CNI or network.ipam_driver:
        return  # its plugins give it, or say why not
    text = network.subnet if isinstance(address, IPv4Address) else network.subnet6
    if not text:
        raise AddressRefused(
            f"network '{network.name}' has no IPv6; make it with 'orc network create --ipv6'"
        )
    subnet = ip_network(text)
    if address not in subnet:
        raise AddressRefused(f"address {address} is not in network '{network.name}' ({subnet})")
    if address in (subnet.network_address, subnet.broadcast_address):
        raise AddressRefused(f"address {address} is not one that a container can have")
    number = slice_number(network, address)
    for node_id, slice_ in network.slices.items():
        if number is not None and number == slice_number(network, ip_network(slice_)[0]):
            node = view.nodes.get(node_id)
            hostname = node.description.hostname if node else node_id
            first = ip_network(f"{ip_network(network.pool)[0]}/{network.node_prefix}")
            own = first if address.version == 4 else slice6(network, str(first))
            raise AddressRefused(
                f"address {address} is in the part of network '{network.name}' that node "
                f"{hostname} gives out; choose one in {own}, which no node has"
            )


# -- new networks ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewNetwork:
    """A new network as given by a user; the rest is chosen."""

    network: Network
    subnets: tuple[str, ...] = ()
    """At most one of IPv4 and one of IPv6."""
    ipv6: bool = False


def complete(view: ClusterView, new: NewNetwork) -> Network:
    """The network with all fields set. Raises AddressRefused and ValueError."""
    network = new.network
    subnet, subnet6 = given_subnets(new)
    network = replace(
        network,
        vni=_free_vni(view),
        subnet=subnet or choose_subnet(view),
        subnet6=subnet6 or (_unique_local(network.id) if new.ipv6 else ""),
    )
    network = with_prefix(network)
    check_network(network)
    check_free(view, network)
    return network


def given_subnets(new: NewNetwork) -> tuple[str, str]:
    """The subnet of IPv4 and that of IPv6 that a user gave; empty for none."""
    subnet4 = [text for text in new.subnets if ":" not in text]
    subnet6 = [text for text in new.subnets if ":" in text]
    if len(subnet4) > 1 or len(subnet6) > 1:
        raise AddressRefused("a network has one subnet of IPv4, and one of IPv6; leave out others")
    return "".join(subnet4), "".join(subnet6)


def with_prefix(network: Network) -> Network:
    """The network with the length of its nodes' slices, as given or chosen."""
    given = network.options.get(NODE_PREFIX, "")
    try:
        prefix = int(given) if given else node_prefix(IPv4Network(network.pool))
    except ValueError:
        prefix = network.node_prefix  # check_network reports it
    return replace(network, node_prefix=prefix)


def check_free(view: ClusterView, network: Network) -> None:
    """Raise AddressRefused for a subnet that overlaps what there is."""
    for text in filter(None, (network.subnet, network.subnet6)):
        if clash := _clash(view, network, ip_network(text)):
            raise AddressRefused(
                f"subnet {text} overlaps {clash}; choose another, or leave --subnet out"
            )


def _free_vni(view: ClusterView) -> int:
    taken = {network.vni for network in view.networks.values()}
    # After the newest, so that a tunnel's number is not at once another network's.
    newest = max(taken, default=FIRST_VNI - 1)
    if newest < LAST_VNI:
        return max(newest + 1, FIRST_VNI)
    for number in range(FIRST_VNI, LAST_VNI):
        if number not in taken:
            return number
    raise AddressRefused("every number that a network can have is taken; remove a network")


def choose_subnet(view: ClusterView) -> str:
    """One that is free."""
    cidr = view.cluster.network_cidr if view.cluster else ""
    used = [ip_network(text) for text, _ in (*_in_use(view), *_of_hosts(view))]
    begin = int(IPv4Network(cidr).broadcast_address) + 1 if cidr else 0
    candidates = [subnet for pool in PRIVATE for subnet in pool.subnets(new_prefix=CHOSEN_PREFIX)]
    for subnet in sorted(candidates, key=lambda each: (int(each[0]) < begin, each)):
        if not any(overlap(subnet, each) for each in used):
            return str(subnet)
    raise AddressRefused(
        f"no subnet is left in {' and '.join(map(str, PRIVATE))}; remove unused "
        "networks ('orc network prune'), or name one with --subnet"
    )


def _unique_local(id: str) -> str:
    bits = int.from_bytes(id.encode(), "big") % (1 << 40)
    return f"{IPv6Address(UNIQUE_LOCAL | bits << 80)}/48"


def _in_use(view: ClusterView) -> Iterable[tuple[str, str]]:
    """Subnets that no new network may overlap, and what each is."""
    for network in sorted(view.networks.values(), key=lambda each: each.name):
        for text in filter(None, (network.subnet, network.subnet6)):
            yield text, f"network '{network.name}' ({text})"


def _of_hosts(view: ClusterView) -> Iterable[tuple[str, str]]:
    """The same of what the nodes' hosts have."""
    for node in sorted(view.nodes.values(), key=lambda each: each.description.hostname):
        description = node.description
        if description.address:
            yield description.address, f"the address {description.address} of a node"
        for route in description.routes:
            yield route, f"a route of node {description.hostname} ({route})"


def _clash(view: ClusterView, network: Network, subnet: Subnet) -> str:
    # A chain of plugins may well give out addresses of the hosts' own network.
    hosts = () if network.driver == CNI else _of_hosts(view)
    for text, what in (*_in_use(view), *hosts):
        if overlap(ip_network(text), subnet):
            return what
    return ""


def overlap(one: Subnet, other: Subnet) -> bool:
    """Whether two subnets, of whatever version, have an address in common."""
    if isinstance(one, IPv4Network) and isinstance(other, IPv4Network):
        return one.overlaps(other)
    return isinstance(one, IPv6Network) and isinstance(other, IPv6Network) and one.overlaps(other)
