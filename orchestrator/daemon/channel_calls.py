# SPDX-License-Identifier: Apache-2.0
"""Calls on a gRPC channel that another task may close meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class ChannelClosed(Exception):
    """The channel was closed during the call; the text is one line."""


async def answer(call: Awaitable[T]) -> T:
    """The answer to a unary call. Raises ChannelClosed, and what the call raises.

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
