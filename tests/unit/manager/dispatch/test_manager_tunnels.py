# SPDX-License-Identifier: Apache-2.0
"""A tunnel ends when either side is done, and a slow reader slows its sender."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from orchestrator.manager.dispatch.tunnels import Tunnels
from orchestrator.manager.errors import RequestError
from orchestrator.pb import dispatch_pb2

ORDER = dispatch_pb2.OpenTunnel(logs=dispatch_pb2.LogsOrder(task_id="t"))


class Agent:
    """The agent's end of a tunnel call: frames to send, frames received."""

    def __init__(self) -> None:
        self.outgoing: asyncio.Queue[Any | None] = asyncio.Queue()
        self.received: list[Any] = []

    async def write(self, frame: Any) -> None:
        self.received.append(frame)

    async def requests(self) -> AsyncIterator[Any]:
        while (frame := await self.outgoing.get()) is not None:
            yield frame


async def ignored(node: str, message: Any) -> None:
    """A session that sends what it is given nowhere."""


def ids() -> Any:
    numbers = iter(range(100))
    return lambda: f"tunnel-{next(numbers)}"


async def test_frames_flow_both_ways_up_to_the_result() -> None:
    orders: list[Any] = []

    async def keep(node: str, message: Any) -> None:
        orders.append(message)

    tunnels, agent = Tunnels(ids()), Agent()
    async with (
        asyncio.TaskGroup() as group,
        tunnels.open("n1", "node1", ORDER, keep, frozenset({"a:1"})) as tunnel,
    ):
        assert orders[0].open.id == "tunnel-0"
        assert tunnels.find("tunnel-0", "n2") is None
        assert tunnels.find("tunnel-0", "n1") is tunnel
        assert tunnels.pulls("n1", "a:1")
        assert not tunnels.pulls("n1", "b:1")
        assert not tunnels.pulls("n2", "a:1")
        group.create_task(tunnel.carry(agent.requests(), agent))
        await tunnel.send(dispatch_pb2.Frame(data=b"x"))
        agent.outgoing.put_nowait(dispatch_pb2.Frame(line="hello"))
        agent.outgoing.put_nowait(dispatch_pb2.Frame(result=dispatch_pb2.TunnelResult()))
        kinds = [frame.WhichOneof("kind") async for frame in tunnel.frames()]
        assert kinds == ["line", "result"]
    # The client has left, and so the agent's call has ended, though the agent said no more.
    assert [frame.data for frame in agent.received] == [b"x"]
    assert tunnels.find("tunnel-0", "n1") is None


async def test_an_agent_that_vanishes_is_an_error() -> None:
    tunnels, agent = Tunnels(ids()), Agent()
    async with (
        asyncio.TaskGroup() as group,
        tunnels.open("n1", "node1", ORDER, ignored) as tunnel,
    ):
        group.create_task(tunnel.carry(agent.requests(), agent))
        agent.outgoing.put_nowait(None)
        with pytest.raises(RequestError, match="the connection to node node1 broke"):
            async for _ in tunnel.frames():
                pass


async def test_a_slow_client_stops_the_agents_frames() -> None:
    tunnels, agent = Tunnels(ids()), Agent()
    async with (
        asyncio.TaskGroup() as group,
        tunnels.open("n1", "node1", ORDER, ignored) as tunnel,
    ):
        carried = group.create_task(tunnel.carry(agent.requests(), agent))
        for _ in range(1000):
            agent.outgoing.put_nowait(dispatch_pb2.Frame(line="x"))
        for _ in range(1000):  # turns of the loop, far more than it takes to fill the tunnel
            await asyncio.sleep(0)
        assert 900 < agent.outgoing.qsize() < 1000
        assert not carried.done()
