# SPDX-License-Identifier: Apache-2.0
"""What grpc.aio leaves to its callers when a call is cancelled, at either end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class ChannelClosed(Exception):
    """The channel was closed during the call; the text is one line."""


async def answer(call: Awaitable[T]) -> T:
    """The answer to a unary call on a channel that another task may close. Raises ChannelClosed,
    and what the call raises.

    grpc.aio cancels the calls of a channel that is closed, and raises that as CancelledError in the
    tasks that wait for them. A task that nobody cancelled would end by it, silently.
    """
    task = asyncio.current_task()
    assert task is not None
    try:
        return await call
    except asyncio.CancelledError:
        if task.cancelling():
            raise
        raise ChannelClosed("the connection was closed") from None


async def complete(operation: Awaitable[None]) -> None:
    """Await the sending of a call's initial metadata to its end, even if the task is cancelled
    meanwhile. Raises what the operation raises.

    A handler that is cancelled in between cannot end its call with a status: grpc.aio would send
    the metadata again, which the core refuses, and the client would wait on.
    """
    sending = asyncio.ensure_future(operation)
    try:
        await asyncio.shield(sending)
    except asyncio.CancelledError:
        await asyncio.gather(sending, return_exceptions=True)
        raise
