# SPDX-License-Identifier: Apache-2.0
"""A background task with the lifetime of an `async with` block.

An `asyncio.TaskGroup` that cancels the task at the end of the block, and raises a single exception
as itself instead of wrapped in a group.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager


@asynccontextmanager
async def background(
    work: Coroutine[object, object, None],
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Run `work` while the block runs; the block can end it earlier by calling what it receives.

    If `work` raises, the block is cancelled and the exception is raised here. If the block ends or
    raises, `work` is cancelled and awaited. If both fail, a group of both is raised.
    """
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work)

            async def stop() -> None:
                task.cancel()
                await asyncio.wait((task,))

            yield stop
            task.cancel()
    except BaseExceptionGroup as error:
        if len(error.exceptions) > 1:
            raise
        raise error.exceptions[0] from error.exceptions[0].__cause__
