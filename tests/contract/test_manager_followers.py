# SPDX-License-Identifier: Apache-2.0
"""Two managers on one store: what the follower is asked for, the cluster does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from managerhost import Running, manager_beside, manager_in
from test_manager import IMAGE, agent

from orchestrator.manager.operations.node_requests import register_image
from orchestrator.manager.store.cache import Cache
from orchestrator.model.convert import to_proto
from orchestrator.model.objects import Image
from orchestrator.pb import control_pb2, control_pb2_grpc, dispatch_pb2


@pytest.fixture
async def leader(tmp_path: Path) -> AsyncIterator[Running]:
    async with manager_in(tmp_path / "leader", 600.0) as running:
        yield running


@pytest.fixture
async def follower(leader: Running, tmp_path: Path) -> AsyncIterator[Running]:
    async with manager_beside(leader, tmp_path / "follower") as running:
        yield running


async def test_an_image_built_through_a_follower_gets_its_name(
    leader: Running, follower: Running
) -> None:
    async with agent(leader, "one"):
        await has_image(follower.manager.cache, IMAGE.id)
        (node,) = follower.manager.cache.view.nodes.values()
        built = Image(id="sha256:" + "b" * 64, names=IMAGE.names)
        result = dispatch_pb2.TunnelResult(image=to_proto(built))
        image = await register_image(follower.manager._api(), node, result, IMAGE.names)
        assert (image.names, image.nodes) == (IMAGE.names, (node.id,))
        cache = leader.manager.cache
        await cache.wait_for(follower.manager.cache.revision)
        assert cache.view.images[built.id] == image
        assert cache.view.images[IMAGE.id].names == ()


async def test_removing_a_node_through_a_follower_ends_its_session(
    leader: Running, follower: Running
) -> None:
    async with (
        agent(leader, "one") as node,
        follower.channel(follower.admin) as channel,
    ):
        control = control_pb2_grpc.ControlStub(channel)
        # As of a client that has seen the node at the leader.
        await control.RemoveNode(
            control_pb2.RemoveNodeRequest(node="one", force=True),
            metadata=(("orc-revision", str(leader.manager.cache.revision)),),
        )
        # By the dispatcher, or since its certificate was revoked with it.
        assert await node.ended() in (grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED)
        assert not leader.manager.cache.view.nodes


async def has_image(cache: Cache, id: str) -> None:
    async with asyncio.timeout(60), cache.subscribe() as feed:
        while id not in cache.view.images:
            await feed.next()
