# SPDX-License-Identifier: Apache-2.0
"""One node's network of one name, as most tests have it."""

from __future__ import annotations

from nshosts import NsHost

from orchestrator.agent.network.network_types import Interface, NetworkConfig, Peer, PortMapping
from orchestrator.agent.network.node_network import NodeNetwork

NET = "net1"


def published(*ports: PortMapping) -> Interface:
    return Interface(ports=ports)


def subnet(number: int) -> str:
    return f"10.128.{number}.0/24"


def config(host: NsHost, number: int, peers: tuple[Peer, ...] = ()) -> NetworkConfig:
    return NetworkConfig(
        id=NET,
        name="default",
        vni=7,
        cluster_cidr="10.128.0.0/14",
        subnet=subnet(number),
        mtu=0,
        node_address=host.address,
        peers=peers,
    )


def node(host: NsHost, **more: float) -> NodeNetwork:
    return NodeNetwork(host.state, host.run, command=host.helper, **more)


def host_veths(host: NsHost) -> list[str]:
    """The containers' veth devices on the host."""
    return [link["ifname"] for link in host.ip("link", "show", "type", "veth")]
