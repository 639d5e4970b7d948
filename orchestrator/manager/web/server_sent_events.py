# SPDX-License-Identifier: Apache-2.0
"""Server-sent events (WHATWG HTML, 9.2): their format, and the response that streams them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

ALIVE_PERIOD = 1.0
"""Seconds between two `alive` events: a page leaves a manager that is silent for longer."""


def event(kind: str, data: Any) -> bytes:
    """An event with JSON data."""
    return raw_event(kind, compact_json(data))


def raw_event(kind: str, text: str) -> bytes:
    """An event with data that is JSON already."""
    return f"event: {kind}\ndata: {text}\n\n".encode()


def compact_json(data: Any) -> str:
    """JSON without spaces."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False)


class EventStream(StreamingResponse):
    """Streams events until the browser disconnects or `expiry` returns."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        expiry: Coroutine[Any, Any, None],
        source: Coroutine[Any, Any, None] | None = None,
    ) -> None:
        """`source` runs for as long as the stream lasts; its data is in `events`."""
        super().__init__(events)
        self._events = events
        self._expiry = expiry
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await _chunk(send, b"retry: 1000\n\n")

        async def pump() -> None:
            async for text in self._events:
                await _chunk(send, text)

        async def keep_alive() -> None:
            while True:
                await asyncio.sleep(ALIVE_PERIOD)
                await _chunk(send, event("alive", {}))

        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(keep_alive()), group.create_task(pump())]
            if self._source is not None:
                workers.append(group.create_task(self._source))
            ends = [
                group.create_task(self.listen_for_disconnect(receive)),
                group.create_task(self._expiry),
            ]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in (*workers, *ends):
                task.cancel()
        await send({"type": "http.response.body", "body": b""})


async def _chunk(send: Send, text: bytes) -> None:
    await send({"type": "http.response.body", "body": text, "more_body": True})
