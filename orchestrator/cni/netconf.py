# SPDX-License-Identifier: Apache-2.0
"""The network configuration that a runtime or the agent passes: parsed, validated, typed.

Pure. Keys besides those of the CNI specification, with their defaults:

    bridge         name of the bridge                             "orc0"
    subnet         this host's subnet of the network              required
    clusterCIDR    the whole network: not masqueraded within      subnet
    subnet6        this host's IPv6 subnet; absent: no IPv6
    clusterCIDR6   the whole network in IPv6                      subnet6
    gateway        this host's address in `subnet`                the first one
    ipRange        addresses are allocated from this part of it   subnet
    reserved       addresses that are allocated on request only   []
    quarantine     seconds before a released address is reused   60
    internal       no traffic out of the network, nor in          false
    sourceCheck    containers send with their own addresses only  true
    allowedSources subnets from which they may use others too     []
    ipMasq         masquerade traffic that leaves the network     true
    mtu            bytes; 0 derives it from the underlay          0
    pathMtu        bytes that all paths of the underlay carry     its interface's MTU
    dataDir        folder of the address leases                   "/var/lib/orc/cni"
    vni            VXLAN network identifier; absent: a network of this host alone
    vxlan          name of the VXLAN device                       "orcvx" + vni
    vxlanPort      UDP port                                       4789
    nodeAddress    this host's address on the underlay            required with vni
    encrypted      packets leave this host through WireGuard only false
    peers          [{"subnet", "subnet6", "address", "addresses"}] []

`address` of a peer is one of the underlay; in an encrypted network it is the host's address inside
the tunnels, which must exist already. `addresses` are those of its containers outside its subnet.

Settings of one attachment (`RuntimeConfig`) come in `runtimeConfig`: `portMappings`, `mac`, and
`ips`, at most one fixed address of each family; `mac` and `ips` also in `args.cni`; and in
`defaultRoute` (true): whether the container's default route is through this network.

A container's IPv6 address has in `subnet6` the offset that its IPv4 address has in `subnet`, unless
another one is requested.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from orchestrator.cni import jsonfields
from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.fastrecord import TYPE_CHECKING, record
from orchestrator.cni.jsonfields import IDENTIFIER, invalid
from orchestrator.cni.netlink.links import Address, Network, Vxlan
from orchestrator.cni.peers import Peer, gateway, twin

if TYPE_CHECKING:
    from typing import Any

OVERHEAD = 50  # bytes: outer IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14
ENCRYPTED_OVERHEAD = 130  # with an outer IPv6, which has 40, in WireGuard, which takes 60
DEFAULT_PORT = 4789  # RFC 7348
VERSION = "1.1.0"
SUPPORTED = ("0.4.0", "1.0.0", "1.1.0")
PROTOCOLS = ("tcp", "udp", "sctp")
LONGEST_PREFIX = 29  # network address, gateway, broadcast, and five containers
LEAST_MTU, LEAST_MTU6, MOST_MTU = 576, 1280, 65535  # RFC 791, RFC 8200
ANY_ADDRESS = IPv4Address(0)
QUARANTINE = 60


@record
class PortMapping:
    """`host_port` of this host leads to `container_port`; `host_ip` 0.0.0.0 is any address."""

    host_port: int
    container_port: int
    protocol: str = "tcp"
    host_ip: Address = ANY_ADDRESS

    def __str__(self) -> str:
        where = "" if self.host_ip == ANY_ADDRESS else f"{self.host_ip}:"
        return f"{where}{self.host_port}/{self.protocol}"

    @property
    def order(self) -> tuple[int, int, str, str]:
        """The sort key."""
        return self.host_port, self.container_port, self.protocol, str(self.host_ip)


@record
class RuntimeConfig:
    """Settings of one attachment; an empty MAC and absent addresses are allocated."""

    ports: tuple[PortMapping, ...] = ()
    address: IPv4Address | None = None
    address6: IPv6Address | None = None
    mac: str = ""
    default_route: bool = True


@record
class Overlay:
    """The part of a configuration that spans hosts."""

    vni: int
    device: str
    port: int
    node: IPv4Address
    me: Peer
    peers: tuple[Peer, ...]
    encrypted: bool

    @property
    def vxlan(self) -> Vxlan:
        """The properties of its VXLAN device."""
        local = IPv4Address(0) if self.encrypted else self.node
        return Vxlan(self.vni, local, self.port, learning=False, ipv6=self.encrypted)

    @property
    def overhead(self) -> int:
        """Bytes that encapsulation adds to a packet."""
        return ENCRYPTED_OVERHEAD if self.encrypted else OVERHEAD


@record
class SubnetIPv6:
    """A network's IPv6: this host's subnet, and the whole."""

    subnet: IPv6Network
    cluster: IPv6Network

    @property
    def gateway(self) -> IPv6Address:
        """This host's address: the first one."""
        return self.subnet.network_address + 1


