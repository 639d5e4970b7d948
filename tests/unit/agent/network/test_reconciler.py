# SPDX-License-Identifier: Apache-2.0
"""The ordered networks are kept in force, and containers wait for them and come to be on them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from agentfakes import task, until

from orchestrator.agent.network.encryption import Encryption
from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.network_types import (
    Attachment,
    Exposure,
    Interface,
    NetworkConfig,
    Peer,
    PortMapping,
)
from orchestrator.agent.network.node_network import TunnelHost, TunnelKey, Tunnels
from orchestrator.agent.network.reconciler import Connected, NetworkReconciler, exposure_of
from orchestrator.model.specs import NetworkAttachment, PortSpec, Protocol, PublishMode, TaskSpec
from orchestrator.model.tasks import Task
from orchestrator.pb import dispatch_pb2

NETNS = Path("/run/netns/t1")


class FakeNode:
    """A node's networks in memory: network → container → what it asked for."""

    def __init__(self) -> None:
        self.applied: list[NetworkConfig] = []
        self.exposures: list[Exposure] = []
        self.collected: list[Collection[str]] = []
        self.on: dict[str, dict[str, Interface]] = {}
        self.broken: dict[str, str] = {}
        """Network → why it cannot be."""
        self.requests: list[str] = []
        """Requests about containers, in order."""

    async def encryption(self) -> tuple[str, tuple[TunnelKey, ...]]:
        return "", ()

    async def tunnels(
        self, address: str, hosts: Sequence[TunnelHost], *, rotation: int, most_age: float
    ) -> Tunnels:
        if "tunnels" in self.broken:
            raise NetworkError(self.broken["tunnels"])
        hosts_inside = {host.address: f"fd6f:7263::{host.keys[0].port}" for host in hosts}
        return Tunnels((TunnelKey("mine", 51840),), hosts_inside)

    async def remove_tunnels(self) -> None:
        raise NetworkError("there was none")

    async def expose(self, exposure: Exposure) -> None:
        self.exposures.append(exposure)

    async def apply(self, config: NetworkConfig) -> None:
        if config.id in self.broken:
            raise NetworkError(self.broken[config.id])
        self.applied.append(config)
        self.on.setdefault(config.id, {})

    async def attach(self, network: str, container_id: str, interface: Interface) -> Attachment:
        self.requests.append("attach")
        self.on[network][container_id] = interface
        address = interface.ip or f"10.{len(network)}.1.2"
        return Attachment(
            container_id,
            netns=f"/run/netns/{container_id}",
            network=network,
            address=address,
            gateway=f"10.{len(network)}.1.1",
            mac="",
            ifname=interface.ifname,
            result={},
            address6=interface.ip6,
        )

    async def disconnect(self, network: str, container_id: str) -> None:
        self.on[network].pop(container_id, None)

    async def detach(self, container_id: str) -> None:
        for containers in self.on.values():
            containers.pop(container_id, None)

    async def collect(self, valid: Collection[str]) -> None:
        self.collected.append(valid)

    async def namespace(self, container_id: str) -> str:
        self.requests.append("namespace")
        return f"/run/netns/{container_id}"

    async def interfaces(self, container_id: str) -> dict[str, str]:
        self.requests.append("interfaces")
        return {
            network: containers[container_id].ifname
            for network, containers in self.on.items()
            if container_id in containers
        }

    async def unused(self) -> list[str]:
        return [network for network, containers in self.on.items() if not containers]

    async def remove(self, network: str) -> None:
        del self.on[network]


def network(
    name: str = "default", *peers: str, internal: bool = False
) -> dispatch_pb2.AssignedNetwork:
    return dispatch_pb2.AssignedNetwork(
        id=f"{name}-id",
        name=name,
        vni=7,
        cluster_cidr="10.128.0.0/14",
        subnet="10.128.1.0/24",
        cluster_cidr6="fd00::/48",
        subnet6="fd00:0:0:1::/64",
        options={"mtu": "1400"},
        internal=internal,
        peers=[
            dispatch_pb2.NetworkPeer(
                subnet="10.128.2.0/24",
                address=peer,
                subnet6="fd00:0:0:2::/64",
                addresses=["10.128.0.9"],
            )
            for peer in peers
        ],
    )


def on(*names: str, **fields: object) -> Task:
    attachments = tuple(NetworkAttachment(name) for name in names)
    return task(spec=TaskSpec(networks=attachments, **fields))  # type: ignore[arg-type]


@asynccontextmanager
async def running(
    node: FakeNode, *neighbours: Task, period: float = 60.0
) -> AsyncIterator[NetworkReconciler]:
    named = {each.name: each for each in neighbours}
    networks = NetworkReconciler(
        node, "10.0.0.1", lambda: {"held"}, named.get, Encryption(node, "10.0.0.1", 0), period
    )
    async with asyncio.TaskGroup() as group:
        loop = group.create_task(networks.run())
        yield networks
        loop.cancel()


