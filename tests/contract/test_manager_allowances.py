# SPDX-License-Identifier: Apache-2.0
"""Privileged containers and the like, on nodes whose operator allows them, over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from managerhost import Running, manager_in

from orchestrator.identity.certificates import KeyPair
from orchestrator.model.convert import to_proto
from orchestrator.model.nodes import NodeDescription
from orchestrator.model.specs import ContainerSpec, NetworkAttachment, Resources, TaskSpec
from orchestrator.pb import (
    containers_pb2,
    containers_pb2_grpc,
    control_pb2,
    control_pb2_grpc,
    dispatch_pb2,
    dispatch_pb2_grpc,
    interact_pb2,
    interact_pb2_grpc,
    networks_pb2,
    networks_pb2_grpc,
    types_pb2,
)

PRIVILEGED = TaskSpec(ContainerSpec(rootfs="host", command=("true",), privileged=True))
ON_HOST = TaskSpec(
    ContainerSpec(rootfs="host", command=("true",)), networks=(NetworkAttachment("host"),)
)


class Cluster:
    """A manager with two nodes that allow the host's files, so that no image is needed."""

    def __init__(self, running: Running, channel: grpc.aio.Channel) -> None:
        self.running = running
        self.control = control_pb2_grpc.ControlStub(channel)
        self.containers = containers_pb2_grpc.ContainersStub(channel)
        self.networks = networks_pb2_grpc.NetworksStub(channel)
        self.interact = interact_pb2_grpc.InteractStub(channel)

    async def create(self, name: str, spec: TaskSpec, node: str = "") -> None:
        request = containers_pb2.CreateContainerRequest(
            name=name, spec=to_proto(spec), node=node, start=True
        )
        await self.containers.CreateContainer(request)

    async def task(self, name: str) -> Any:
        reply = await self.control.ListTasks(control_pb2.ListTasksRequest())
        return next(task for task in reply.tasks if task.container_name == name)

    async def until(self, name: str, holds: Callable[[Any], bool]) -> Any:
        """The task of a container, once something holds of it."""
        async with asyncio.timeout(60):
            while not holds(task := await self.task(name)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return task

    async def update(self, node: str, **change: Any) -> Any:
        return await self.control.UpdateNode(control_pb2.UpdateNodeRequest(node=node, **change))


@asynccontextmanager
async def agent(running: Running, hostname: str) -> AsyncIterator[str]:
    """An agent that says hello; the id of its node."""
    joined = await running.join(running.token, hostname)
    async with running.channel(KeyPair(joined.certificate, joined.key)) as channel:
        call = dispatch_pb2_grpc.DispatchStub(channel).Session()
        description = NodeDescription(
            hostname=hostname, address="127.0.0.1", resources=Resources(shares=2048, memory=4 << 30)
        )
        hello = dispatch_pb2.Hello(description=to_proto(description))
        await call.write(dispatch_pb2.AgentMessage(hello=hello))
        await call.read()
        yield joined.node_id
        call.cancel()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with (
        manager_in(tmp_path / "manager", node_timeout=60.0) as running,
        running.channel(running.admin) as channel,
        agent(running, "n1"),
        agent(running, "n2"),
    ):
        for name in ("n1", "n2"):
            await running.allow(name, "host-files")
        yield Cluster(running, channel)


async def test_a_new_node_takes_nothing_of_its_host_until_its_operator_allows_it(
    cluster: Cluster,
) -> None:
    await cluster.create("anywhere", PRIVILEGED)
    await cluster.create("there", PRIVILEGED, node="n1")
    waiting = await cluster.until("anywhere", lambda task: bool(task.status.message))
    assert not waiting.node_id
    assert (
        "2 nodes: privileged containers are not allowed (orc node update --allow privileged NODE)"
        in waiting.status.message
    )
    waiting = await cluster.until("there", lambda task: bool(task.status.message))
    assert (
        "node n1 does not allow privileged containers (orc node update --allow privileged n1)"
        in waiting.status.message
    )

    node = await cluster.update("n2", allow=["privileged", "devices"])
    assert list(node.allowed) == ["privileged", "devices", "host-files"]
    task = await cluster.until("anywhere", lambda task: bool(task.node_id))
    assert task.node_id == node.id
    assert not (await cluster.task("there")).status.state > task.status.state


async def test_running_tasks_continue_when_an_allowance_is_withdrawn(
    cluster: Cluster,
) -> None:
    node = await cluster.update("n1", allow=["all"])
    await cluster.create("first", ON_HOST, node="n1")
    before = await cluster.until("first", lambda task: bool(task.node_id))
    node = await cluster.update("n1", disallow=["host-network"])
    assert "host-network" not in node.allowed
    assert "host-users" in node.allowed
    await cluster.create("second", ON_HOST, node="n1")
    refused = await cluster.until("second", lambda task: bool(task.status.message))
    assert "does not allow containers on the host's network" in refused.status.message
    after = await cluster.task("first")
    assert (after.id, after.desired_state) == (before.id, before.desired_state)


async def test_plan_shows_the_missing_allowance(cluster: Cluster) -> None:
    request = containers_pb2.CreateContainerRequest(
        name="box", spec=to_proto(PRIVILEGED), node="n1", start=True
    )
    change = control_pb2.PlannedChange(create_container=request)
    reply = await cluster.control.Plan(control_pb2.PlanRequest(changes=[change]))
    assert any("does not allow privileged containers" in step.reason for step in reply.steps)


async def test_a_privileged_program_is_refused_in_a_container_of_such_a_node(
    cluster: Cluster,
) -> None:
    plain = TaskSpec(ContainerSpec(rootfs="host", command=("true",)))
    await cluster.create("box", plain, node="n1")
    await cluster.until("box", lambda task: bool(task.node_id))
    wanted = interact_pb2.ExecRequest(container="box", command=["id"], privileged=True)

    async def asked() -> AsyncIterator[Any]:
        yield interact_pb2.SessionInput(exec=wanted)

    with pytest.raises(grpc.aio.AioRpcError, match="n1 does not allow privileged") as caught:
        async for _ in cluster.interact.Session(asked()):
            pass
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_networks_without_source_checks(cluster: Cluster) -> None:
    """Their containers can forge the source of what they send, so nodes must allow it."""
    options = {"source-check": "off"}
    request = networks_pb2.CreateNetworkRequest(name="vpn", options=options, attachable=True)
    made = await cluster.networks.CreateNetwork(request)
    assert dict(made.options) == options
    plain = ContainerSpec(rootfs="host", command=("true",))
    await cluster.create("box", TaskSpec(plain), node="n1")
    await cluster.until("box", lambda task: bool(task.node_id))
    attachment = types_pb2.NetworkAttachment(network="vpn")
    connect = networks_pb2.ConnectNetworkRequest(attachment=attachment, container="box")
    refused = "node n1 does not allow containers on networks without source checks"
    with pytest.raises(grpc.aio.AioRpcError, match=refused):
        await cluster.networks.ConnectNetwork(connect)
    router = TaskSpec(plain, networks=(NetworkAttachment("vpn"),))
    await cluster.create("router", router, node="n1")
    waiting = await cluster.until("router", lambda task: bool(task.status.message))
    command = "orc node update --allow unchecked-sources n1"
    assert f"{refused} ({command})" in waiting.status.message
    await cluster.update("n1", allow=["unchecked-sources", "host-files"])
    await cluster.until("router", lambda task: bool(task.node_id))

    request = networks_pb2.CreateNetworkRequest(name="vpn2", options={"source-check": "maybe"})
    with pytest.raises(grpc.aio.AioRpcError, match="source-check=maybe is neither on nor off"):
        await cluster.networks.CreateNetwork(request)


async def test_networks_with_further_sources(cluster: Cluster) -> None:
    options = {"allowed-sources": "192.168.50.0/24,10.9.0.7"}
    request = networks_pb2.CreateNetworkRequest(name="vpn", options=options, attachable=True)
    await cluster.networks.CreateNetwork(request)
    spec = TaskSpec(
        ContainerSpec(rootfs="host", command=("true",)), networks=(NetworkAttachment("vpn"),)
    )
    await cluster.create("router", spec, node="n1")
    waiting = await cluster.until("router", lambda task: bool(task.status.message))
    assert "n1 does not allow containers on networks without source checks" in (
        waiting.status.message
    )
    for text, words in (
        ("192.168.50.1/24", "192.168.50.1/24 is neither an address nor a subnet"),
        ("here", "here is neither an address nor a subnet"),
        ("224.0.0.0/4", "224.0.0.0/4 is not an address to send from"),
    ):
        options = {"allowed-sources": text}
        request = networks_pb2.CreateNetworkRequest(name="vpn2", options=options)
        with pytest.raises(grpc.aio.AioRpcError, match=words):
            await cluster.networks.CreateNetwork(request)


async def test_an_unknown_allowance_is_refused(cluster: Cluster) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="'gpus' is unknown"):
        await cluster.update("n1", allow=["gpus"])
