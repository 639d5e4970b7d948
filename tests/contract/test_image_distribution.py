# SPDX-License-Identifier: Apache-2.0
"""Twenty nodes and one registry: a manager coordinates the pulls, over real gRPC and TLS."""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from imageregistry import layout_of, registry_in
from managerhost import Running, manager_beside, manager_in

from orchestrator.agent.images.pulls import ImagePuller
from orchestrator.agent.images.store import ImageStore
from orchestrator.agent.images.transfer.image_peers import BlobService
from orchestrator.agent.images.transfer.registry import Registry
from orchestrator.identity.certificates import KeyPair
from orchestrator.model.convert import to_proto
from orchestrator.model.nodes import NodeDescription
from orchestrator.model.specs import Resources
from orchestrator.pb import (
    blobs_pb2_grpc,
    dispatch_pb2,
    dispatch_pb2_grpc,
    images_pb2,
    images_pb2_grpc,
    managers_pb2,
    managers_pb2_grpc,
)

pytestmark = pytest.mark.root

SIZE = 4 << 20
DIGEST = f"sha256:{'a' * 64}"
HEARTBEAT = 0.5
"""Seconds between words of a node that has nothing to say."""


@dataclass(frozen=True)
class LightNode:
    """All of a node that has to do with images: its store, its blob port and its session."""

    store: ImageStore
    images: ImagePuller
    channel: grpc.aio.Channel


@asynccontextmanager
async def light_node(running: Running, folder: Path, number: int) -> AsyncIterator[LightNode]:
    joined = await running.join(running.token)
    address = f"127.0.1.{number}"  # no two nodes may have the same
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(ImageStore(folder / f"store-{number}"))
        server = grpc.aio.server()
        blobs_pb2_grpc.add_BlobsServicer_to_server(BlobService(store.blob_path), server)
        port = server.add_insecure_port(f"{address}:0")
        await server.start()
        stack.push_async_callback(server.stop, None)
        channel = running.channel(KeyPair(joined.certificate, joined.key))
        await stack.enter_async_context(channel)
        call: Any = dispatch_pb2_grpc.DispatchStub(channel).Session()
        description = NodeDescription(
            hostname=f"node{number}",
            address=address,
            blob_port=port,
            resources=Resources(shares=1024, memory=1 << 30),
        )
        hello = dispatch_pb2.Hello(description=to_proto(description))
        await call.write(dispatch_pb2.AgentMessage(hello=hello))

        async def report() -> None:
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT):
                        await store.changed.wait()
                except TimeoutError:
                    message = dispatch_pb2.AgentMessage(heartbeat=dispatch_pb2.Heartbeat())
                else:
                    store.changed.clear()
                    images = dispatch_pb2.ImageReport(images=map(to_proto, store.inventory()))
                    message = dispatch_pb2.AgentMessage(images=images)
                await call.write(message)

        reporting = asyncio.create_task(report())
        stack.callback(reporting.cancel)
        images = ImagePuller(
            store,
            grpc.aio.insecure_channel,
            f"{address}:{port}",
            random.Random(number),
            Registry(folder),
            lambda: channel,
        )
        yield LightNode(store, images, channel)
        call.cancel()


async def known_everywhere(running: Running, digest: str, count: int) -> None:
    """Wait until the manager knows of so many nodes that have the image."""
    cache = running.manager.cache
    async with asyncio.timeout(60), cache.subscribe() as feed:
        while len(getattr(cache.view.images.get(digest), "nodes", ())) != count:
            await feed.next()


async def managers_in(stack: AsyncExitStack, folder: Path, count: int) -> list[Running]:
    """The managers of a new cluster; the first one leads."""
    leader = await stack.enter_async_context(manager_in(folder / "manager"))
    others = [manager_beside(leader, folder / f"manager-{number}") for number in range(1, count)]
    return [leader, *[await stack.enter_async_context(each) for each in others]]