@record
class NetConf:
    """A network on this host, and the settings of an attachment to it."""

    version: str
    name: str
    bridge: str
    subnet: IPv4Network
    cluster: IPv4Network
    gateway: IPv4Address
    range: IPv4Network
    reserved: frozenset[Address]
    quarantine: int
    ipv6: SubnetIPv6 | None
    internal: bool
    source_check: bool
    allowed_sources: tuple[Network, ...]
    masquerade: bool
    mtu: int
    path_mtu: int
    data_dir: Path
    overlay: Overlay | None
    runtime_config: RuntimeConfig
    dns: Mapping[str, Any]
    previous: Mapping[str, Any] | None
    valid: frozenset[tuple[str, str]]
    """(container, interface) of all attachments that GC keeps."""

    @property
    def least_mtu(self) -> int:
        """The smallest MTU that the network may have, in bytes."""
        return _least_mtu(self.ipv6)

    def twin(self, address: IPv4Address) -> IPv6Address | None:
        """The IPv6 address that belongs to an IPv4 address, where the network has IPv6."""
        if self.ipv6 is None:
            return None
        return twin(self.subnet, self.cluster, self.ipv6.subnet, self.ipv6.cluster, address)


def decode(data: str | bytes) -> dict[str, Any]:
    """Decode a JSON object; raises `CniError` DECODING_FAILURE."""
    try:
        decoded = json.loads(data)
    except ValueError as error:
        raise CniError(
            Code.DECODING_FAILURE, "the network configuration is not valid JSON", str(error)
        ) from error
    except RecursionError as error:
        raise CniError(
            Code.DECODING_FAILURE, "the network configuration is nested too deeply", str(error)
        ) from error
    if not isinstance(decoded, dict):
        raise CniError(Code.DECODING_FAILURE, "the network configuration is not a JSON object")
    return decoded


def version_of(raw: Mapping[str, Any]) -> str:
    """The caller's CNI version; raises `CniError` INCOMPATIBLE_VERSION."""
    version = raw.get("cniVersion", "0.1.0")  # the specification's meaning of a missing version
    if version not in SUPPORTED:
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"CNI version {version} is not supported: use one of {', '.join(SUPPORTED)}",
        )
    return str(version)


