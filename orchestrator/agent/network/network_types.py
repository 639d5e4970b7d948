"""What goes into `NodeNetwork` and what comes out of it, and the way to the helper: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import Any

CNI_VERSION = "1.1.0"
NAME_LIMIT = 15  # of an interface


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node of the network: its parts (`subnet` "10.128.3.0/24"), the `address` to reach it.

    That is one of the underlay; in an encrypted network it is inside the tunnels.

    `addresses` are those of its containers that are not of its parts, in both families.
    """

    subnet: str
    address: str
    subnet6: str = ""
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """A network as this node is to have it.

    `vni` 0 is a network of this node alone, with `subnet` all of it; else `subnet` is this node's
    part of `cluster_cidr`, and `subnet6` of `cluster_cidr6`, both empty where it has no IPv6.
    `mtu` in bytes, 0 derives it, less the overhead of VXLAN, from the interface that has
    `node_address`, or from `path_mtu`, what the paths between the nodes carry, if that is known and
    less. `peers` may name this node too. `gateway` is this node's address in `subnet`, empty for
    the first. Addresses are given out of `ip_range`, empty for all of `subnet`, but not those that
    are `reserved`: only who asks for such a one gets it. `internal`: there is no way out, nor in.
    `encrypted`: packets leave this node by its tunnels only, which must be there.
    """

    id: str
    name: str
    vni: int
    cluster_cidr: str
    subnet: str
    mtu: int
    node_address: str
    peers: tuple[Peer, ...] = ()
    subnet6: str = ""
    cluster_cidr6: str = ""
    gateway: str = ""
    ip_range: str = ""
    reserved: tuple[str, ...] = ()
    internal: bool = False
    path_mtu: int = 0
    encrypted: bool = False
    source_check: bool = True
    """What a container sends with other source addresses than its own is dropped."""
    allowed_sources: tuple[str, ...] = ()
    """Subnets of which each container may have source addresses besides its own."""
    driver: str = ""
    """Whose the network is, if not ours: `cni`, or the name of a plugin of Docker's protocol."""
    conflist: str = ""
    """Of driver `cni`: its list of plugins, as this node is to run it."""
    options: Mapping[str, str] = field(default_factory=dict)
    """For a plugin of Docker's protocol."""
    ipam_driver: str = ""
    """The plugin that gives out the addresses of such a network; empty: this node, of `subnet`."""
    ipam_options: Mapping[str, str] = field(default_factory=dict)

    @property
    def own_address(self) -> str:
        """This node's address in the network, its containers' gateway."""
        return self.gateway or str(IPv4Network(self.subnet)[1])

    @property
    def tunnel_address(self) -> str:
        """This node's end of the tunnel."""
        return str(IPv4Network(self.subnet)[0])

    @property
    def bridge(self) -> str:
        """The name of its bridge on this node."""
        return f"orcbr{self.vni}" if self.vni else f"orcbr-{self.id}"[:NAME_LIMIT]

    @property
    def device(self) -> str:
        """The name of its tunnel device on this node; empty if it has none."""
        return f"orcvx{self.vni}" if self.vni else ""


@dataclass(frozen=True, slots=True)
class Guest:
    """A container's interface on a network that others make, and what it may send as.

    An empty `mac` is any. With no `addresses` those of IP are not checked.
    """

    network: str
    """Id."""
    container: str
    netns: str
    ifname: str
    mac: str
    addresses: tuple[str, ...]
    allowed: tuple[str, ...] = ()
    """Subnets of which it may have source addresses besides."""
    dhcp: bool = False
    """The addresses are leased, and renewed from 0.0.0.0."""


@dataclass(frozen=True, slots=True)
class Forgery:
    """Packets with forged source addresses that were dropped lately, by ids.

    The number begins anew when none was dropped for an hour.
    """

    network: str
    container: str
    packets: int


@dataclass(frozen=True, slots=True)
class Exposure:
    """What of the cluster's hosts is closed to containers.

    `hosts` are the addresses of all hosts of the cluster on the underlay, `ports` their TCP ports
    that are closed, `addresses` what is closed wherever it leads. `guests` are the addresses of
    containers on networks that others make, `checked` those interfaces of theirs that send with
    their own source addresses only.
    """

    hosts: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    addresses: tuple[str, ...] = ()
    guests: tuple[str, ...] = ()
    checked: tuple[Guest, ...] = ()


