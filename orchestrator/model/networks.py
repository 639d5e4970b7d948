# SPDX-License-Identifier: Apache-2.0
"""Networks and attachments: drivers, options, validation. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    ip_network,
)
from typing import TYPE_CHECKING, TypeVar

from orchestrator.model.names import check_hostname, check_name, near_miss
from orchestrator.model.specs import (
    BRIDGE_NETWORK,
    CONTAINER_NETWORK,
    DEFAULT_NETWORK,
    HOST_NETWORK,
    NO_NETWORK,
    NetworkAttachment,
    TaskSpec,
)

if TYPE_CHECKING:
    from orchestrator.model.objects import Network
    from orchestrator.model.tasks import TaskStatus

Subnet = TypeVar("Subnet", IPv4Network, IPv6Network)

OVERLAY, BRIDGE, CNI = "overlay", "bridge", "cni"
DRIVERS = (OVERLAY, BRIDGE, CNI)
"""Drivers: across all nodes; a bridge on each node with NAT; a chain of CNI plugins. Any other name
is that of a network plugin of Docker's protocol."""

BUILT_IN = (DEFAULT_NETWORK, BRIDGE_NETWORK, HOST_NETWORK, NO_NETWORK)
"""Networks that every cluster has, and that cannot be created or removed."""

MTU, NODE_PREFIX, SOURCE_CHECK = "mtu", "node-prefix", "source-check"
ALLOWED_SOURCES = "allowed-sources"
OPTIONS = (MTU, NODE_PREFIX, SOURCE_CHECK, ALLOWED_SOURCES)
"""Options of `--opt`: MTU in bytes, prefix length of a node's slice, whether source addresses of
containers' packets are checked, and which they may use besides their own."""

ENCRYPTED = "encrypted"
"""Feature of a node that can encrypt networks."""

CONFLIST, SCOPE = "conflist", "scope"
"""Options of `--opt` for a chain of CNI plugins: its file, and the scope of its networks."""

CHAINS = "cni"
"""Feature (`network_features`) of a node that can run chains of CNI plugins."""

NO_IPAM = "null"
"""The `--ipam-driver` of a network whose plugin assigns addresses itself."""

LOCAL, GLOBAL = "local", "global"
"""Scope of a third-party network: connects containers of one node, or of all."""

TUNNELS6 = IPv6Network("fd6f:7263::/32")
"""Addresses that nodes have inside the tunnels of encrypted networks (`cni.sealed`)."""

DOCKER_MTU = "com.docker.network.driver.mtu"
"""Docker's name for the option `mtu`."""

SMALLEST_MTU, SMALLEST_MTU6, LARGEST_MTU = 576, 1280, 65485
"""Bytes that every host must accept (RFC 791, RFC 8200), and 64 KiB less a tunnel's overhead."""

LONGEST_SLICE = 29
"""Prefix length of the smallest slice: its own address, gateway, broadcast, five containers."""

SLICE6 = 64
"""Prefix length of a node's slice of IPv6."""

NOT_CONNECTED = "not connected: "
"""Prefix of the message of a running task that could not be connected to, or disconnected from, a
network since it runs."""

_TRUE, _FALSE = ("1", "t", "true"), ("0", "f", "false")
"""Docker's spellings of a boolean option, in lower case."""

_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")


def stands_alone(network: str) -> bool:
    """Whether it is a network namespace (`none`, `host`, `container:`), not a network."""
    return network in (NO_NETWORK, HOST_NETWORK) or network.startswith(CONTAINER_NETWORK)


def own_addresses(attachment: NetworkAttachment, slot: int) -> tuple[str, str]:
    """The fixed IPv4 and IPv6 address of a slot; empty if it has none. Slots begin with 1;
    standalone containers (slot 0) have the first."""
    index = max(slot - 1, 0)
    ip, ip6 = attachment.ip, attachment.ip6
    return ip[index] if index < len(ip) else "", ip6[index] if index < len(ip6) else ""


def network_container(spec: TaskSpec) -> str:
    """The container whose network namespace it shares; empty: its own."""
    (*_, last) = spec.network_names
    return last.removeprefix(CONTAINER_NETWORK) if last.startswith(CONTAINER_NETWORK) else ""


def connected(spec: TaskSpec, attachment: NetworkAttachment) -> TaskSpec:
    """The spec with another network, or with a changed attachment to it. Raises ValueError."""
    kept = [each for each in spec.attachments if each.network != attachment.network]
    if [each.network for each in kept] == [NO_NETWORK]:
        kept = []
    if kept and stands_alone(kept[0].network):
        raise ValueError(f"on network {kept[0].network} it can be on no other")
    found = replace(spec, networks=(*kept, attachment))
    check_attachments(found)
    return found


