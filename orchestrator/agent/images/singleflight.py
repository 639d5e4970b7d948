# SPDX-License-Identifier: Apache-2.0
"""Sharing of concurrent work: several callers that need the same result wait for one run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from types import TracebackType
from typing import Generic, Self, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SingleFlight(Generic[K, V]):
    """Runs at most one call per key; concurrent callers share its result or error.

    The call is not bound to its first caller: it is cancelled when all waiters have gone, or when
    the object is closed.
    """

    def __init__(self) -> None:
        self._tasks = asyncio.TaskGroup()
        self._calls: dict[K, _Call[V]] = {}

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for call in list(self._calls.values()):
            call.task.cancel()
        # The caller's error, if any, is raised as it is, not in an exception group.
        await self._tasks.__aexit__(None, None, None)

    async def run(self, key: K, work: Callable[[], Awaitable[V]]) -> V:
        """The result of `work` for `key`, joined if it is running. Raises what `work` raises."""
        while (call := self._calls.get(key)) is not None and call.abandoned:
            await asyncio.wait([call.task])  # never two at a time, not even while one ends
        if call is None:
            outcome: asyncio.Future[V] = asyncio.get_running_loop().create_future()
            task = self._tasks.create_task(_run_call(work, outcome))
            task.add_done_callback(lambda _: self._finish(key))
            call = self._calls[key] = _Call(task, outcome)
        call.waiting += 1
        try:
            return await asyncio.shield(call.outcome)
        finally:
            call.waiting -= 1
            if not call.waiting and not call.outcome.done():
                call.abandoned = True
                call.task.cancel()

    def _finish(self, key: K) -> None:
        call = self._calls.pop(key)
        if not call.outcome.done():
            call.outcome.cancel()


async def _run_call(work: Callable[[], Awaitable[V]], outcome: asyncio.Future[V]) -> None:
    try:
        result = await work()
    except Exception as error:
        outcome.set_exception(error)
        outcome.exception()  # retrieved, also if all waiters have gone
    else:
        outcome.set_result(result)


class _Call(Generic[V]):
    __slots__ = ("abandoned", "outcome", "task", "waiting")

    def __init__(self, task: asyncio.Task[None], outcome: asyncio.Future[V]) -> None:
        self.task = task
        self.outcome = outcome
        self.waiting = 0
        self.abandoned = False
