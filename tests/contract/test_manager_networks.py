# SPDX-License-Identifier: Apache-2.0
"""Calls about networks over real gRPC: what is done at once stays apart, and removal is safe."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import ip_network
from itertools import combinations
from pathlib import Path
from typing import Any

import grpc
import pytest
from managerhost import Running, manager_in

from orchestrator.manager.store.keys import object_key
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.specs import ContainerSpec, NetworkAttachment, ServiceSpec, TaskSpec
from orchestrator.pb import (
    containers_pb2,
    containers_pb2_grpc,
    control_pb2,
    control_pb2_grpc,
    networks_pb2,
    networks_pb2_grpc,
    types_pb2,
)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with manager_in(tmp_path / "manager") as running:
        yield running


@dataclass
class Calls:
    control: Any
    containers: Any
    networks: Any

    async def make(self, name: str, **fields: Any) -> Any:
        request = networks_pb2.CreateNetworkRequest(name=name, attachable=True, **fields)
        return await self.networks.CreateNetwork(request)

    async def service(self, name: str, *networks: NetworkAttachment, replicas: int = 1) -> Any:
        spec = ServiceSpec(name=name, replicas=replicas, task=_task(networks))
        request = control_pb2.CreateServiceRequest(spec=to_proto(spec), no_resolve_image=True)
        return await self.control.CreateService(request)

    async def container(self, name: str, *networks: NetworkAttachment) -> Any:
        request = containers_pb2.CreateContainerRequest(name=name, spec=to_proto(_task(networks)))
        return await self.containers.CreateContainer(request)

    async def names(self) -> list[str]:
        reply = await self.control.ListNetworks(control_pb2.ListNetworksRequest())
        return [network.name for network in reply.networks]


def _task(networks: tuple[NetworkAttachment, ...]) -> TaskSpec:
    container = ContainerSpec(rootfs="host", command=("true",))
    return TaskSpec(container=container, networks=networks)


@pytest.fixture
async def calls(running: Running) -> AsyncIterator[Calls]:
    async with running.channel(running.admin) as channel:
        yield Calls(
            control_pb2_grpc.ControlStub(channel),
            containers_pb2_grpc.ContainersStub(channel),
            networks_pb2_grpc.NetworksStub(channel),
        )


def refusals(outcomes: list[Any]) -> list[str]:
    assert all(isinstance(each, grpc.aio.AioRpcError) for each in outcomes), outcomes
    return [str(each.details()) for each in outcomes]


async def test_networks_that_are_made_at_once_differ(calls: Calls) -> None:
    made = await asyncio.gather(*(calls.make(f"n{number}", ipv6=True) for number in range(12)))
    assert len({network.vni for network in made}) == 12
    for one, other in combinations(made, 2):
        assert not ip_network(one.subnet).overlaps(ip_network(other.subnet))
        assert not ip_network(one.subnet6).overlaps(ip_network(other.subnet6))


async def test_names_differ_by_more_than_the_case_of_their_letters(calls: Calls) -> None:
    """The DNS makes no difference between them."""
    await calls.make("Front_Net")
    assert "Front_Net" in await calls.names()
    with pytest.raises(grpc.aio.AioRpcError, match="network 'front_net' already exists"):
        await calls.make("front_net")
    with pytest.raises(grpc.aio.AioRpcError, match="a network 'Host' in every cluster"):
        await calls.make("Host")
    await calls.service("Web_1", NetworkAttachment("Front_Net"))
    with pytest.raises(
        grpc.aio.AioRpcError, match="service 'web_1' already exists, perhaps in another"
    ):
        await calls.service("web_1")
    with pytest.raises(grpc.aio.AioRpcError, match="not a DNS label"):
        await calls.service("web.1")


async def test_a_name_and_a_subnet_have_one_owner(calls: Calls) -> None:
    outcomes = await asyncio.gather(*(calls.make("back") for _ in range(4)), return_exceptions=True)
    made = [each for each in outcomes if isinstance(each, types_pb2.Network)]
    assert len(made) == 1
    refused = refusals([each for each in outcomes if each not in made])
    assert set(refused) == {"network 'back' already exists; choose another name"}
    outcomes = await asyncio.gather(
        *(calls.make(f"n{number}", subnets=["10.77.0.0/16"]) for number in range(4)),
        return_exceptions=True,
    )
    made = [each for each in outcomes if isinstance(each, types_pb2.Network)]
    assert len(made) == 1
    others = refusals([each for each in outcomes if each not in made])
    assert all(f"overlaps network '{made[0].name}'" in each for each in others)


async def test_an_address_has_one_owner_and_is_free_with_it(calls: Calls) -> None:
    await calls.make("back", subnets=["10.77.0.0/16"])
    fixed = NetworkAttachment("back", ip=("10.77.0.7",))
    outcomes = await asyncio.gather(
        *(calls.container(f"c{number}", fixed) for number in range(4)),
        calls.service("web", fixed),
        return_exceptions=True,
    )
    made = [each for each in outcomes if not isinstance(each, BaseException)]
    assert len(made) == 1
    others = refusals([each for each in outcomes if each not in made])
    assert all("address 10.77.0.7 of network 'back' belongs to " in each for each in others)
    # A VIP is not it, however many there are.
    services = await asyncio.gather(
        *(calls.service(f"s{number}", NetworkAttachment("back")) for number in range(40))
    )
    vips = [next(iter(service.vips.values())) for service in services]
    assert len(set(vips)) == 40
    assert "10.77.0.7" not in vips
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await calls.container("late", NetworkAttachment("back", ip=(vips[0],)))
    assert f"address {vips[0]} of network 'back' belongs to service s0" in str(
        refusal.value.details()
    )


async def test_a_user_of_a_network_being_removed_gets_it_or_is_refused(calls: Calls) -> None:
    for number in range(10):
        network = await calls.make(f"n{number}")
        request = networks_pb2.RemoveNetworkRequest(network=network.name)
        removed, created = await asyncio.gather(
            calls.networks.RemoveNetwork(request),
            calls.container(f"c{number}", NetworkAttachment(network.name)),
            return_exceptions=True,
        )
        if isinstance(removed, BaseException):
            assert not isinstance(created, BaseException)
            assert network.name in await calls.names()
        else:
            assert isinstance(created, BaseException)
            assert network.name not in await calls.names()


async def test_network_in_use_is_not_removed_or_pruned(running: Running, calls: Calls) -> None:
    used = object_key(from_proto(await calls.make("used")))
    await calls.make("spare", labels={"keep": ""})
    await calls.make("idle")
    await calls.container("db", NetworkAttachment("used"))
    before = await running.kv.get(used)
    assert before is not None
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await calls.networks.RemoveNetwork(networks_pb2.RemoveNetworkRequest(network="used"))
    assert refusal.value.details() == (
        "network 'used' is in use by container db; type 'orc rm -f db' first, or detach it with "
        "'orc network disconnect used db'"
    )
    # It is as it was, and nothing was written.
    assert await running.kv.get(used) == before
    await calls.container("db2", NetworkAttachment("used"))
    request = networks_pb2.PruneNetworksRequest(without=["keep"])
    assert list((await calls.networks.PruneNetworks(request)).names) == ["idle"]
    assert await calls.names() == ["bridge", "default", "spare", "used"]


async def test_a_container_that_does_not_run_is_connected_at_once(calls: Calls) -> None:
    await calls.make("back")
    await calls.container("db")
    attachment = types_pb2.NetworkAttachment(network="back", aliases=["sql"])
    request = networks_pb2.ConnectNetworkRequest(attachment=attachment, container="db")
    task = await calls.networks.ConnectNetwork(request)
    assert [each.network for each in task.spec.networks] == ["default", "back"]
    for name in ("default", "back"):
        task = await calls.networks.DisconnectNetwork(
            networks_pb2.DisconnectNetworkRequest(network=name, container="db")
        )
    assert [each.network for each in task.spec.networks] == ["none"]
    task = await calls.networks.ConnectNetwork(request)
    assert [each.network for each in task.spec.networks] == ["back"]
    assert task.spec.networks[0].aliases == ["sql"]


async def test_a_services_task_is_connected_by_its_service(calls: Calls) -> None:
    await calls.make("back")
    await calls.service("web")
    async with asyncio.timeout(60):
        async for picture in calls.control.WatchService(
            control_pb2.WatchServiceRequest(service="web")
        ):
            if picture.tasks:
                break
    attachment = types_pb2.NetworkAttachment(network="back")
    request = networks_pb2.ConnectNetworkRequest(attachment=attachment, container="web.1")
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await calls.networks.ConnectNetwork(request)
    assert "use 'orc service update --network-add'" in str(refusal.value.details())
