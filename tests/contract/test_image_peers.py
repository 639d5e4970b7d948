# SPDX-License-Identifier: Apache-2.0
"""Transfer of blobs between nodes over real gRPC on loopback, with sources that fail, hang or send
wrong data."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.images.staging import IncomingBlob
from orchestrator.agent.images.transfer.image_peers import CHUNK, BlobService, fetch_from
from orchestrator.pb import blobs_pb2, blobs_pb2_grpc

BLOB = os.urandom(5 * CHUNK + 123)
DIGEST = f"sha256:{hashlib.sha256(BLOB).hexdigest()}"


class InOrder(random.Random):
    """Draws the sources in the order given."""

    def sample(self, population: Any, k: int, *, counts: Any = None) -> Any:
        return list(population)


class Source(blobs_pb2_grpc.BlobsServicer):
    """A source by script: what it sends for an offset. It notes which offsets were asked for."""

    def __init__(self, script: Callable[[int], AsyncIterator[blobs_pb2.BlobChunk]]) -> None:
        self._script = script
        self.offsets: list[int] = []

    async def Get(self, request: Any, context: Any) -> AsyncIterator[blobs_pb2.BlobChunk]:
        self.offsets.append(request.offset)
        async for chunk in self._script(request.offset):
            yield chunk


async def whole(offset: int) -> AsyncIterator[blobs_pb2.BlobChunk]:
    yield blobs_pb2.BlobChunk(total=len(BLOB), data=BLOB[offset : offset + CHUNK])
    for at in range(offset + CHUNK, len(BLOB), CHUNK):
        yield blobs_pb2.BlobChunk(data=BLOB[at : at + CHUNK])


async def dies(offset: int) -> AsyncIterator[blobs_pb2.BlobChunk]:
    yield blobs_pb2.BlobChunk(total=len(BLOB), data=BLOB[offset : offset + CHUNK])
    raise RuntimeError("dies")


async def ends_early(offset: int) -> AsyncIterator[blobs_pb2.BlobChunk]:
    yield blobs_pb2.BlobChunk(total=len(BLOB), data=BLOB[offset : offset + CHUNK])


async def hangs(offset: int) -> AsyncIterator[blobs_pb2.BlobChunk]:
    yield blobs_pb2.BlobChunk(total=len(BLOB), data=BLOB[offset : offset + CHUNK])
    await asyncio.Event().wait()


async def lies(offset: int) -> AsyncIterator[blobs_pb2.BlobChunk]:
    yield blobs_pb2.BlobChunk(total=CHUNK, data=bytes(CHUNK - offset))


async def floods(offset: int) -> AsyncIterator[blobs_pb2.BlobChunk]:
    yield blobs_pb2.BlobChunk(total=10, data=bytes(10))
    while True:
        yield blobs_pb2.BlobChunk(data=bytes(10))


@asynccontextmanager
async def serving(*services: Any) -> AsyncIterator[list[str]]:
    """Serve each on a port of its own; their addresses."""
    async with AsyncExitStack() as stack:
        addresses = []
        for service in services:
            server = grpc.aio.server()
            blobs_pb2_grpc.add_BlobsServicer_to_server(service, server)
            addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
            await server.start()
            stack.push_async_callback(server.stop, None)
        yield addresses


async def get(sources: list[str], target: Path, stall: float = 30.0, back: float = 0.1) -> bytes:
    fetch = fetch_from(sources, grpc.aio.insecure_channel, InOrder(), stall, back)
    with IncomingBlob(target, DIGEST, len(BLOB), 0) as blob:
        await fetch(blob)
    return await asyncio.to_thread(target.read_bytes)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


@pytest.fixture
def real(tmp_path: Path) -> BlobService:
    """The real service over one blob."""
    path = tmp_path / "blob"
    path.write_bytes(BLOB)

    def blob_path(digest: str) -> Path | None:
        if ".." in digest:
            raise ImageError(f"{digest!r} is not a digest")
        return path if digest == DIGEST else None

    return BlobService(blob_path)


async def test_a_blob_arrives_complete(real: BlobService, target: Path) -> None:
    async with serving(real) as sources:
        assert await get(sources, target) == BLOB


@pytest.mark.parametrize("offset", [0, 1, CHUNK, len(BLOB) - 1, len(BLOB)])
async def test_the_service_resumes_at_any_offset(real: BlobService, offset: int) -> None:
    async with serving(real) as [source], grpc.aio.insecure_channel(source) as channel:
        request = blobs_pb2.GetBlobRequest(digest=DIGEST, offset=offset)
        chunks = [chunk async for chunk in blobs_pb2_grpc.BlobsStub(channel).Get(request)]
    assert b"".join(chunk.data for chunk in chunks) == BLOB[offset:]
    assert chunks[0].total == len(BLOB)
    assert all(len(chunk.data) <= CHUNK for chunk in chunks)


@pytest.mark.parametrize(
    ("digest", "offset", "code"),
    [
        ("sha256:" + "0" * 64, 0, grpc.StatusCode.NOT_FOUND),
        ("../../etc/passwd", 0, grpc.StatusCode.INVALID_ARGUMENT),
        (DIGEST, len(BLOB) + 1, grpc.StatusCode.OUT_OF_RANGE),
        (DIGEST, -1, grpc.StatusCode.OUT_OF_RANGE),
    ],
    ids=["unknown", "no digest", "behind its end", "before its start"],
)
async def test_error_codes_of_the_service(
    real: BlobService, digest: str, offset: int, code: grpc.StatusCode
) -> None:
    async with serving(real) as [source], grpc.aio.insecure_channel(source) as channel:
        request = blobs_pb2.GetBlobRequest(digest=digest, offset=offset)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await blobs_pb2_grpc.BlobsStub(channel).Get(request).read()
    assert caught.value.code() is code


@pytest.mark.parametrize("script", [dies, ends_early])
async def test_an_interrupted_transfer_resumes_from_the_next_source(
    target: Path, script: Callable[[int], AsyncIterator[blobs_pb2.BlobChunk]]
) -> None:
    first, second = Source(script), Source(whole)
    async with serving(first, second) as sources:
        assert await get(sources, target) == BLOB
    assert (first.offsets, second.offsets) == ([0], [CHUNK])


async def test_a_silent_source_times_out(target: Path) -> None:
    second = Source(whole)
    async with serving(Source(hangs), second) as sources:
        assert await get(sources, target, stall=0.2) == BLOB
    assert second.offsets == [CHUNK]


@pytest.mark.parametrize("script", [lies, floods])
async def test_damaged_data_is_fetched_again(
    target: Path, script: Callable[[int], AsyncIterator[blobs_pb2.BlobChunk]]
) -> None:
    second = Source(whole)
    async with serving(Source(script), second) as sources:
        assert await get(sources, target) == BLOB
    assert second.offsets == [0]


async def test_a_single_source_that_breaks_off_is_retried_while_it_progresses(
    target: Path,
) -> None:
    source = Source(dies)
    async with serving(source) as sources:
        # Its last piece completes the blob, but the call never ends well; then it is complete.
        with pytest.raises(ImageError, match="cannot get blob"):
            await get(sources, target)
    assert source.offsets == [0, *range(CHUNK, 6 * CHUNK, CHUNK), len(BLOB)]


async def test_the_error_names_every_source_with_its_reason(target: Path) -> None:
    async with serving(BlobService(lambda digest: None), Source(lies)) as sources:
        with pytest.raises(ImageError) as caught:
            await get([*sources, "127.0.0.1:1"], target)
    assert str(caught.value) == (
        f"cannot get blob {DIGEST} from any node: {sources[0]} (does not have it), "
        f"{sources[1]} (the received data does not match its digest), "
        "127.0.0.1:1 (cannot be reached)"
    )
    with pytest.raises(ImageError, match="none has it"):
        await get([], target)


async def test_a_node_with_a_restarting_agent_is_retried(real: BlobService, target: Path) -> None:
    async with serving(BlobService(lambda digest: None), real) as sources:
        gone = sources[1]
    # Nobody listens there now.
    async with serving(BlobService(lambda digest: None)) as [other]:
        fetching = asyncio.create_task(get([other, gone], target, back=30.0))
        await asyncio.wait([fetching], timeout=0.5)
        assert not fetching.done()
        server = grpc.aio.server()
        blobs_pb2_grpc.add_BlobsServicer_to_server(real, server)
        server.add_insecure_port(gone)
        await server.start()
        try:
            assert await fetching == BLOB
        finally:
            await server.stop(None)


async def test_each_blob_has_its_own_random_order_of_sources(
    real: BlobService, tmp_path: Path
) -> None:
    services = [Source(whole), Source(whole), Source(whole)]
    async with serving(*services) as sources:
        fetch = fetch_from(sources, grpc.aio.insecure_channel, random.Random(7))
        for number in range(12):
            with IncomingBlob(tmp_path / str(number), DIGEST, len(BLOB), 0) as blob:
                await fetch(blob)
    assert all(service.offsets for service in services)
