"""Frames of a tunnel: what waits for a slow reader, and what an upload brings."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import IO, Any, Self

import grpc

from orchestrator.agent.images.errors import ImageError
from orchestrator.pb import dispatch_pb2

_WAITING = 10_000
"""Frames that wait for a slow reader; the oldest go first."""
_CHUNK = 1 << 20
"""Bytes in a frame."""


class Frames:
    """News on its way to a reader that may be slow, told without waiting."""

    def __init__(self) -> None:
        self._waiting: deque[dispatch_pb2.Frame] = deque(maxlen=_WAITING)
        self._news = asyncio.Event()
        self._closed = False

    @classmethod
    @asynccontextmanager
    async def sending(cls, call: Any) -> AsyncIterator[Self]:
        """Frames that are sent over `call` during the block, all of them by its end."""
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
        """Take a frame, without waiting."""
        self._waiting.append(frame)
        self._news.set()

    def close(self) -> None:
        """There will be no more."""
        self._closed = True
        self._news.set()

    async def send(self, call: Any) -> None:
        """Send all frames until closed, or until nobody reads them any more."""
        try:
            while self._waiting or not self._closed:
                while self._waiting:
                    await call.write(self._waiting.popleft())
                self._news.clear()
                if not self._closed:
                    await self._news.wait()
        except (grpc.RpcError, asyncio.InvalidStateError):
            return


async def receive(call: Any, file: IO[bytes]) -> None:
    """Write all that the other end sends into a file. Raises ImageError when it breaks off."""
    while True:
        frame = await call.read()
        if not isinstance(frame, dispatch_pb2.Frame):  # grpc.aio.EOF
            raise ImageError("the upload broke off; try again")
        if frame.data:
            await asyncio.to_thread(file.write, frame.data)
        if frame.eof:
            break
    await asyncio.to_thread(file.flush)


async def send(call: Any, read: Callable[[], bytes]) -> None:
    """Send all that `read`, which blocks, returns up to nothing."""
    while piece := await asyncio.to_thread(read):
        await send_piece(call, piece)


async def send_piece(call: Any, piece: bytes) -> None:
    """Send some bytes, however many."""
    for start in range(0, len(piece), _CHUNK):
        await call.write(dispatch_pb2.Frame(data=piece[start : start + _CHUNK]))
