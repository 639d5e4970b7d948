# SPDX-License-Identifier: Apache-2.0
"""A background task for exactly as long as a body of code runs.

`asyncio.TaskGroup` does the work; this adds what an `async with` of ours needs: the task ends when
the body does, and an exception comes out as itself, not wrapped in a group of one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager


@asynccontextmanager
async def background(
    work: Coroutine[object, object, None],
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Run `work` while the body runs; the body can end it earlier by calling what it gets.

    If `work` raises, the body is cancelled and the exception comes out here. If the body ends or
    raises, `work` is cancelled and waited for. If both fail, the group of both comes out.
    """
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work)

            async def stop() -> None:
                task.cancel()
                await asyncio.wait((task,))

            yield stop
            task.cancel()
    except BaseExceptionGroup as several:
        if len(several.exceptions) > 1:
            raise
        raise several.exceptions[0] from several.exceptions[0].__cause__
