# SPDX-License-Identifier: Apache-2.0
"""Transfer of blobs between nodes: the server of `Blobs.Get`, and a client for several sources."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import grpc.aio

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.images.staging import FetchBlob, IncomingBlob
from orchestrator.pb import blobs_pb2, blobs_pb2_grpc

CHUNK = 1 << 20
"""Bytes per message."""

_STALL = 5.0
"""Seconds without data after which a source has failed."""

_RECONNECT = 10.0
"""Seconds to wait for an unreachable node if no other has the blob: its agent may restart."""

_UNREACHABLE = "cannot be reached"

ChannelFactory = Callable[[str], grpc.aio.Channel]
"""Opens a channel to `HOST:PORT`, with the caller's credentials."""


class BlobService(blobs_pb2_grpc.BlobsServicer):  # type: ignore[misc]
    """Serves the blobs of a store, read-only."""

    def __init__(self, blob_path: Callable[[str], Path | None]) -> None:
        """`blob_path` returns the file of a blob, such as `ImageStore.blob_path`."""
        self._blob_path = blob_path

    async def Get(
        self,
        request: blobs_pb2.GetBlobRequest,
        context: grpc.aio.ServicerContext[blobs_pb2.GetBlobRequest, blobs_pb2.BlobChunk],
    ) -> AsyncIterator[blobs_pb2.BlobChunk]:
        """The blob's bytes from the offset on."""
        try:
            path = self._blob_path(request.digest)
            file = path.open("rb") if path is not None else None
        except ImageError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except FileNotFoundError:
            file = None
        if file is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no blob {request.digest} here")
        with file:
            total = file.seek(0, 2)
            if not 0 <= request.offset <= total:
                await context.abort(
                    grpc.StatusCode.OUT_OF_RANGE, f"offset {request.offset} is not in 0..{total}"
                )
            file.seek(request.offset)
            yield blobs_pb2.BlobChunk(total=total, data=await asyncio.to_thread(file.read, CHUNK))
            while data := await asyncio.to_thread(file.read, CHUNK):
                yield blobs_pb2.BlobChunk(data=data)


def fetch_from(
    sources: Sequence[str],
    channel_factory: ChannelFactory,
    rng: random.Random,
    stall: float = _STALL,
    back: float = _RECONNECT,
) -> FetchBlob:
    """A fetcher of blobs from `sources` (`HOST:PORT`), in random order by `rng` for each blob, so
    that many nodes spread over many sources.

    If a source aborts the transfer, sends no data for `stall` seconds, or lacks the blob, the next
    one continues at the same byte. When all have failed, unreachable ones are retried for
    `back` seconds. The digest is verified; damaged data is fetched again. Raises `ImageError`, with
    the error of each source.
    """

    async def fetch(blob: IncomingBlob) -> None:
        order = rng.sample(sources, len(sources))
        failures: dict[str, str] = {}
        now = asyncio.get_running_loop().time
        patience = back
        while True:
            before = blob.received
            for source in order:
                try:
                    async with channel_factory(source) as channel:
                        await _resume(blob, channel, stall)
                    return
                except grpc.aio.AioRpcError as error:
                    failures[source] = _describe(error)
                except TimeoutError:
                    failures[source] = f"silent for {stall:g} s"
                except _BadTransfer as error:
                    failures[source] = str(error)
            # All have failed once; those that sent a part may be reachable again.
            if blob.received > before:
                patience = back
                continue
            began = now()
            unreachable = [source for source in order if failures[source] == _UNREACHABLE]
            if not await _any_reachable(unreachable, channel_factory, patience):
                break
            patience -= now() - began
        tried = ", ".join(f"{source} ({failures[source]})" for source in order)
        raise ImageError(f"cannot get blob {blob.digest} from any node: {tried or 'none has it'}")

    return fetch


async def _any_reachable(sources: Sequence[str], dial: ChannelFactory, within: float) -> bool:
    """Whether a source becomes reachable within that time, in seconds."""
    if not sources:
        return False
    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(dial(source)) for source in sources]
        ready = [asyncio.ensure_future(channel.channel_ready()) for channel in channels]
        done, _ = await asyncio.wait(ready, timeout=within, return_when=asyncio.FIRST_COMPLETED)
        for attempt in ready:
            attempt.cancel()
        await asyncio.gather(*ready, return_exceptions=True)
        return bool(done)


class _BadTransfer(Exception):
    """A source sent wrong or incomplete data."""


async def _resume(blob: IncomingBlob, channel: grpc.aio.Channel, stall: float) -> None:
    """Fetch the rest of the blob from this source, and verify the complete blob."""
    request = blobs_pb2.GetBlobRequest(digest=blob.digest, offset=blob.received)
    call = blobs_pb2_grpc.BlobsStub(channel).Get(request)
    total: int | None = None
    try:
        while True:
            async with asyncio.timeout(stall):
                chunk = await call.read()
            if chunk is grpc.aio.EOF:  # type: ignore[attr-defined]
                break
            total = chunk.total if total is None else total
            if blob.received + len(chunk.data) > total:
                blob.restart()
                raise _BadTransfer("it sent more than it announced")
            await asyncio.to_thread(blob.write, chunk.data)
    finally:
        call.cancel()
    if blob.received != total:
        raise _BadTransfer("the transfer was interrupted")
    try:
        blob.check()
    except ImageError:
        blob.restart()
        raise _BadTransfer("the received data does not match its digest") from None


def _describe(error: grpc.aio.AioRpcError) -> str:
    match error.code():
        case grpc.StatusCode.NOT_FOUND:
            return "does not have it"
        case grpc.StatusCode.UNAVAILABLE:
            return _UNREACHABLE
        case code:
            return f"{code.name.lower().replace('_', ' ')}: {error.details()}"