def is_connected(attachments: Sequence[NetworkAttachment], slot: int, status: TaskStatus) -> bool:
    """Whether the observed networks of a task are those of its spec."""
    wanted = [each for each in attachments if not stands_alone(each.network)]
    addresses, addresses6 = status.addresses, status.addresses6
    if {each.network for each in wanted} != addresses.keys() | addresses6.keys():
        return False
    for each in wanted:
        ip, ip6 = own_addresses(each, slot)
        if ip not in ("", addresses.get(each.network)):
            return False
        if ip6 and IPv6Address(ip6) != IPv6Address(addresses6.get(each.network, "::")):
            return False
    return True


def disconnected(spec: TaskSpec, network: str) -> TaskSpec:
    """The spec without a network; one that is on none then has loopback only."""
    kept = tuple(each for each in spec.attachments if each.network != network)
    return replace(spec, networks=kept or (NetworkAttachment(NO_NETWORK),))


def check_attachments(spec: TaskSpec) -> None:
    """Raise ValueError for the first invalid attachment of a task."""
    names = [each.network for each in spec.networks]
    if len(set(names)) < len(names):
        raise ValueError("a network is named twice")
    for each in spec.networks:
        _check(each)
        if not stands_alone(each.network):
            continue
        if len(names) > 1:
            raise ValueError(f"with network {each.network} there can be no other network")
        if spec.ports:
            raise ValueError(f"with network {each.network} no port can be published{_why(each)}")


def _why(attachment: NetworkAttachment) -> str:
    if attachment.network == HOST_NETWORK:
        return ": its ports are the node's own"
    return ""


def _check(attachment: NetworkAttachment) -> None:
    name = attachment.network
    if name.startswith(CONTAINER_NETWORK):
        if name == CONTAINER_NETWORK:
            raise ValueError("network 'container:' names no container; write container:NAME")
    else:
        check_name(name, "network name")
    if stands_alone(name) and (attachment.aliases or attachment.ip or attachment.ip6):
        raise ValueError(f"on network {name} a container has no alias and no address of its own")
    for alias in attachment.aliases:
        check_hostname(alias)
    _check_addresses(attachment.ip, IPv4Address, "an IPv4 address")
    _check_addresses(attachment.ip6, IPv6Address, "an IPv6 address")
    if attachment.mac and not _MAC.fullmatch(attachment.mac):
        raise ValueError(f"{attachment.mac!r} is not a hardware address such as 02:42:0a:00:00:02")


def _check_addresses(
    texts: Sequence[str], kind: type[IPv4Address] | type[IPv6Address], what: str
) -> None:
    for text in texts:
        try:
            kind(text)
        except ValueError:
            raise ValueError(f"{text!r} is not {what}") from None
    if len(set(texts)) < len(texts):
        raise ValueError("an address is given twice")