def parse(raw: Mapping[str, Any]) -> NetConf:
    """Validate a decoded configuration; raises `CniError` with the reason."""
    version = version_of(raw)
    name = jsonfields.text(raw, "name")
    if not IDENTIFIER.fullmatch(name):
        raise invalid(f"name {name!r}: use letters, digits, dots, dashes and underscores")
    ipam = raw.get("ipam")
    if ipam and (not isinstance(ipam, Mapping) or ipam.get("type", "orc-cni") != "orc-cni"):
        raise CniError(
            Code.UNSUPPORTED_FIELD,
            f"ipam {json.dumps(ipam)[:200]}: orc-cni gives out addresses itself; remove this field",
        )
    subnet = jsonfields.network4(raw.get("subnet"), "subnet")
    if subnet.prefixlen > LONGEST_PREFIX:
        raise invalid(f"subnet {subnet} is too small: use a prefix of at most {LONGEST_PREFIX}")
    cluster = (
        jsonfields.network4(raw["clusterCIDR"], "clusterCIDR") if raw.get("clusterCIDR") else subnet
    )
    if not subnet.subnet_of(cluster):
        raise invalid(f"subnet {subnet} is not part of clusterCIDR {cluster}")
    ipv6 = _subnet6(raw, subnet)
    return NetConf(
        version=version,
        name=name,
        bridge=jsonfields.interface(raw.get("bridge", "orc0"), "bridge"),
        subnet=subnet,
        cluster=cluster,
        gateway=_gateway(raw, subnet),
        range=_range(raw, subnet),
        reserved=frozenset(
            jsonfields.address(entry, "reserved")
            for entry in jsonfields.listed(raw.get("reserved"), "reserved")
        ),
        quarantine=jsonfields.integer(raw.get("quarantine", QUARANTINE), "quarantine", 0, 86400),
        ipv6=ipv6,
        internal=raw.get("internal", False) is True,
        source_check=raw.get("sourceCheck", True) is not False,
        allowed_sources=jsonfields.networks(raw.get("allowedSources"), "allowedSources"),
        masquerade=raw.get("ipMasq", True) is not False,
        mtu=_mtu(raw, ipv6),
        path_mtu=jsonfields.integer(raw.get("pathMtu", 0), "pathMtu", 0, MOST_MTU),
        data_dir=Path(str(raw.get("dataDir", "/var/lib/orc/cni"))),
        overlay=_overlay(raw, subnet, ipv6) if raw.get("vni") is not None else None,
        runtime_config=runtime_config(raw, cluster, ipv6),
        dns=jsonfields.mapping(raw.get("dns"), "dns"),
        previous=(
            jsonfields.mapping(raw["prevResult"], "prevResult") if raw.get("prevResult") else None
        ),
        valid=_valid(raw),
    )


def runtime_config(
    raw: Mapping[str, Any], cluster: IPv4Network, ipv6: SubnetIPv6 | None
) -> RuntimeConfig:
    """The settings of an attachment; raises `CniError`."""
    runtime = jsonfields.mapping(raw.get("runtimeConfig"), "runtimeConfig")
    args = jsonfields.mapping(jsonfields.mapping(raw.get("args"), "args").get("cni"), "args.cni")
    asked = jsonfields.listed(runtime.get("ips") or args.get("ips"), "ips")
    fixed: dict[int, Address] = {}
    for entry in asked:
        address = jsonfields.address(entry, "ips")
        if address.version in fixed:
            raise invalid("ips: a container has one address of a family in a network; ask for one")
        fixed[address.version] = address
    four, six = fixed.get(4), fixed.get(6)
    if four is not None and four not in cluster:
        raise invalid(f"address {four} is not in the network {cluster}")
    if six is not None and ipv6 is None:
        raise invalid(f"address {six}: the network has no IPv6")
    if six is not None and ipv6 is not None and six not in ipv6.cluster:
        raise invalid(f"address {six} is not in the network {ipv6.cluster}")
    mac = runtime.get("mac") or args.get("mac")
    return RuntimeConfig(
        ports=port_mappings(runtime.get("portMappings")),
        address=four if isinstance(four, IPv4Address) else None,
        address6=six if isinstance(six, IPv6Address) else None,
        mac=jsonfields.mac(mac, "mac") if mac else "",
        default_route=raw.get("defaultRoute", True) is not False,
    )


def port_mappings(raw: object) -> tuple[PortMapping, ...]:
    """The published ports, without duplicates; raises `CniError` if two conflict."""
    found = set()
    for entry in jsonfields.mappings(raw, "portMappings"):
        protocol = str(entry.get("protocol") or "tcp").lower()
        if protocol not in PROTOCOLS:
            raise invalid(f"port protocol {protocol!r}: use one of {', '.join(PROTOCOLS)}")
        host_ip = jsonfields.address(entry.get("hostIP") or "0.0.0.0", "hostIP")
        found.add(
            PortMapping(
                host_port=jsonfields.integer(entry.get("hostPort"), "hostPort", 1, 65535),
                container_port=jsonfields.integer(
                    entry.get("containerPort"), "containerPort", 1, 65535
                ),
                protocol=protocol,
                host_ip=ANY_ADDRESS if int(host_ip) == 0 else host_ip,
            )
        )
    ports = tuple(sorted(found, key=lambda port: port.order))
    targets: dict[str, int] = {}
    for port in ports:
        target = targets.setdefault(str(port), port.container_port)
        if target != port.container_port:
            raise invalid(f"port {port} cannot lead to {target} and to {port.container_port}")
    return ports


