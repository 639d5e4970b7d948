# SPDX-License-Identifier: Apache-2.0
"""Time that passes only when a test says so, for coroutines that sleep on it."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable


class VirtualTime:
    """A clock and a sleep. `pass_` wakes sleepers in order, each at exactly its time."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0
        self.on_change: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._sleepers, (self._now + seconds, self._count, future))
        await future

    async def pass_(self, seconds: float) -> None:
        """Let `seconds` go by; what is woken runs until it waits again."""
        end = self._now + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            self._now, _, future = heapq.heappop(self._sleepers)
            self.on_change()
            if not future.done():
                future.set_result(None)
            await settle()
        self._now = end
        self.on_change()
        await settle()


async def settle() -> None:
    """Let everything that can run do so (nothing here does I/O)."""
    for _ in range(50):
        await asyncio.sleep(0)
