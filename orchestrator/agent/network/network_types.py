# SPDX-License-Identifier: Apache-2.0
"""Types of `node_network.NodeNetwork`, and their documents for the network helper. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import Any

CNI_VERSION = "1.1.0"
NAME_LIMIT = 15  # of an interface


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node of the network: its subnets (`subnet` "10.128.3.0/24"), and its `address`.

    The address is on the underlay; in an encrypted network it is inside the tunnels.

    `addresses` are those of its containers outside of its subnets, in both families.
    """

    subnet: str
    address: str
    subnet6: str = ""
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The desired network on this node.

    `vni` 0 is a network of this node alone, with `subnet` all of it; else `subnet` is this node's
    part of `cluster_cidr`, and `subnet6` of `cluster_cidr6`, both empty where it has no IPv6.
    `mtu` is in bytes; 0 derives it, less the overhead of VXLAN, from the interface that has
    `node_address`, or from `path_mtu`, the least MTU of the paths between nodes, if that is known
    and less. `peers` may name this node too. `gateway` is this node's address in `subnet`, empty
    for the first. Addresses are allocated from `ip_range`, empty for all of `subnet`, except
    the `reserved` ones, which a container must request. `internal`: no traffic from or to other
    networks. `encrypted`: packets leave this node only through its tunnels, which must exist.
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
    """Drop packets of containers with other source addresses than their own."""
    allowed_sources: tuple[str, ...] = ()
    """Subnets of additional source addresses that each container may use."""
    driver: str = ""
    """The third-party driver: `cni`, or the name of a Docker plugin; empty: Orc's own."""
    conflist: str = ""
    """Of driver `cni`: the list of plugins that this node runs."""
    options: Mapping[str, str] = field(default_factory=dict)
    """For a Docker plugin."""
    ipam_driver: str = ""
    """The plugin that allocates the addresses of such a network; empty: this node, from
    `subnet`."""
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
    """A container's interface on a network of a plugin, and its permitted source addresses.

    An empty `mac` permits any; without `addresses`, IP addresses are not checked.
    """

    network: str
    """Id."""
    container: str
    netns: str
    ifname: str
    mac: str
    addresses: tuple[str, ...]
    allowed: tuple[str, ...] = ()
    """Subnets of additional source addresses."""
    dhcp: bool = False
    """The addresses are leased, and renewed from 0.0.0.0."""


@dataclass(frozen=True, slots=True)
class Forgery:
    """Packets with spoofed source addresses that were recently dropped, by ids.

    The counter restarts when none was dropped for an hour.
    """

    network: str
    container: str
    packets: int


@dataclass(frozen=True, slots=True)
class Exposure:
    """The ports and addresses of the cluster's hosts that are closed to containers.

    `hosts` are the addresses of all hosts of the cluster on the underlay, `ports` their closed TCP
    ports, `addresses` are closed everywhere. `guests` are the addresses of containers on networks
    of plugins, `checked` their interfaces with source checks.
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
    """The desired interface of a container in a network.

    Empty `ip`, `ip6` and `mac` are allocated. The default route is through the network if
    `default_route` and the network has external access; of several, through the last attached.
    """

    ifname: str = "eth0"
    ip: str = ""
    ip6: str = ""
    mac: str = ""
    default_route: bool = True
    ports: tuple[PortMapping, ...] = ()
    aliases: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    """For the driver of a third-party network."""


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
    """The container's IPv4 default route is through the network."""
    nameservers: tuple[str, ...] = ()
    """Name servers from the result of a plugin, for networks in which this node's name server does
    not listen at the gateway."""


@dataclass(frozen=True, slots=True)
class Underlay:
    """The interface below a tunnel and its MTU in bytes; `tunnel` is the tunnel's own MTU, 0 if
    the tunnel is missing."""

    device: str
    mtu: int
    tunnel: int


def network_document(config: NetworkConfig, *, with_peers: bool = False) -> dict[str, Any]:
    """The configuration in the helper's format; only `apply` needs the peers, up to a thousand."""
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
    """The configuration with the requests of an attachment."""
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
