# SPDX-License-Identifier: Apache-2.0
"""Pulls of a manager's nodes while another manager leads, or none does."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from orchestrator.daemon.background import background
from orchestrator.manager.dispatch import pull_turns
from orchestrator.manager.dispatch.pull_turns import PullTurn, PullTurns
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.kv import StoreUnavailable
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.model.nodes import Node, NodeState
from orchestrator.pb import images_pb2


class Agent:
    """An agent that requests a pull, with the replies to it."""

    def __init__(self, node_id: str) -> None:
        self.granted: asyncio.Queue[str] = asyncio.Queue()
        request = images_pb2.AcquireRequest(name="web:1", digest="sha256:a", reports=True)
        self.turn = PullTurn(node_id, request, self._grant, self._notify)

    async def _grant(self, source: str) -> None:
        self.granted.put_nowait(source)

    async def _notify(self, reason: str) -> None:
        pass


async def no_channel(manager_id: str) -> grpc.aio.Channel | None:
    return None


async def test_a_manager_coordinates_its_nodes_while_the_leader_cannot() -> None:
    """A leader of an older version does not know the call."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    kv = MemoryKv(lambda: 0.0)
    cache, one, two = Cache(kv), Agent("n1"), Agent("n2")
    nodes = [Change(None, Node(id=id, state=NodeState.READY)) for id in ("n1", "n2")]
    revision = await commit(kv, nodes)
    try:
        async with (
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
            background(cache.follow()),
        ):
            await cache.wait_for(revision)

            async def leader() -> str | None:
                return "m2"

            async def to_leader(manager_id: str) -> grpc.aio.Channel | None:
                return channel

            turns = PullTurns(cache, "m1", leader, to_leader)
            async with background(turns.hold(two.turn)):
                assert await two.granted.get() == ""
                async with background(turns.hold(one.turn)):
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(one.granted.get(), 0.2)
    finally:
        await server.stop(None)


async def test_pulls_wait_for_a_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull_turns, "RETRY", 0.01)
    asked = asyncio.Event()

    async def unknown() -> str | None:
        asked.set()
        raise StoreUnavailable("no etcd endpoint answered in time")

    node = Agent("n1")
    turns = PullTurns(Cache(MemoryKv(lambda: 0.0)), "m1", unknown, no_channel)
    async with background(turns.hold(node.turn)):
        await asked.wait()
        assert node.granted.empty()
        async with turns.leading():
            assert await node.granted.get() == ""
