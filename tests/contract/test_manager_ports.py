# SPDX-License-Identifier: Apache-2.0
"""Published ports over real gRPC: of those that want one at once, one has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from managerhost import manager_in

from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.specs import ContainerSpec, PortSpec, PublishMode, ServiceSpec, TaskSpec
from orchestrator.pb import containers_pb2, containers_pb2_grpc, control_pb2, control_pb2_grpc


@dataclass
class Calls:
    control: Any
    containers: Any

    async def service(self, name: str, *ports: PortSpec) -> Any:
        spec = ServiceSpec(name=name, task=_task(ports))
        request = control_pb2.CreateServiceRequest(spec=to_proto(spec), no_resolve_image=True)
        return await self.control.CreateService(request)

    async def update(self, service: Any, *ports: PortSpec) -> Any:
        spec = replace(from_proto(service.spec), task=_task(ports))
        request = control_pb2.UpdateServiceRequest(
            service=service.id, spec=to_proto(spec), no_resolve_image=True
        )
        return await self.control.UpdateService(request)

    async def container(self, name: str, *ports: PortSpec) -> Any:
        request = containers_pb2.CreateContainerRequest(
            name=name, spec=to_proto(_task(ports)), start=True
        )
        return await self.containers.CreateContainer(request)


def _task(ports: tuple[PortSpec, ...]) -> TaskSpec:
    return TaskSpec(container=ContainerSpec(rootfs="host", command=("true",)), ports=ports)


@pytest.fixture
async def calls(tmp_path: Path) -> AsyncIterator[Calls]:
    async with (
        manager_in(tmp_path / "manager") as running,
        running.channel(running.admin) as channel,
    ):
        yield Calls(
            control_pb2_grpc.ControlStub(channel), containers_pb2_grpc.ContainersStub(channel)
        )


def sorted_out(outcomes: list[Any]) -> tuple[list[Any], list[str]]:
    """What was made, and what was said of the others."""
    made = [each for each in outcomes if not isinstance(each, BaseException)]
    others = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
    assert len(made) + len(others) == len(outcomes), outcomes
    return made, [str(each.details()) for each in others]


async def test_a_port_has_one_owner_under_concurrent_requests(calls: Calls) -> None:
    port = PortSpec(8080, 80)
    outcomes = await asyncio.gather(
        *(calls.service(f"s{number}", port) for number in range(4)),
        *(calls.container(f"c{number}", port) for number in range(4)),
        return_exceptions=True,
    )
    made, refused = sorted_out(outcomes)
    assert len(made) == 1
    assert all(each.startswith("port 8080/tcp is published by ") for each in refused)


async def test_services_that_come_to_want_the_same_port(calls: Calls) -> None:
    services = [await calls.service(f"s{number}") for number in range(4)]
    outcomes = await asyncio.gather(
        *(calls.update(service, PortSpec(8080, 80)) for service in services),
        return_exceptions=True,
    )
    made, refused = sorted_out(outcomes)
    assert len(made) == 1
    owner = made[0].spec.name
    assert set(refused) == {f"port 8080/tcp is published by service '{owner}'; publish another one"}
    # Different ports get in nobody's way.
    outcomes = await asyncio.gather(
        *(calls.update(each, PortSpec(9000 + n, 80)) for n, each in enumerate(services)),
        return_exceptions=True,
    )
    assert len(sorted_out(outcomes)[0]) == 4


async def test_host_mode_ports_are_shared_and_exclude_ingress_mode(
    calls: Calls,
) -> None:
    own = PortSpec(8080, 80, mode=PublishMode.HOST)
    await calls.service("one", own)
    await calls.service("two", own)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await calls.service("three", PortSpec(8080, 80))
    assert "port 8080/tcp is published by service 'one'" in str(refusal.value.details())
