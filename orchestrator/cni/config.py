"""A network configuration, as a runtime or the agent hands it over: parsed, checked, typed.

Pure. Keys besides those of the CNI specification, with their defaults:

    bridge        name of the bridge                             "orc0"
    subnet        this host's part of the network                required
    clusterCIDR   the whole network: not masqueraded within      subnet
    ipMasq        masquerade what leaves the network             true
    mtu           bytes; 0 derives it from the underlay          0
    dataDir       where addresses are kept                       "/var/lib/orc/cni"
    vni           VXLAN network identifier; absent: no overlay
    vxlan         name of the tunnel device                      "orcvx" + vni
    vxlanPort     UDP port                                       4789
    nodeAddress   this host's address on the underlay            required with vni
    peers         [{"subnet": ..., "address": ...}]              []

Runtimes may pass `runtimeConfig.portMappings`, and one fixed address in `runtimeConfig.ips` or
`args.cni.ips`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

from .errors import CniError, Code
from .netlink import NAME_LIMIT
from .peers import Peer
from .vxlan import DEFAULT_PORT

VERSION = "1.1.0"
SUPPORTED = ("0.4.0", "1.0.0", "1.1.0")
IDENTIFIER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
INTERFACE = re.compile(r"[a-zA-Z][a-zA-Z0-9_.\-]{0,14}")
PROTOCOLS = ("tcp", "udp", "sctp")
LONGEST_PREFIX = 29  # network address, gateway, broadcast, and five containers
ANY_ADDRESS = IPv4Address(0)


@dataclass(frozen=True, slots=True, order=True)
class PortMapping:
    """`host_port` of this host leads to `container_port`; `host_ip` 0.0.0.0 is any address."""

    host_port: int
    container_port: int
    protocol: str = "tcp"
    host_ip: IPv4Address = ANY_ADDRESS

    def __str__(self) -> str:
        where = "" if self.host_ip == ANY_ADDRESS else f"{self.host_ip}:"
        return f"{where}{self.host_port}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class Overlay:
    """The part of a configuration that spans hosts."""

    vni: int
    device: str
    port: int
    me: Peer
    peers: tuple[Peer, ...]


@dataclass(frozen=True, slots=True)
class NetConf:
    """A network on this host."""

    version: str
    name: str
    bridge: str
    subnet: IPv4Network
    cluster: IPv4Network
    masquerade: bool
    mtu: int
    data_dir: Path
    overlay: Overlay | None
    ports: tuple[PortMapping, ...]
    requested: IPv4Address | None
    dns: Mapping[str, Any]
    previous: Mapping[str, Any] | None
    valid: frozenset[tuple[str, str]] | None


def invalid(message: str) -> CniError:
    """A configuration that cannot be meant."""
    return CniError(Code.INVALID_CONFIG, message)


def decode(data: str | bytes) -> dict[str, Any]:
    """Decode a JSON object; raises `CniError` DECODING_FAILURE."""
    try:
        decoded = json.loads(data)
    except ValueError as error:
        raise CniError(
            Code.DECODING_FAILURE, "the network configuration is not valid JSON", str(error)
        ) from error
    if not isinstance(decoded, dict):
        raise CniError(Code.DECODING_FAILURE, "the network configuration is not a JSON object")
    return decoded


def version_of(raw: Mapping[str, Any]) -> str:
    """The version that the caller speaks; raises `CniError` INCOMPATIBLE_VERSION."""
    version = raw.get("cniVersion", "0.1.0")  # the specification's meaning of a missing version
    if version not in SUPPORTED:
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"CNI version {version} is not supported: use one of {', '.join(SUPPORTED)}",
        )
    return str(version)


def parse(raw: Mapping[str, Any]) -> NetConf:
    """Check a decoded configuration; raises `CniError` with the reason."""
    version = version_of(raw)
    name = _text(raw, "name")
    if not IDENTIFIER.fullmatch(name):
        raise invalid(f"name {name!r}: use letters, digits, dots, dashes and underscores")
    ipam = raw.get("ipam")
    if ipam and (not isinstance(ipam, Mapping) or ipam.get("type", "orc-cni") != "orc-cni"):
        raise CniError(
            Code.UNSUPPORTED_FIELD, "ipam: orc-cni gives out addresses itself; remove this field"
        )
    subnet = _network(raw.get("subnet"), "subnet")
    if subnet.prefixlen > LONGEST_PREFIX:
        raise invalid(f"subnet {subnet} is too small: use a prefix of at most {LONGEST_PREFIX}")
    cluster = _network(raw["clusterCIDR"], "clusterCIDR") if raw.get("clusterCIDR") else subnet
    if not subnet.subnet_of(cluster):
        raise invalid(f"subnet {subnet} is not part of clusterCIDR {cluster}")
    runtime = _object(raw.get("runtimeConfig"), "runtimeConfig")
    return NetConf(
        version=version,
        name=name,
        bridge=_interface(raw.get("bridge", "orc0"), "bridge"),
        subnet=subnet,
        cluster=cluster,
        masquerade=raw.get("ipMasq", True) is not False,
        mtu=_integer(raw.get("mtu", 0), "mtu", 0, 65535),
        data_dir=Path(str(raw.get("dataDir", "/var/lib/orc/cni"))),
        overlay=_overlay(raw, subnet) if raw.get("vni") is not None else None,
        ports=port_mappings(runtime.get("portMappings")),
        requested=_requested(raw, runtime, subnet),
        dns=_object(raw.get("dns"), "dns"),
        previous=_object(raw["prevResult"], "prevResult") if raw.get("prevResult") else None,
        valid=_valid(raw),
    )


def port_mappings(raw: object) -> tuple[PortMapping, ...]:
    """The published ports; of the same port given twice, for one purpose, one remains."""
    wanted = []
    for entry in _objects(raw, "portMappings"):
        protocol = str(entry.get("protocol") or "tcp").lower()
        if protocol not in PROTOCOLS:
            raise invalid(f"port protocol {protocol!r}: use one of {', '.join(PROTOCOLS)}")
        wanted.append(
            PortMapping(
                host_port=_integer(entry.get("hostPort"), "hostPort", 1, 65535),
                container_port=_integer(entry.get("containerPort"), "containerPort", 1, 65535),
                protocol=protocol,
                host_ip=_address(entry.get("hostIP") or "0.0.0.0", "hostIP"),
            )
        )
    ports = tuple(sorted(set(wanted)))
    targets: dict[str, int] = {}
    for port in ports:
        target = targets.setdefault(str(port), port.container_port)
        if target != port.container_port:
            raise invalid(f"port {port} cannot lead to {target} and to {port.container_port}")
    return ports


def _overlay(raw: Mapping[str, Any], subnet: IPv4Network) -> Overlay:
    vni = _integer(raw.get("vni"), "vni", 1, (1 << 24) - 1)
    me = Peer(subnet, _address(raw.get("nodeAddress"), "nodeAddress"))
    listed = _objects(raw.get("peers"), "peers")
    return Overlay(
        vni=vni,
        device=_interface(raw.get("vxlan", f"orcvx{vni}"), "vxlan"),
        port=_integer(raw.get("vxlanPort", DEFAULT_PORT), "vxlanPort", 1, 65535),
        me=me,
        peers=tuple(
            Peer(
                _network(entry.get("subnet"), "peers.subnet"),
                _address(entry.get("address"), "peers.address"),
            )
            for entry in listed
        ),
    )


def _requested(
    raw: Mapping[str, Any], runtime: Mapping[str, Any], subnet: IPv4Network
) -> IPv4Address | None:
    args = _object(_object(raw.get("args"), "args").get("cni"), "args.cni")
    wanted = runtime.get("ips") or args.get("ips") or []
    if not isinstance(wanted, list) or len(wanted) > 1:
        raise invalid("ips: a container has one address in this network; ask for one")
    if not wanted:
        return None
    address = _address(str(wanted[0]).partition("/")[0], "ips")
    if address not in subnet:
        raise invalid(f"address {address} is not in this host's subnet {subnet}")
    return address


def _valid(raw: Mapping[str, Any]) -> frozenset[tuple[str, str]] | None:
    attachments = raw.get("cni.dev/valid-attachments")
    if attachments is None:
        return None
    entries = _objects(attachments, "cni.dev/valid-attachments")
    return frozenset((_text(entry, "containerID"), _text(entry, "ifname")) for entry in entries)


def _text(raw: Mapping[str, Any], key: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not value:
        raise invalid(f"{key} is missing")
    return value


def _object(value: object, key: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise invalid(f"{key} is not an object")
    return value


def _objects(value: object, key: str) -> list[Mapping[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise invalid(f"{key} is not a list of objects")
    return value


def _integer(value: object, key: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise invalid(f"{key} {value!r}: give a whole number from {low} to {high}")
    return value


def _network(value: object, key: str) -> IPv4Network:
    try:
        return IPv4Network(str(value))
    except ValueError as error:
        raise invalid(f"{key} {value!r} is not an IPv4 network: {error}") from error


def _address(value: object, key: str) -> IPv4Address:
    try:
        return IPv4Address(str(value))
    except ValueError as error:
        raise invalid(f"{key} {value!r} is not an IPv4 address") from error


def _interface(value: object, key: str) -> str:
    name = str(value)
    if not INTERFACE.fullmatch(name):
        raise invalid(f"{key} {name!r} is not an interface name of at most {NAME_LIMIT} characters")
    return name


def address_in(conf: NetConf, address: IPv4Address) -> IPv4Interface:
    """A container's address with the prefix length of this host's subnet."""
    return IPv4Interface((address, conf.subnet.prefixlen))
