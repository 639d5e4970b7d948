# SPDX-License-Identifier: Apache-2.0
"""Limits of a running container: the node enforces them first, then they are desired."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from managerhost import Running, manager_in

from orchestrator.identity.certificates import KeyPair
from orchestrator.manager.store.kv import Guard, Op, StoreUnavailable
from orchestrator.model.convert import to_proto
from orchestrator.model.nodes import NodeDescription
from orchestrator.model.specs import ContainerSpec, Resources, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import TaskStatus
from orchestrator.pb import (
    containers_pb2,
    containers_pb2_grpc,
    dispatch_pb2,
    dispatch_pb2_grpc,
)

SPEC = TaskSpec(
    ContainerSpec(rootfs="host", command=("sleep", "1000")), limit=Resources(memory=1 << 30)
)


class Node:
    """An agent whose kernel accepts all limits, unless `refusal` is set."""

    def __init__(self, stub: Any, call: Any) -> None:
        self._stub = stub
        self._call = call
        self.memory: list[int] = []
        """The limits that were ordered."""
        self.refusal = ""

    async def run(self) -> None:
        """Run every task, and answer orders."""
        while True:
            message = await self._call.read()
            match message.WhichOneof("kind"):
                case "assignments":
                    for each in message.assignments.tasks:
                        if each.task.status.state < TaskState.RUNNING:
                            await self._report(each.task.id)
                case "open":
                    self.memory.append(message.open.container.spec.limit.memory)
                    tunnel = self._stub.Tunnel(metadata=(("orc-tunnel", message.open.id),))
                    result = dispatch_pb2.TunnelResult(error=self.refusal)
                    await tunnel.write(dispatch_pb2.Frame(result=result))

    async def _report(self, task_id: str) -> None:
        status = to_proto(TaskStatus(TaskState.RUNNING, run=1, pid=7))
        report = dispatch_pb2.StatusReport(sequence=1, statuses={task_id: status})
        await self._call.write(dispatch_pb2.AgentMessage(statuses=report))


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with manager_in(tmp_path / "manager", 600.0) as running:
        yield running


@pytest.fixture
async def node(running: Running) -> AsyncIterator[Node]:
    joined = await running.join(running.token, "n1")
    async with running.channel(KeyPair(joined.certificate, joined.key)) as channel:
        stub = dispatch_pb2_grpc.DispatchStub(channel)
        call = stub.Session()
        about = NodeDescription(
            hostname="n1", address="127.0.0.1", resources=Resources(2048, 4 << 30)
        )
        await call.write(
            dispatch_pb2.AgentMessage(hello=dispatch_pb2.Hello(description=to_proto(about)))
        )
        await call.read()
        await running.allow("n1", "host-files")
        made = Node(stub, call)
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(made.run())
            yield made
            serving.cancel()
            call.cancel()


async def test_refused_or_failed_update_changes_nothing(
    running: Running, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running.channel(running.admin) as channel:
        containers = containers_pb2_grpc.ContainersStub(channel)

        async def update(**changes: Any) -> Any:
            request = containers_pb2.UpdateContainerRequest(container="box", **changes)
            return await containers.UpdateContainer(request)

        def limit() -> int:
            (task,) = running.manager.cache.view.tasks.values()
            return task.spec.limit.memory

        await containers.CreateContainer(
            containers_pb2.CreateContainerRequest(name="box", spec=to_proto(SPEC), start=True)
        )
        async with asyncio.timeout(60):
            async for row in containers.WatchContainer(
                containers_pb2.ContainerRequest(container="box")
            ):
                if row.task.status.state == TaskState.RUNNING:
                    break
        # A node that is too full is not even asked.
        with pytest.raises(grpc.aio.AioRpcError) as full:
            await update(limit_memory=8 << 30)
        assert "node n1 is too full: container 'box' reserves 1GiB" in str(full.value.details())
        node.refusal = "it uses 40MiB of memory"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await update(limit_memory=16 << 20)
        assert refused.value.details() == "container 'box': it uses 40MiB of memory"
        assert (node.memory, limit()) == ([16 << 20], 1 << 30)

        node.refusal = ""
        txn = running.kv.txn

        async def failing(guards: Sequence[Guard], ops: Sequence[Op]) -> int:
            if len(node.memory) == 2:
                raise StoreUnavailable("away")
            return await txn(guards, ops)

        monkeypatch.setattr(running.kv, "txn", failing)
        with pytest.raises(grpc.aio.AioRpcError) as away:
            await update(limit_memory=2 << 30)
        assert away.value.code() is grpc.StatusCode.UNAVAILABLE
        monkeypatch.undo()
        assert node.memory[1:] == [2 << 30, 1 << 30], "and back"
        assert limit() == 1 << 30

        done = await update(limit_memory=2 << 30, pids_limit=50)
        assert (done.spec.limit.memory, done.spec.container.pids_limit) == (2 << 30, 50)
        assert node.memory[3:] == [2 << 30]
        assert limit() == 2 << 30
        # What the kernel has nothing to do with needs no node.
        await update(reserved_memory=512 << 20)
        assert len(node.memory) == 4
        (reservation,) = (t.spec.counted for t in running.manager.cache.view.tasks.values())
        assert reservation.memory == 512 << 20
