"""The ordered network is kept in force, and containers wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from agentfakes import until

from orchestrator.agent.network import (
    Attachment,
    Interface,
    NetworkConfig,
    NetworkError,
    Peer,
    PortMapping,
)
from orchestrator.agent.networks import Connected, Networks
from orchestrator.model.specs import PortSpec, Protocol, PublishMode
from orchestrator.pb import dispatch_pb2


class FakeNode:
    def __init__(self) -> None:
        self.applied: list[NetworkConfig] = []
        self.collected: list[Collection[str]] = []
        self.ports: list[PortMapping] = []
        self.detached: list[str] = []
        self.broken = ""

    async def apply(self, config: NetworkConfig) -> None:
        if self.broken:
            raise NetworkError(self.broken)
        self.applied.append(config)

    async def attach(self, network: str, container_id: str, interface: Interface) -> Attachment:
        self.ports = list(interface.ports)
        return Attachment(
            container_id, "/run/netns/c", "n", "10.128.1.2", "10.128.1.1", "", "eth0", {}
        )

    async def detach(self, container_id: str) -> None:
        self.detached.append(container_id)

    async def collect(self, valid: Collection[str]) -> None:
        self.collected.append(valid)


def order(*peers: str) -> list[dispatch_pb2.AssignedNetwork]:
    return [
        dispatch_pb2.AssignedNetwork(
            id="n",
            name="orc",
            vni=7,
            cluster_cidr="10.128.0.0/14",
            subnet="10.128.1.0/24",
            peers=[dispatch_pb2.NetworkPeer(subnet="10.128.2.0/24", address=p) for p in peers],
        )
    ]


@asynccontextmanager
async def running(node: FakeNode, period: float = 60.0) -> AsyncIterator[Networks]:
    networks = Networks(node, "10.0.0.1", lambda: {"held"}, period)
    async with asyncio.TaskGroup() as group:
        loop = group.create_task(networks.run())
        yield networks
        loop.cancel()


async def test_an_order_is_applied_and_what_nobody_holds_given_back_once() -> None:
    node = FakeNode()
    async with running(node) as networks:
        networks.order(order())
        await until(lambda: node.collected)
        networks.order(order("10.0.0.2"))
        await until(lambda: len(node.applied) == 2)
        assert node.collected == [{"held"}]
        assert node.applied[1] == NetworkConfig(
            id="n",
            name="orc",
            vni=7,
            cluster_cidr="10.128.0.0/14",
            subnet="10.128.1.0/24",
            mtu=0,
            node_address="10.0.0.1",
            peers=(Peer("10.128.2.0/24", "10.0.0.2"),),
        )


async def test_the_same_order_is_not_news_but_is_mended_now_and_then() -> None:
    node = FakeNode()
    async with running(node, period=0.01) as networks:
        networks.order(order())
        networks.order(order())
        await until(lambda: len(node.applied) >= 3)


async def test_a_container_waits_for_the_network() -> None:
    node = FakeNode()
    async with running(node) as networks, asyncio.TaskGroup() as group:
        networks.order(order())
        ports = [
            PortSpec(8080, 80, mode=PublishMode.HOST),
            PortSpec(53, 53, Protocol.UDP, PublishMode.HOST),
            PortSpec(80, 80),
        ]
        attached = group.create_task(networks.attach("c", ports))
        assert await attached == Connected(
            Path("/run/netns/c"), {"orc": "10.128.1.2"}, ("10.128.1.1",)
        )
        assert node.collected
        assert node.ports == [PortMapping(8080, 80, "tcp"), PortMapping(53, 53, "udp")]


async def test_a_network_that_cannot_be_is_the_containers_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = FakeNode()
    node.broken = "this kernel has no VXLAN"
    async with running(node, period=0.01) as networks:
        networks.order(order())
        with pytest.raises(NetworkError, match="no VXLAN"):
            await networks.attach("c", [])
        node.broken = ""
        await until(lambda: node.applied)
        await networks.attach("c", [])
        assert len([r for r in caplog.records if "cannot be applied" in r.message]) == 1


async def test_without_a_network() -> None:
    async with running(FakeNode()) as networks:
        networks.order([])
        with pytest.raises(NetworkError, match="no network yet"):
            await networks.attach("c", [])
        await networks.detach("c")