@dataclass(frozen=True, slots=True)
class PortMapping:
    """`host_port` of this node leads to `container_port`; an empty `host_ip` is any address."""

    host_port: int
    container_port: int
    protocol: str = "tcp"
    host_ip: str = ""


@dataclass(frozen=True, slots=True)
class Interface:
    """What a container is to have in a network.

    `ip`, `ip6` and `mac` are chosen where they are empty. Its way out is by the network if
    `default_route` and the network has one; of several that have it, the one attached last.
    """

    ifname: str = "eth0"
    ip: str = ""
    ip6: str = ""
    mac: str = ""
    default_route: bool = True
    ports: tuple[PortMapping, ...] = ()
    aliases: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    """For the driver, in a network that is not ours."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A container that is connected to a network.

    `netns` is the path of its network namespace, `address` and `address6` are its IPs without
    prefix length (`address6` empty where the network has no IPv6), `result` is the CNI result.
    `gateway` is this node's address there; empty where it has none.
    """

    container_id: str
    netns: str
    network: str
    address: str
    gateway: str
    mac: str
    ifname: str
    result: Mapping[str, Any]
    address6: str = ""
    leads_out: bool = True
    """The container has a way out (of IPv4) by the network, if it was asked for and the network
    has one."""
    nameservers: tuple[str, ...] = ()
    """Who the network says answers names, where this node does not, by the gateway."""


@dataclass(frozen=True, slots=True)
class Underlay:
    """The interface below a tunnel and its MTU in bytes; `tunnel` is the tunnel's own, 0 if it is
    not there."""

    device: str
    mtu: int
    tunnel: int


def network_document(config: NetworkConfig, *, with_peers: bool = False) -> dict[str, Any]:
    """The configuration as the helper reads it; only `apply` needs a thousand peers."""
    document: dict[str, Any] = {
        "cniVersion": CNI_VERSION,
        "name": config.id,
        "bridge": config.bridge,
        "subnet": config.subnet,
        "clusterCIDR": config.cluster_cidr,
        "subnet6": config.subnet6,
        "clusterCIDR6": config.cluster_cidr6,
        "gateway": config.gateway,
        "ipRange": config.ip_range,
        "reserved": list(config.reserved),
        "internal": config.internal,
        "sourceCheck": config.source_check,
        "allowedSources": list(config.allowed_sources),
        "mtu": config.mtu,
        "pathMtu": config.path_mtu,
    }
    if config.vni:
        document |= {
            "vni": config.vni,
            "vxlan": config.device,
            "nodeAddress": config.node_address,
            "encrypted": config.encrypted,
        }
    if with_peers:
        document["peers"] = [
            {
                "subnet": peer.subnet,
                "subnet6": peer.subnet6,
                "address": peer.address,
                "addresses": list(peer.addresses),
            }
            for peer in config.peers
        ]
    return document


def attachment_document(config: NetworkConfig, interface: Interface) -> dict[str, Any]:
    """The configuration with what an attachment asks for."""
    return network_document(config) | {
        "defaultRoute": interface.default_route,
        "runtimeConfig": {
            "ips": [one for one in (interface.ip, interface.ip6) if one],
            "mac": interface.mac,
            "portMappings": [
                {
                    "hostPort": port.host_port,
                    "containerPort": port.container_port,
                    "protocol": port.protocol,
                    "hostIP": port.host_ip,
                }
                for port in interface.ports
            ],
        },
    }


def attachment_of(
    container_id: str, config: NetworkConfig, result: Mapping[str, Any]
) -> Attachment:
    """A CNI result as an attachment."""
    inside = result["interfaces"][-1]
    given = result["ips"]
    addresses = [entry["address"].partition("/")[0] for entry in given]
    return Attachment(
        container_id=container_id,
        netns=inside["sandbox"],
        network=config.id,
        address=addresses[0],
        address6=addresses[1] if len(addresses) > 1 else "",
        gateway=given[0]["gateway"],
        mac=inside["mac"],
        ifname=inside["name"],
        result=result,
    )