def node_prefix(pool: IPv4Network) -> int:
    """The default prefix length of the slices that a pool is cut into: /24 of a /16 and
    of what is larger; of smaller pools as many slices as each then has addresses, or one more bit
    of slices, as the first of them is no node's."""
    return min(max(24, (pool.prefixlen + 33) // 2), LONGEST_SLICE)


def slices_in(network: Network) -> int:
    """How many slices the network's pool has; the first of them is no node's."""
    pool = IPv4Network(network.pool)
    return int(1 << max(network.node_prefix - pool.prefixlen, 0))


def is_ours(driver: str) -> bool:
    """Whether Orc itself implements the driver."""
    return driver in (OVERLAY, BRIDGE)


def is_sliced(network: Network) -> bool:
    """Whether the network's subnet is cut into slices for nodes."""
    return bool(network.subnet) and not network.ipam_driver


def stays_on_node(driver: str, options: Mapping[str, str]) -> bool:
    """Whether containers of the network reach only others on the same node."""
    return driver == BRIDGE or (not is_ours(driver) and options.get(SCOPE) == LOCAL)


def read_encrypted(value: str | None) -> bool:
    """The value of the option `encrypted`, None where it is not given; without a value it is on.
    Raises ValueError for any other value, so that a typo leaves no network unencrypted."""
    text = "false" if value is None else value.lower() or "true"
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError(f"network option encrypted={value} is not a boolean (true or false)")


def checks_sources(options: Mapping[str, str]) -> bool:
    """Whether nodes drop what containers send with other source addresses than their own: unless
    the option `source-check` is off. Raises ValueError for a value that is neither on nor off."""
    value = options.get(SOURCE_CHECK, "on")
    text = value.lower()
    if text in ("on", *_TRUE):
        return True
    if text in ("off", *_FALSE):
        return False
    raise ValueError(f"network option {SOURCE_CHECK}={value} is neither on nor off")


def allowed_sources(options: Mapping[str, str]) -> tuple[str, ...]:
    """The addresses that each container may send with besides its own, as networks that do not
    overlap: the option `allowed-sources`, separated by commas. Raises ValueError."""
    four: list[IPv4Network] = []
    six: list[IPv6Network] = []
    for text in filter(None, options.get(ALLOWED_SOURCES, "").split(",")):
        try:
            found = ip_network(text)
        except ValueError:
            raise ValueError(
                f"network option {ALLOWED_SOURCES}={text} is neither an address nor a subnet such "
                "as 192.168.50.0/24"
            ) from None
        if found.is_multicast or found.is_loopback:
            raise ValueError(
                f"network option {ALLOWED_SOURCES}: {found} is not an address to send from"
            )
        if isinstance(found, IPv4Network):
            four.append(found)
        else:
            six.append(found)
    return tuple(map(str, (*collapse_addresses(four), *collapse_addresses(six))))


def takes_foreign_sources(options: Mapping[str, str]) -> bool:
    """Whether containers of the network may send with source addresses that are not their own."""
    return not checks_sources(options) or bool(allowed_sources(options))


def check_network_name(name: str) -> None:
    """Raise ValueError for an invalid name of a new network."""
    check_name(name, "network name")
    if name.lower() in BUILT_IN:
        raise ValueError(f"there is a network '{name}' in every cluster; choose another name")


def check_network(network: Network) -> None:
    """Raise ValueError for the first invalid field of a network (except its name), regardless of
    the cluster."""
    if not is_ours(network.driver):
        check_foreign(network)
        return
    if network.conflist:
        raise ValueError(f"driver {network.driver} has no conflist; write --driver cni")
    if network.ipam_driver:
        raise ValueError(
            f"a network of driver {network.driver} gives out its addresses itself; leave out "
            "--ipam-driver"
        )
    if network.encrypted and network.driver != OVERLAY:
        raise ValueError(f"a network of driver {network.driver} leaves no node: nothing to encrypt")
    if any(not key.strip() for key in network.labels):
        raise ValueError("a label has no name; write KEY=value")
    _check_options(network.options, bool(network.subnet6))
    _check_ranges(network)


def check_foreign(network: Network) -> None:
    """Raise ValueError for the first invalid field of a network of a plugin."""
    what = "a CNI network" if network.driver == CNI else f"a network of plugin {network.driver}"
    for said, words in (
        (network.encrypted, "--opt encrypted"),
        (network.internal and network.driver == CNI, "--internal"),
    ):
        if said:
            raise ValueError(f"{words} is not ours to give {what}: its plugins decide that")
    if any(not key.strip() for key in network.labels):
        raise ValueError("a label has no name; write KEY=value")
    scope = network.options.get(SCOPE, LOCAL)
    if scope not in (LOCAL, GLOBAL):
        raise ValueError(f"network option {SCOPE}={scope} is neither {LOCAL} nor {GLOBAL}")
    _check_sources(network.options)
    if network.driver == CNI:
        _check_chain(network)
    elif network.conflist:
        raise ValueError(f"{what} has no conflist; write --driver cni")
    if is_sliced(network):
        _check_ranges(network)
    elif network.subnet:
        parse_subnet(network.subnet, IPv4Network)


def _check_chain(network: Network) -> None:
    """Check a network with driver `cni`."""
    # Not for those who have none.
    from orchestrator.model.formats.conflist import ConflistError, parse_conflist, wants_slices

    if not network.conflist:
        raise ValueError("a CNI network needs --opt conflist=FILE, the list of its plugins")
    known = (SCOPE, NODE_PREFIX, SOURCE_CHECK, ALLOWED_SOURCES)
    for key in network.options:
        if key not in known:
            meant = near_miss(key, known)
            hint = f"did you mean '{meant}'?" if meant else f"there are {', '.join(known)}"
            raise ValueError(
                f"network option '{key}' is unknown to a CNI network; {hint}, and what its plugins "
                "are to know stands in the conflist"
            )
    if network.ipam_driver:
        raise ValueError("a CNI network has its ipam in the conflist; leave out --ipam-driver")
    try:
        parse_conflist(network.conflist)
    except ConflistError as error:
        raise ValueError(f"conflist: {error}") from None
    if bool(network.subnet) is not wants_slices(network.conflist):
        raise ValueError(
            "--subnet is for a conflist that speaks of {{.Network.Subnet}} or of {{.Node.Subnet}}, "
            "the part of it that each node has; this one does not"
        )


def _check_options(options: Mapping[str, str], ipv6: bool) -> None:
    for key, value in options.items():
        if key not in OPTIONS:
            meant = near_miss(key, OPTIONS)
            hint = f"did you mean '{meant}'?" if meant else f"there are {', '.join(OPTIONS)}"
            raise ValueError(f"network option '{key}' is unknown; {hint}")
        if key not in (SOURCE_CHECK, ALLOWED_SOURCES) and not value.isdecimal():
            raise ValueError(f"network option {key}={value} is not a number")
    _check_sources(options)
    least = SMALLEST_MTU6 if ipv6 else SMALLEST_MTU
    if MTU in options and not least <= int(options[MTU]) <= LARGEST_MTU:
        raise ValueError(f"an mtu of {options[MTU]} bytes is not in {least}-{LARGEST_MTU}")


def _check_sources(options: Mapping[str, str]) -> None:
    checked, allowed = checks_sources(options), allowed_sources(options)
    if allowed and not checked:
        raise ValueError(f"without {SOURCE_CHECK} all sources are allowed: leave out one of them")


def _check_ranges(network: Network) -> None:
    """Check its subnets, and what must lie in them."""
    subnet = parse_subnet(network.subnet, IPv4Network)
    pool = parse_subnet(network.pool, IPv4Network)
    if not pool.subnet_of(subnet):
        raise ValueError(f"ip-range {pool} is not a part of the subnet {subnet}")
    prefix = network.node_prefix
    if not max(pool.prefixlen + 1, 16) <= prefix <= LONGEST_SLICE:
        if NODE_PREFIX not in network.options:
            raise ValueError(
                f"{pool} is too small to give each node a part of it; /{LONGEST_SLICE - 2} is the "
                "smallest that does"
            )
        raise ValueError(
            f"{NODE_PREFIX} {prefix} does not cut {pool} in parts; it is "
            f"{max(pool.prefixlen + 1, 16)} to {LONGEST_SLICE}"
        )
    if network.gateway:
        _check_gateway(network, pool)
    if network.subnet6:
        subnet6 = parse_subnet(network.subnet6, IPv6Network)
        if subnet6.overlaps(TUNNELS6):
            raise ValueError(
                f"subnet {subnet6} overlaps {TUNNELS6}, which encrypted networks have between"
                " nodes; choose another"
            )
        longest = SLICE6 - (prefix - pool.prefixlen)
        if subnet6.prefixlen > longest:
            raise ValueError(
                f"{subnet6} has no /{SLICE6} for each part of {pool}; /{longest} is the smallest "
                "that has"
            )


def _check_gateway(network: Network, pool: IPv4Network) -> None:
    try:
        gateway = IPv4Address(network.gateway)
    except ValueError:
        raise ValueError(f"gateway {network.gateway!r} is not an IPv4 address") from None
    first = IPv4Network((pool.network_address, network.node_prefix))
    if gateway not in first or gateway in (first.network_address, first.broadcast_address):
        raise ValueError(
            f"gateway {gateway} is not in {first}: each node's part has one at the place that the "
            "network's has in the first part"
        )


def parse_subnet(text: str, kind: type[Subnet]) -> Subnet:
    """A subnet that containers can have addresses of. Raises ValueError."""
    version = "IPv4" if kind is IPv4Network else "IPv6"
    try:
        subnet = kind(text)
    except ValueError as error:
        if "host bits" in str(error):
            meant = kind(text, strict=False)
            raise ValueError(f"subnet {text} has host bits set; did you mean {meant}?") from None
        raise ValueError(
            f"{text!r} is not an {version} subnet such as "
            f"{'10.5.0.0/16' if version == 'IPv4' else 'fd00:5::/48'}"
        ) from None
    if subnet.is_multicast or subnet.is_loopback or subnet.is_link_local or not subnet.prefixlen:
        raise ValueError(f"subnet {subnet} is not for hosts; choose another")
    return subnet
