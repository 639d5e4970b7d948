# SPDX-License-Identifier: Apache-2.0
"""Frames of a tunnel: a queue for slow readers, uploads and downloads."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import IO, Any, Self

import grpc

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.pb import dispatch_pb2

_WAITING = 10_000
"""Frames that are queued for a slow reader; the oldest are dropped first."""
_CHUNK = 1 << 20
"""Bytes in a frame."""


class Frames:
    """A queue of progress messages for a reader that may be slow; adding never waits."""

    def __init__(self) -> None:
        self._waiting: deque[dispatch_pb2.Frame] = deque(maxlen=_WAITING)
        self._changed = asyncio.Event()
        self._closed = False

    @classmethod
    @asynccontextmanager
    async def sending(cls, call: Any) -> AsyncIterator[Self]:
        """Send the frames over `call` during the block, all of them by its end."""
        frames = cls()
        failure: Exception | None = None
        async with asyncio.TaskGroup() as group:
            group.create_task(frames.send(call))
            try:
                yield frames
            except Exception as error:  # raised below, outside of the group
                failure = error
            finally:
                frames.close()
        if failure is not None:
            raise failure

    def put(self, frame: dispatch_pb2.Frame) -> None:
        """Queue a frame, without waiting."""
        self._waiting.append(frame)
        self._changed.set()

    def close(self) -> None:
        """No more frames will be queued."""
        self._closed = True
        self._changed.set()

    async def send(self, call: Any) -> None:
        """Send all frames until closed, or until the reader has disconnected."""
        try:
            while self._waiting or not self._closed:
                while self._waiting:
                    await call.write(self._waiting.popleft())
                self._changed.clear()
                if not self._closed:
                    await self._changed.wait()
        except (grpc.RpcError, asyncio.InvalidStateError):
            return


async def receive(call: Any, file: IO[bytes]) -> None:
    """Write an upload into a file. Raises ImageError when it is interrupted."""
    while True:
        frame = await call.read()
        if not isinstance(frame, dispatch_pb2.Frame):  # grpc.aio.EOF
            raise ImageError("the upload was interrupted; try again")
        if frame.data:
            await asyncio.to_thread(file.write, frame.data)
        if frame.eof:
            break
    await asyncio.to_thread(file.flush)


async def send(call: Any, read: Callable[[], bytes]) -> None:
    """Send what the blocking `read` returns, until it returns no bytes."""
    while piece := await asyncio.to_thread(read):
        await send_piece(call, piece)


async def send_piece(call: Any, piece: bytes) -> None:
    """Send any number of bytes, in frames of limited size."""
    for start in range(0, len(piece), _CHUNK):
        await call.write(dispatch_pb2.Frame(data=piece[start : start + _CHUNK]))
