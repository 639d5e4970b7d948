# SPDX-License-Identifier: Apache-2.0
"""Three nodes with a network, and the endpoint table that all of them have."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from balancekit import TCP, UDP
from nshosts import NsHost

from orchestrator.agent.network.network_types import Attachment, NetworkConfig, Peer
from orchestrator.agent.network.node_network import NodeNetwork
from orchestrator.cni.balancing.endpointtable import (
    Endpoint,
    Network,
    Node,
    Policy,
    Published,
    Service,
    Table,
)

CLUSTER = "10.128.0.0/14"
CLUSTER6 = "fd00:0:0::/48"
VIP, VIP6 = "10.131.255.9", "fd00:0:0:fff::9"
FILTERED = pytest.mark.parametrize(
    "filtered",
    [
        "net.bridge.bridge-nf-call-iptables=1",  # bridged packets pass our rules too
        "net.bridge.bridge-nf-call-iptables=0",
    ],
    ids=["filtered", "plain"],
)
KINDS = pytest.mark.parametrize("kind", [TCP, UDP], ids=["tcp", "udp"])


def subnet(number: int) -> str:
    return f"10.128.{number + 1}.0/24"


def subnet6(number: int) -> str:
    return f"fd00:0:0:{number + 1}::/64"


def address6(host: NsHost) -> str:
    """A host's on the underlay."""
    return f"2001:db8::{host.address.rpartition('.')[2]}"


@dataclass(slots=True)
class Web:
    """Three nodes with a network, and the table that all of them have."""

    router: NsHost
    hosts: list[NsHost]
    nodes: list[NodeNetwork]
    table: Table

    async def container(self, number: int, name: str) -> Attachment:
        return await self.nodes[number].attach("n1", name)

    async def have(self, *services: Service, policies: tuple[Policy, ...] = ()) -> None:
        """Give every node the whole table."""
        self.table = Table(self.table.revision + 1, services=services, policies=policies)
        for number, node in enumerate(self.nodes):
            whole = self._for(number)
            await node.balance(whole, lambda whole=whole: whole)  # type: ignore[misc]

    async def change(self, *services: Service) -> None:
        """Tell every node what differs."""
        base = self.table.revision
        known = {service.key: service for service in self.table.services}
        known.update((service.key, service) for service in services)
        self.table = replace(self.table, revision=base + 1, services=tuple(known.values()))
        for number, node in enumerate(self.nodes):
            whole = self._for(number)
            difference = Table(base + 1, base, services=services)
            await node.balance(difference, lambda whole=whole: whole)  # type: ignore[misc]

    async def settle(self, number: int) -> None:
        """The pass that every node makes every few seconds."""
        await self.nodes[number].apply(self.config(number))
        unchanged = Table(self.table.revision, self.table.revision)
        await self.nodes[number].balance(unchanged, lambda: self._for(number))

    async def leave(self) -> None:
        """Have no network any more on any node."""
        nothing = Table(self.table.revision + 1, networks=(), policies=())
        for node in self.nodes:
            await node.balance(nothing, lambda: nothing)

    def config(self, number: int) -> NetworkConfig:
        return NetworkConfig(
            "n1",
            "default",
            7,
            CLUSTER,
            subnet(number),
            0,
            self.hosts[number].address,
            tuple(Peer(subnet(n), host.address, subnet6(n)) for n, host in enumerate(self.hosts)),
            subnet6(number),
            CLUSTER6,
        )

    def rules(self, number: int) -> str:
        """All of the balance that is in a host's kernel."""
        return self.hosts[number].shell("nft", "-a", "list", "table", "inet", "orc_balance")

    def kill_helpers(self) -> None:
        """On all nodes; the next request finds that out and starts another."""
        for node in self.nodes:
            assert node.helper_pid is not None
            os.kill(node.helper_pid, signal.SIGKILL)

    def _for(self, number: int) -> Table:
        others = [
            Node(IPv4Network(subnet(n)), IPv6Network(subnet6(n)), IPv4Address(host.address))
            for n, host in enumerate(self.hosts)
            if n != number
        ]
        network = Network(
            "n1",
            "orcbr7",
            IPv4Network(CLUSTER),
            "orcvx7",
            IPv6Network(CLUSTER6),
            tuple(others),
        )
        return replace(self.table, networks=(network,))


@pytest.fixture
async def web(hosts: list[NsHost]) -> AsyncIterator[Web]:
    router, *places = hosts
    for host, device in ((router, "under"), *((host, "uplink") for host in places)):
        address = f"{address6(host)}/64"
        host.shell("ip", "addr", "replace", address, "dev", device, "nodad")
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(NodeNetwork(h.state, h.run, command=h.helper))
            for h in places
        ]
        made = Web(router, places, nodes, Table(0))
        for number, node in enumerate(nodes):
            await node.apply(made.config(number))
        yield made
        await made.leave()
        for number, node in enumerate(nodes):
            await node.apply(made.config(number))
            await node.remove("n1")
            await node.collect([])


def service(*ends: Endpoint, ports: tuple[Published, ...] = (), vip: str = VIP) -> Service:
    vips = (IPv4Address(vip), IPv6Address(VIP6)) if vip else (None, None)
    return Service("s1", "n1", *vips, ends, ports)


def named(name: str, *ends: Endpoint, vip: str = "") -> Service:
    return Service(name, "n1", IPv4Address(vip) if vip else None, endpoints=ends, name=name)


def published(kind: int) -> tuple[Published, ...]:
    return (Published("tcp" if kind == TCP else "udp", 8080, 80),)