async def test_an_order_is_applied_and_leftovers_are_released_once() -> None:
    node = FakeNode()
    async with running(node) as networks:
        networks.order([network()])
        await until(lambda: node.collected)
        networks.order([network("default", "10.0.0.2")])
        await until(lambda: len(node.applied) == 2)
        assert node.collected == [{"held"}]
        assert node.applied[1] == NetworkConfig(
            id="default-id",
            name="default",
            vni=7,
            cluster_cidr="10.128.0.0/14",
            subnet="10.128.1.0/24",
            mtu=1400,
            node_address="10.0.0.1",
            peers=(Peer("10.128.2.0/24", "10.0.0.2", "fd00:0:0:2::/64", ("10.128.0.9",)),),
            subnet6="fd00:0:0:1::/64",
            cluster_cidr6="fd00::/48",
        )


async def test_the_exposure_is_applied_before_networks() -> None:
    node = FakeNode()
    async with running(node) as networks:
        networks.order([network("default", "10.0.0.2")])
        await until(lambda: node.applied)
        assert node.exposures == [Exposure(("10.0.0.1", "10.0.0.2"))]
        networks.exposure_changed()
        await until(lambda: len(node.exposures) == 2)


PLANE = {2379, 2380, 7420, 7421, 7423, 7425, 8001, 9420, 9421, 9425}
"""Ports of the control plane in the test below."""


@pytest.mark.parametrize(
    ("access", "closed", "metadata"),
    [
        ((), {*PLANE, 7422, 7424, 8002, 9422}, True),
        (("metrics",), PLANE, True),
        (("control-plane",), {7422, 7424, 8002, 9422}, True),
        (("metadata",), {*PLANE, 7422, 7424, 8002, 9422}, False),
        (("control-plane", "metrics", "metadata"), set(), False),
    ],
)
def test_ports_that_are_closed_to_containers(
    access: tuple[str, ...], closed: set[int], metadata: bool
) -> None:
    found = exposure_of(
        ["10.0.0.1"],
        managers=["10.0.0.9:9420", "manager.example:7420"],
        ports=(8001, 8002),
        access=access,
    )
    assert found.hosts == ("10.0.0.1", "10.0.0.9")
    assert set(found.ports) == closed
    assert ("169.254.169.254" in found.addresses) is metadata


async def test_the_same_order_is_no_change_but_drift_is_repaired() -> None:
    node = FakeNode()
    async with running(node, period=0.01) as networks:
        networks.order([network()])
        networks.order([network()])
        await until(lambda: len(node.applied) >= 3)


async def test_a_container_waits_for_its_network() -> None:
    node = FakeNode()
    async with running(node) as networks, asyncio.TaskGroup() as group:
        networks.order([network()])
        ports = (
            PortSpec(8080, 80, mode=PublishMode.HOST),
            PortSpec(53, 53, Protocol.UDP, PublishMode.HOST),
            PortSpec(80, 80),
        )
        connected = group.create_task(networks.connect(on("default", ports=ports)))
        assert await connected == Connected(
            NETNS, {"default": "10.10.1.2"}, nameservers=("10.10.1.1",)
        )
        assert node.collected
        mappings = (PortMapping(8080, 80, "tcp"), PortMapping(53, 53, "udp"))
        assert node.on["default-id"]["t1"].ports == mappings


async def test_a_new_container_takes_one_request_per_network() -> None:
    node = FakeNode()
    async with running(node) as networks:
        networks.order([network("a"), network("b")])
        await networks.connect(on("a"))
        assert node.requests == ["attach"]
        await networks.connect(on("b"))
        assert node.requests[1:] == ["interfaces", "namespace", "attach"]
        assert not node.on["a-id"]


async def test_a_container_of_an_earlier_agent_is_taken_off_other_networks() -> None:
    node = FakeNode()
    async with running(node) as networks:
        networks.order([network("a"), network("b")])
        await networks.ready()
        held = replace(on("b"), id="held")
        node.on["a-id"]["held"] = Interface()
        await networks.connect(held)
        assert (node.on["a-id"], list(node.on["b-id"])) == ({}, ["held"])


async def test_on_several_networks_the_first_external_one_has_the_default_route() -> None:
    node = FakeNode()
    async with running(node) as networks:
        networks.order([network("in", internal=True), network("back"), network("front")])
        made = await networks.connect(on("in", "front", "back"))
        assert list(made.addresses) == ["in", "front", "back"]
        interfaces = {name: node.on[f"{name}-id"]["t1"] for name in ("in", "front", "back")}
        assert [each.ifname for each in interfaces.values()] == ["eth0", "eth1", "eth2"]
        assert [name for name, each in interfaces.items() if each.default_route] == ["front"]


async def test_fixed_addresses_follow_the_slot() -> None:
    node = FakeNode()
    attachment = NetworkAttachment(
        "back", ip=("10.128.0.5", "10.128.0.6"), ip6=("fd00::5", "fd00::6"), mac="02:00:00:00:00:07"
    )
    second = replace(task(spec=TaskSpec(networks=(attachment,))), slot=2)
    async with running(node) as networks:
        networks.order([network("back")])
        made = await networks.connect(second)
        assert (made.addresses, made.addresses6) == ({"back": "10.128.0.6"}, {"back": "fd00::6"})
        assert node.on["back-id"]["t1"].mac == "02:00:00:00:00:07"


