# SPDX-License-Identifier: Apache-2.0
"""What `orc stack rm -d` leaves to the manager: networks, secrets and configs that tasks of removed
services still use are removed when the last of these tasks has stopped."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from managerhost import Running, manager_again, manager_in

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import SEALED
from orchestrator.model.convert import to_proto
from orchestrator.model.documents import DocumentKind, FileReference
from orchestrator.model.nodes import Node, NodeDescription, NodeState
from orchestrator.model.services import Service
from orchestrator.model.specs import ContainerSpec, NetworkAttachment, ServiceSpec, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.pb import (
    control_pb2,
    control_pb2_grpc,
    documents_pb2,
    documents_pb2_grpc,
    networks_pb2,
    networks_pb2_grpc,
)

SPEC = TaskSpec(
    container=ContainerSpec(rootfs="host", command=("true",), secrets=(FileReference("key"),)),
    networks=(NetworkAttachment("back"),),
)
NODE = Node(
    id="node1", description=NodeDescription(hostname="node1", address="10.0.0.1"),
    state=NodeState.READY,
)  # fmt: skip
SECRET: Any = DocumentKind.SECRET


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with manager_in(tmp_path / "manager", node_timeout=3600.0) as running:
        yield running


async def deploy(running: Running, channel: grpc.aio.Channel) -> Task:
    """A network, a secret, and a service on a node whose one task uses both; the task."""
    make = networks_pb2.CreateNetworkRequest(name="back", attachable=True)
    await networks_pb2_grpc.NetworksStub(channel).CreateNetwork(make)
    create = documents_pb2.CreateDocumentRequest(kind=SECRET, name="key", data=b"1")
    await documents_pb2_grpc.DocumentsStub(channel).CreateDocument(create)
    service = Service(id="s1", spec=ServiceSpec(name="web", task=SPEC, replicas=1))
    task = Task(
        id="t1", service_id="s1", service_name="web", slot=1, spec=SPEC, node_id="node1",
        desired_state=TaskState.RUNNING, status=TaskStatus(TaskState.RUNNING),
    )  # fmt: skip
    await commit(running.kv, [Change(None, each) for each in (NODE, service, task)])
    return task


async def remove(channel: grpc.aio.Channel, when_unused: bool) -> list[str]:
    """Ask to remove the secret and the network; the refusals."""
    refusals = []
    network = networks_pb2.RemoveNetworkRequest(network="back", when_unused=when_unused)
    secret = documents_pb2.RemoveDocumentRequest(
        kind=SECRET, document="key", when_unused=when_unused
    )
    for call, request in (
        (documents_pb2_grpc.DocumentsStub(channel).RemoveDocument, secret),
        (networks_pb2_grpc.NetworksStub(channel).RemoveNetwork, network),
    ):
        try:
            await call(request)
        except grpc.aio.AioRpcError as refusal:
            refusals.append(str(refusal.details()))
    return refusals


def left(running: Running) -> set[str]:
    view = running.manager.cache.view
    kept = {each.name for each in (*view.networks.values(), *view.documents.values())}
    return kept - {"bridge", "default"}


async def stopped(running: Running) -> None:
    """The task's node says that it has stopped; return once nothing is left of the service."""
    cache = running.manager.cache
    async with cache.subscribe() as feed:
        while (task := cache.view.tasks["t1"]).desired_state is not TaskState.REMOVE:
            await feed.next()
        ended = replace(task, status=TaskStatus(TaskState.SHUTDOWN))
        await commit(running.kv, [Change(task, ended)])
        while left(running) or cache.view.services:
            await feed.next()


async def sealed(running: Running) -> int:
    """How many versions of secrets' data the store has."""
    return len((await running.kv.list(SEALED)).entries)


async def test_the_last_task_of_a_removed_service_takes_them_along(running: Running) -> None:
    async with running.channel(running.admin) as channel:
        await deploy(running, channel)
        control = control_pb2_grpc.ControlStub(channel)
        await control.RemoveService(control_pb2.RemoveServiceRequest(service="web"))
        assert await remove(channel, when_unused=False) == [
            "secret 'key' is in use by task web.1, which is stopping; try again when it has "
            "stopped",
            "network 'back' is in use by task web.1, which is stopping; try again when it has "
            "stopped",
        ]
        assert await remove(channel, when_unused=True) == []
        assert left(running) == {"back", "key"}
        late = ServiceSpec(name="late", task=SPEC)
        request = control_pb2.CreateServiceRequest(spec=to_proto(late), no_resolve_image=True)
        with pytest.raises(grpc.aio.AioRpcError, match="is being removed"):
            await control.CreateService(request)
        assert await sealed(running) == 1
        await stopped(running)
        assert await sealed(running) == 0


async def test_next_manager_removes_objects_marked_for_removal(
    running: Running, tmp_path: Path
) -> None:
    folder = tmp_path / "first"
    async with (
        manager_in(folder, node_timeout=3600.0) as first,
        first.channel(first.admin) as channel,
    ):
        await deploy(first, channel)
        control = control_pb2_grpc.ControlStub(channel)
        await control.RemoveService(control_pb2.RemoveServiceRequest(service="web"))
        assert await remove(channel, when_unused=True) == []
    async with manager_again(first) as second:
        assert left(second) == {"back", "key"}
        await stopped(second)


async def test_remaining_service_keeps_its_documents_and_networks(running: Running) -> None:
    async with running.channel(running.admin) as channel:
        await deploy(running, channel)
        refusals = await remove(channel, when_unused=True)
        assert [each.partition(";")[0] for each in refusals] == [
            "secret 'key' is in use by service web",
            "network 'back' is in use by service web",
        ]
        view = running.manager.cache.view
        assert not any(each.removing for each in view.documents.values())
        assert not any(each.removing for each in view.networks.values())
