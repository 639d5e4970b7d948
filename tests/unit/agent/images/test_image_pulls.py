# SPDX-License-Identifier: Apache-2.0
"""A node that needs an image and asks a manager for its turn: one that answers, or does not."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.images.image_spec import ImageConfig, LocalImage
from orchestrator.agent.images.pulls import ImagePuller
from orchestrator.agent.images.staging import FetchBlob, IncomingBlob
from orchestrator.agent.images.transfer.registry import BlobSource
from orchestrator.pb import images_pb2, images_pb2_grpc

DIGEST = f"sha256:{'a' * 64}"

Answer = Callable[[images_pb2.AcquireRequest, Any], Awaitable[None]]


class Manager(images_pb2_grpc.SourcesServicer):  # type: ignore[misc]
    """Gives scripted responses, in order."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.progress: asyncio.Queue[int] = asyncio.Queue()
        self.ended = asyncio.Event()

    async def Acquire(self, request: images_pb2.AcquireRequest, context: Any) -> None:
        try:
            await self.answers.pop(0)(request, context)
        finally:
            self.ended.set()

    async def Progress(self, request: images_pb2.PullProgress, context: Any) -> Any:
        self.progress.put_nowait(request.received)
        return images_pb2.PullProgressReply()


@asynccontextmanager
async def served(manager: Manager) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    images_pb2_grpc.add_SourcesServicer_to_server(manager, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(None)


async def registry_at_once(request: images_pb2.AcquireRequest, context: Any) -> None:
    await context.write(images_pb2.Grant(registry=True))
    await asyncio.get_running_loop().create_future()


async def silence(request: images_pb2.AcquireRequest, context: Any) -> None:
    await asyncio.get_running_loop().create_future()


async def restart(request: images_pb2.AcquireRequest, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "the manager ends")


def notices_then(answer: Answer, *reasons: str) -> Answer:
    async def notify(request: images_pb2.AcquireRequest, context: Any) -> None:
        for reason in reasons:
            await context.write(images_pb2.Grant(waiting=reason))
        await answer(request, context)

    return notify


class Store:
    """Has nothing, and fetches one blob."""

    def resolve(self, reference: str) -> str | None:
        return None

    def blob_path(self, digest: str) -> Path | None:
        return None

    async def ensure(self, digest: str, fetch: FetchBlob, name: str = "") -> LocalImage:
        with IncomingBlob(Path("/dev/null"), digest, None, 1 << 20) as blob:
            await fetch(blob)
        return LocalImage(digest, (), ImageConfig())


class Registry:
    """Serves a blob in pieces, on demand."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces or (b"x",)
        self.go = asyncio.Semaphore(1 if not pieces else 0)

    @asynccontextmanager
    async def source(self, *_: object) -> AsyncIterator[FetchBlob]:
        async def fetch(blob: IncomingBlob) -> None:
            for piece in self.pieces:
                await self.go.acquire()
                blob.write(piece)

        yield fetch


def images(channel: grpc.aio.Channel, registry: Registry, **more: float) -> ImagePuller:
    def nobody(address: str) -> Any:
        raise ImageError(f"asked {address}")

    return ImagePuller(
        Store(),  # type: ignore[arg-type]
        nobody,
        "10.0.0.1:1",
        random.Random(1),
        registry,  # type: ignore[arg-type]
        lambda: channel,
        **more,
    )


async def test_reasons_for_waiting_are_reported_and_cleared() -> None:
    manager = Manager(notices_then(registry_at_once, "waiting for n1", "waiting for n2"))
    told: list[str] = []
    async with served(manager) as channel:
        found = await images(channel, Registry()).prepare("web:1", DIGEST, (), told.append)
        assert found.digest == DIGEST
        await manager.ended.wait()
    assert told == ["waiting for n1", "waiting for n2", ""]


async def test_a_node_pulls_from_the_registry_if_its_manager_does_not_respond() -> None:
    manager = Manager(notices_then(silence, "waiting for n1"))
    told: list[str] = []
    async with served(manager) as channel:
        node = images(channel, Registry(), silence=0.3)
        assert (await node.prepare("web:1", DIGEST, (), told.append)).digest == DIGEST
        await manager.ended.wait()
    assert told == ["waiting for n1", ""]


async def test_a_waiting_node_asks_again_after_a_restart_of_its_manager() -> None:
    asked: list[str] = []

    async def again(request: images_pb2.AcquireRequest, context: Any) -> None:
        asked.append(request.digest)
        await registry_at_once(request, context)

    manager = Manager(notices_then(restart, "waiting for n1"), again)
    async with served(manager) as channel:
        node = images(channel, Registry())
        assert (await node.prepare("web:1", DIGEST, ())).digest == DIGEST
    assert asked == [DIGEST]


async def test_progress_is_reported() -> None:
    manager = Manager(registry_at_once)
    registry = Registry(b"abc", b"defg", b"h")
    async with served(manager) as channel:
        node = images(channel, registry, report=0.05)
        pull = asyncio.create_task(node.prepare("web:1", DIGEST, ()))
        registry.go.release()
        assert await manager.progress.get() == 3
        # It stands still for a few reports: nothing is said of it until more has come.
        await asyncio.sleep(0.2)
        registry.go.release()
        assert await manager.progress.get() == 7
        registry.go.release()
        await pull
        await manager.ended.wait()


async def test_a_pull_from_a_silent_registry_times_out(tmp_path: Path) -> None:
    dumb = tmp_path / "skopeo"
    dumb.write_text("#!/bin/sh\nexec sleep 1000\n")
    dumb.chmod(0o755)

    async def document(digest: str) -> bytes:
        raise AssertionError(digest)

    def progress(digest: str, done: int, total: int) -> None:
        raise AssertionError(digest)

    before = len(os.listdir("/proc/self/fd"))
    blobs = BlobSource(
        command=(str(dumb),),
        fds=(),
        reference="docker://r.example/web:1",
        failed=ImageError,
        document=document,
        progress=progress,
        there=lambda digest: None,
        opening=0.1,
    )
    with pytest.raises(ImageError, match=r"no answer within 0\.1 seconds"):
        async with blobs:
            raise AssertionError("it cannot be opened")
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_pull_is_registered_with_the_next_manager() -> None:
    registered: asyncio.Queue[images_pb2.AcquireRequest] = asyncio.Queue()

    async def grant_and_end(request: images_pb2.AcquireRequest, context: Any) -> None:
        await context.write(images_pb2.Grant(registry=True))
        await restart(request, context)

    async def register(request: images_pb2.AcquireRequest, context: Any) -> None:
        registered.put_nowait(request)
        await asyncio.get_running_loop().create_future()

    registry = Registry(b"some", b"more")
    async with (
        served(Manager(grant_and_end, register)) as channel,
        asyncio.TaskGroup() as tasks,
    ):
        pull = tasks.create_task(images(channel, registry).prepare("web:1", DIGEST, ()))
        request = await registered.get()
        assert (request.digest, request.pulling, request.source) == (DIGEST, True, "")
        for _ in registry.pieces:
            registry.go.release()
    assert pull.result().digest == DIGEST
