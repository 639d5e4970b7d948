# SPDX-License-Identifier: Apache-2.0
"""What needs a node's session when there is none: an agent or a manager has just started."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from managerhost import Running, manager_in

from orchestrator.identity.certificates import KeyPair
from orchestrator.identity.join import Joined
from orchestrator.model.convert import to_proto
from orchestrator.model.nodes import NodeDescription, NodeState
from orchestrator.pb import dispatch_pb2, dispatch_pb2_grpc, interact_pb2, interact_pb2_grpc


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with manager_in(tmp_path / "manager", node_timeout=30.0) as running:
        yield running


@pytest.fixture
async def interact(running: Running) -> AsyncIterator[Any]:
    async with running.channel(running.admin) as channel:
        yield interact_pb2_grpc.InteractStub(channel)


@asynccontextmanager
async def session(running: Running, joined: Joined, name: str) -> AsyncIterator[None]:
    """An agent in session that tells figures of no containers, and of nothing else. It ends with
    all its calls."""
    async with (
        running.channel(KeyPair(joined.certificate, joined.key)) as channel,
        asyncio.TaskGroup() as tunnels,
    ):
        stub = dispatch_pb2_grpc.DispatchStub(channel)
        tasks: list[asyncio.Task[None]] = []

        async def tell(tunnel_id: str) -> None:
            call = stub.Tunnel(metadata=(("orc-tunnel", tunnel_id),))
            await call.write(dispatch_pb2.Frame(stats=interact_pb2.NodeStats()))
            await call.read()

        async def listen(call: Any) -> None:
            while (message := await call.read()) is not grpc.aio.EOF:
                if message.WhichOneof("kind") == "open":
                    tasks.append(tunnels.create_task(tell(message.open.id)))

        call = stub.Session()
        description = to_proto(NodeDescription(hostname=name, address="10.0.0.1"))
        hello = dispatch_pb2.Hello(description=description)
        await call.write(dispatch_pb2.AgentMessage(hello=hello))
        tasks.append(tunnels.create_task(listen(call)))
        await known_as_ready(running, name)
        yield
        for task in tasks:
            task.cancel()


async def known_as_ready(running: Running, name: str) -> None:
    cache = running.manager.cache
    async with cache.subscribe() as feed:
        while not any(
            node.description.hostname == name and node.state is NodeState.READY
            for node in cache.view.nodes.values()
        ):
            await feed.next()


async def heard(stats: Any) -> tuple[str, int, str]:
    async with asyncio.timeout(60):
        told = await stats.read()
    assert told is not grpc.aio.EOF
    return told.node, told.nodes, told.notice


async def test_a_request_waits_for_a_reconnecting_node(running: Running, interact: Any) -> None:
    joined = await running.join(running.token)
    async with session(running, joined, "node1"):
        pass
    stats = interact.Stats(interact_pb2.StatsRequest())
    async with session(running, joined, "node1"):
        assert await heard(stats) == ("node1", 1, "")
        stats.cancel()


async def test_statistics_resume_with_a_node_and_include_new_nodes(
    running: Running, interact: Any
) -> None:
    joined = await running.join(running.token)
    async with session(running, joined, "node1"):
        stats = interact.Stats(interact_pb2.StatsRequest())
        assert await heard(stats) == ("node1", 1, "")
    assert await heard(stats) == ("node1", 1, "the connection to node node1 broke")
    async with session(running, joined, "node1"):
        assert await heard(stats) == ("node1", 1, "")
        async with session(running, await running.join(running.token), "node2"):
            assert await heard(stats) == ("node2", 2, "")
            stats.cancel()


async def test_an_unavailable_node_is_named(running: Running, interact: Any) -> None:
    joined = await running.join(running.token)
    async with session(running, joined, "node1"):
        pass
    stats = interact.Stats(interact_pb2.StatsRequest())
    notice = "node node1 is not connected; see 'orc node ls'"
    assert await heard(stats) == ("node1", 1, notice)
    stats.cancel()