def _subnet6(raw: Mapping[str, Any], subnet: IPv4Network) -> SubnetIPv6 | None:
    if not raw.get("subnet6"):
        return None
    part = jsonfields.network6(raw["subnet6"], "subnet6")
    if part.num_addresses < subnet.num_addresses:
        raise invalid(f"subnet6 {part} has not as many addresses as subnet {subnet}")
    whole = jsonfields.network6(raw.get("clusterCIDR6") or part, "clusterCIDR6")
    if not part.subnet_of(whole):
        raise invalid(f"subnet6 {part} is not part of clusterCIDR6 {whole}")
    return SubnetIPv6(part, whole)


def _gateway(raw: Mapping[str, Any], subnet: IPv4Network) -> IPv4Address:
    if not raw.get("gateway"):
        return gateway(subnet)
    found = jsonfields.address4(raw["gateway"], "gateway")
    if found not in subnet or found in (subnet.network_address, subnet.broadcast_address):
        raise invalid(f"gateway {found} is not an address of a host in {subnet}")
    return found


def _range(raw: Mapping[str, Any], subnet: IPv4Network) -> IPv4Network:
    if not raw.get("ipRange"):
        return subnet
    found = jsonfields.network4(raw["ipRange"], "ipRange")
    if not found.subnet_of(subnet):
        raise invalid(f"ipRange {found} is not part of {subnet}")
    return found


def _mtu(raw: Mapping[str, Any], ipv6: SubnetIPv6 | None) -> int:
    asked = raw.get("mtu", 0)
    return jsonfields.integer(asked, "mtu", _least_mtu(ipv6), MOST_MTU) if asked else 0


def _least_mtu(ipv6: SubnetIPv6 | None) -> int:
    return LEAST_MTU6 if ipv6 is not None else LEAST_MTU


def _overlay(raw: Mapping[str, Any], subnet: IPv4Network, ipv6: SubnetIPv6 | None) -> Overlay:
    vni = jsonfields.integer(raw.get("vni"), "vni", 1, (1 << 24) - 1)
    node_address = jsonfields.address4(raw.get("nodeAddress"), "nodeAddress")
    encrypted = raw.get("encrypted", False) is True
    leads = jsonfields.address6 if encrypted else jsonfields.address4
    return Overlay(
        vni=vni,
        device=jsonfields.interface(raw.get("vxlan", f"orcvx{vni}"), "vxlan"),
        port=jsonfields.integer(raw.get("vxlanPort", DEFAULT_PORT), "vxlanPort", 1, 65535),
        node=node_address,
        encrypted=encrypted,
        me=Peer(subnet, node_address, ipv6.subnet if ipv6 else None),
        peers=tuple(
            Peer(
                jsonfields.network4(entry.get("subnet"), "peers.subnet"),
                leads(entry.get("address"), "peers.address"),
                (
                    jsonfields.network6(entry["subnet6"], "peers.subnet6")
                    if entry.get("subnet6") and ipv6
                    else None
                ),
                tuple(
                    jsonfields.address(one, "peers.addresses")
                    for one in jsonfields.listed(entry.get("addresses"), "peers.addresses")
                ),
            )
            for entry in jsonfields.mappings(raw.get("peers"), "peers")
        ),
    )


def _valid(raw: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """Runtimes that know of no valid attachment give none, null, or an empty list (libcni); older
    ones give it by the second name."""
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        if raw.get(key) is not None:
            break
    entries = jsonfields.mappings(raw.get(key), key)
    return frozenset(
        (jsonfields.text(entry, "containerID"), jsonfields.text(entry, "ifname"))
        for entry in entries
    )