@pytest.mark.parametrize("count", [1, 3])
async def test_a_registry_serves_twenty_nodes_once(tmp_path: Path, count: int) -> None:
    async with AsyncExitStack() as stack:
        name, log = stack.enter_context(registry_in(tmp_path))
        managers = await managers_in(stack, tmp_path, count)
        nodes = [
            await stack.enter_async_context(light_node(managers[number % count], tmp_path, number))
            for number in range(20)
        ]
        layout = layout_of(tmp_path, SIZE)
        digest = await Registry(tmp_path).push(layout, name, b"", lambda *news: None)
        found = await asyncio.gather(*(node.images.prepare(name, digest, ()) for node in nodes))
        assert {local.digest for local in found} == {digest}
        assert {(local.layers[0] / "data").stat().st_size for local in found} == {SIZE}
        asked = Counter(re.findall(r'"GET (\S+/blobs/\S+) HTTP', log.read_text()))
        assert len(asked) == 2
        assert set(asked.values()) == {1}
        await known_everywhere(managers[0], digest, len(nodes))


async def test_a_pull_that_continues_counts_at_the_next_leader(tmp_path: Path) -> None:
    request = images_pb2.AcquireRequest(name="web:1", digest=DIGEST, reports=True)
    async with AsyncExitStack() as stack:
        first, second, third = await managers_in(stack, tmp_path, 3)
        pulling = await stack.enter_async_context(light_node(third, tmp_path, 1))
        waiting = await stack.enter_async_context(light_node(second, tmp_path, 2))
        pull = images_pb2_grpc.SourcesStub(pulling.channel).Acquire(request)
        assert (await pull.read()).registry
        cache = first.manager.cache
        async with asyncio.timeout(60), cache.subscribe() as feed:
            while len(cache.view.manager_presence) < 3:
                await feed.next()
        async with first.channel(first.admin) as channel:
            await managers_pb2_grpc.ManagersStub(channel).StepDown(managers_pb2.StepDownRequest())
        reason = "waiting for node1, which pulls the image from its registry"
        wait = images_pb2_grpc.SourcesStub(waiting.channel).Acquire(request)
        async with asyncio.timeout(60):
            # One that is faster than the pull, which is registered again, is granted.
            while (await wait.read()).waiting != reason:
                wait.cancel()
                wait = images_pb2_grpc.SourcesStub(waiting.channel).Acquire(request)
        pull.cancel()
        while (grant := await wait.read()).waiting:
            pass
        assert grant.registry
        wait.cancel()


async def test_node_learns_which_source_it_waits_for(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        name, _ = stack.enter_context(registry_in(tmp_path))
        running = await stack.enter_async_context(manager_in(tmp_path / "manager"))
        slow = await stack.enter_async_context(light_node(running, tmp_path, 1))
        node = await stack.enter_async_context(light_node(running, tmp_path, 2))
        digest = await Registry(tmp_path).push(
            layout_of(tmp_path, SIZE), name, b"", lambda *news: None
        )
        request = images_pb2.AcquireRequest(name=name, digest=digest, reports=True)
        turn = images_pb2_grpc.SourcesStub(slow.channel).Acquire(request)
        assert (await turn.read()).registry
        told: asyncio.Queue[str] = asyncio.Queue()
        async with asyncio.TaskGroup() as tasks:
            pull = tasks.create_task(node.images.prepare(name, digest, (), told.put_nowait))
            reason = "waiting for node1, which pulls the image from its registry"
            assert await told.get() == reason
            turn.cancel()
        assert pull.result().digest == digest
        assert told.get_nowait() == ""


async def test_a_node_that_sends_damaged_content_is_skipped(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        name, _ = stack.enter_context(registry_in(tmp_path))
        running = await stack.enter_async_context(manager_in(tmp_path / "manager"))
        rotten = await stack.enter_async_context(light_node(running, tmp_path, 1))
        node = await stack.enter_async_context(light_node(running, tmp_path, 2))
        digest = await Registry(tmp_path).push(
            layout_of(tmp_path, SIZE), name, b"", lambda *news: None
        )
        await rotten.images.prepare(name, digest, ())
        await known_everywhere(running, digest, 1)
        blobs = tmp_path / "store-1" / "blobs" / "sha256"
        largest = max(blobs.iterdir(), key=lambda path: path.stat().st_size)
        largest.write_bytes(os.urandom(largest.stat().st_size))
        local = await node.images.prepare(name, digest, ())
        assert (local.layers[0] / "data").read_bytes() == (tmp_path / "files/data").read_bytes()
        assert list((tmp_path / "store-2" / "tmp").iterdir()) == []
