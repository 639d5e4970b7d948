# SPDX-License-Identifier: Apache-2.0
"""The kernel's load balancer as a follower of the endpoint table; conntrack exhaustion."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Protocol

from orchestrator.agent.network.endpoint_table import Change
from orchestrator.agent.network.node_network import Connections
from orchestrator.agent.network.reconciler import network_config
from orchestrator.cni.balancing import endpointtable
from orchestrator.model.networks import OVERLAY
from orchestrator.pb import dispatch_pb2, types_pb2

log = logging.getLogger(__name__)


class BalancerNetwork(Protocol):
    """The methods of `node_network.NodeNetwork` that are used here; see there."""

    async def balance(
        self, change: endpointtable.Table, whole: Callable[[], endpointtable.Table]
    ) -> None: ...

    async def connections(self) -> Connections: ...


class KernelLoadBalancer:
    """Keeps the kernel's VIPs in sync with the endpoint table.

    A kernel whose connection table is full drops the first packet of each new connection, which
    looks like sporadic network failures. So a full table is logged once, and reported in `trouble`
    while it lasts.
    """

    name = "the load balancer"

    def __init__(self, network: BalancerNetwork) -> None:
        self._network = network
        self.trouble = ""
        """Why the kernel refuses new connections; empty: it does not."""
        self._refused: int | None = None

    async def follow(self, change: Change, whole: Callable[[], Change]) -> None:
        """Apply a change to the kernel. Raises NetworkError."""
        await self._network.balance(_table(change), lambda: _table(whole()))
        if change.base == change.revision:  # a periodic pass
            await self._check_conntrack()

    async def _check_conntrack(self) -> None:
        found = await self._network.connections()
        before, self._refused = self._refused, found.refused
        # The kernel's counter also grows when two packets of one connection race.
        exhausted = found.full or (
            before is not None and found.refused > before and found.count * 2 >= found.limit
        )
        if exhausted and not self.trouble:
            self.trouble = (
                f"the kernel tracks {found.count} connections of at most {found.limit} and refuses "
                "new ones: raise net.netfilter.nf_conntrack_max, or stop the program that opens "
                "them"
            )
            log.error("%s", self.trouble)
        elif self.trouble and not exhausted:
            self.trouble = ""
            log.info("the kernel accepts new connections again")


def _table(change: Change) -> endpointtable.Table:
    networks = change.networks
    if networks is not None:  # others are node-local
        networks = tuple(each for each in networks if each.driver in ("", OVERLAY))
    return endpointtable.Table(
        revision=change.revision,
        base=change.base,
        services=tuple(map(_service, change.entries)),
        removed=tuple(endpointtable.Key(*key) for key in change.removed),
        networks=None if networks is None else tuple(map(_network, networks)),
        policies=None if networks is None else tuple(_policies(networks)),
    )


def _service(entry: dispatch_pb2.ServiceEndpoints) -> endpointtable.Service:
    return endpointtable.Service(
        id=entry.id,
        network=entry.network_id,
        name=entry.name,
        vip=IPv4Address(entry.vip) if entry.vip else None,
        vip6=IPv6Address(entry.vip6) if entry.vip6 else None,
        endpoints=tuple(
            endpointtable.Endpoint(
                IPv4Address(each.address) if each.address else None,
                IPv6Address(each.address6) if each.address6 else None,
                each.ready,
            )
            for each in entry.endpoints
        ),
        ports=tuple(
            endpointtable.Published(
                _transport(port.protocol),
                port.published,
                port.target,
            )
            for port in entry.ports
            if entry.publishes and port.mode == types_pb2.PUBLISH_MODE_INGRESS
        ),
    )


def _policies(
    networks: Iterable[dispatch_pb2.AssignedNetwork],
) -> Iterator[endpointtable.Policy]:
    for network in networks:
        for policy in network.policies:
            yield endpointtable.Policy(
                id=policy.id,
                network=network.id,
                allow=policy.allow,
                destination=policy.destination,
                sources=tuple(policy.sources),
                ports=tuple((_transport(one.protocol), one.port) for one in policy.ports),
            )


def _transport(protocol: int) -> str:
    return "udp" if protocol == types_pb2.PROTOCOL_UDP else "tcp"


def _network(network: dispatch_pb2.AssignedNetwork) -> endpointtable.Network:
    config = network_config(network, "")
    return endpointtable.Network(
        id=network.id,
        bridge=config.bridge,
        device=config.device,
        cluster=IPv4Network(network.cluster_cidr),
        cluster6=IPv6Network(network.cluster_cidr6) if network.cluster_cidr6 else None,
        nodes=tuple(
            endpointtable.Node(
                IPv4Network(peer.subnet),
                IPv6Network(peer.subnet6) if peer.subnet6 else None,
                IPv4Address(peer.address),
                tuple(map(ip_address, peer.addresses)),
            )
            for peer in network.peers
        ),
    )