async def test_changed_networks_leave_the_others_unchanged() -> None:
    node = FakeNode()
    async with running(node) as networks:
        networks.order([network("a"), network("b"), network("c")])
        await networks.connect(on("a", "b"))
        made = await networks.connect(on("b", "c"))
        assert list(made.addresses) == ["b", "c"]
        assert node.on["a-id"] == {}
        assert node.on["b-id"]["t1"].ifname == "eth1"
        assert node.on["b-id"]["t1"].default_route
        assert node.on["c-id"]["t1"].ifname == "eth0"


async def test_an_unordered_network_is_removed_without_containers() -> None:
    node = FakeNode()
    async with running(node, period=0.01) as networks:
        networks.order([network("a"), network("b"), network("c")])
        await networks.connect(on("b"))
        networks.order([network("a")])
        await until(lambda: "c-id" not in node.on)
        assert "b-id" in node.on
        await networks.detach("t1")
        await until(lambda: list(node.on) == ["a-id"])


async def test_some_are_on_no_network() -> None:
    node = FakeNode()
    db = replace(on("default"), id="t2", service_id="", container_name="db")
    web = replace(on("host"), id="t3", service_id="", container_name="web")
    async with running(node, db, web) as networks:
        networks.order([network()])
        assert await networks.connect(on("none")) == Connected(NETNS)
        assert await networks.connect(on("host")) == Connected(None)
        assert await networks.connect(on("container:db")) == Connected(
            Path("/run/netns/t2"), nameservers=("10.10.1.1",)
        )
        assert await networks.connect(on("container:web")) == Connected(None)
        with pytest.raises(NetworkError, match="container cache, whose network it shares"):
            await networks.connect(on("container:cache"))


async def test_a_failed_network_fails_only_its_containers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = FakeNode()
    node.broken["default-id"] = "this kernel has no VXLAN"
    async with running(node, period=0.01) as networks:
        networks.order([network(), network("back")])
        with pytest.raises(NetworkError, match="no VXLAN"):
            await networks.connect(on("default"))
        await networks.connect(on("back"))
        node.broken.clear()
        await until(lambda: "default-id" in node.on)
        await networks.connect(on("default"))
        assert len([r for r in caplog.records if "cannot be applied" in r.message]) == 1


async def test_an_order_that_comes_while_a_container_waits_is_the_one_it_gets() -> None:
    node = FakeNode()
    networks = NetworkReconciler(
        node, "10.0.0.1", lambda: (), {}.get, Encryption(node, "10.0.0.1", 0)
    )
    networks.order([network("back")])
    async with asyncio.TaskGroup() as group:
        connected = group.create_task(networks.connect(on("back")))
        await asyncio.sleep(0)
        networks.order([network("back", "10.0.0.2")])
        loop = group.create_task(networks.run())
        assert (await connected).addresses
        assert node.applied[-1].peers
        loop.cancel()


async def test_without_a_network() -> None:
    async with running(FakeNode()) as networks:
        networks.order([])
        with pytest.raises(NetworkError, match="not received its networks"):
            await networks.connect(on("default"))
        await networks.detach("t1")
        networks.order([network()])
        with pytest.raises(NetworkError, match="network back is not assigned"):
            await networks.connect(on("back"))


async def test_an_encrypted_network_reaches_its_peers_through_tunnels() -> None:
    node = FakeNode()
    node.broken["tunnels"] = "this kernel has no WireGuard"
    secret = network("secret", "10.0.0.2", "10.0.0.3")
    secret.encrypted = True
    async with running(node, period=0.01) as networks:
        networks.order([network("back", "10.0.0.2"), secret])
        with pytest.raises(NetworkError, match="no WireGuard"):
            await networks.connect(on("secret"))
        await networks.connect(on("back"))
        node.broken.clear()
        await until(lambda: "secret-id" in node.on)
        assert node.applied[-1].peers == ()
        # A peer's key is a change of the order.
        known = dispatch_pb2.AssignedNetwork()
        known.CopyFrom(secret)
        known.peers[1].tunnel_keys.add(public="theirs", port=51841)
        networks.order([network("back", "10.0.0.2"), known])
        await networks.connect(on("secret"))
        config = next(one for one in reversed(node.applied) if one.id == "secret-id")
        assert [peer.address for peer in config.peers] == ["fd6f:7263::51841"]
        assert config.encrypted


async def test_peers_and_applied_networks_are_reported() -> None:
    node = FakeNode()
    node.broken["back-id"] = "no"
    async with running(node) as networks:
        assert networks.peers() == frozenset()
        assert networks.plain() is None
        networks.order(
            [
                network("back", "10.0.0.2", "10.0.0.1"),
                network("front", "10.0.0.3"),
                dispatch_pb2.AssignedNetwork(id="alone", driver="bridge", subnet="10.9.0.0/24"),
            ]
        )
        assert networks.peers() == {"10.0.0.2", "10.0.0.3"}
        await until(lambda: len(networks.applied()) == 3)
        assert networks.failures() == {"back-id": "no"}
        plain = networks.plain()
        assert plain is not None
        assert plain.name == "front"
