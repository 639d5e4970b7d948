"""Work that several callers want at once, done once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from types import TracebackType
from typing import Generic, Self, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SingleFlight(Generic[K, V]):
    """Runs at most one piece of work a key; whoever asks meanwhile gets its result or its error.

    The work belongs to the object's lifetime, not to the caller that happened to come first: it
    is cancelled when all who wait for it have gone, or when the object is closed.
    """

    def __init__(self) -> None:
        self._tasks = asyncio.TaskGroup()
        self._flying: dict[K, _Flight[V]] = {}

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for flight in list(self._flying.values()):
            flight.task.cancel()
        # The caller's error, if any, is the caller's: it does not become one of a group.
        await self._tasks.__aexit__(None, None, None)

    async def run(self, key: K, work: Callable[[], Awaitable[V]]) -> V:
        """The result of `work` for `key`, joined if it is under way. Raises what it raises."""
        while (flight := self._flying.get(key)) is not None and flight.abandoned:
            await asyncio.wait([flight.task])  # never two at once, not even while one is undone
        if flight is None:
            outcome: asyncio.Future[V] = asyncio.get_running_loop().create_future()
            task = self._tasks.create_task(_fly(work, outcome))
            task.add_done_callback(lambda _: self._land(key))
            flight = self._flying[key] = _Flight(task, outcome)
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.outcome)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.outcome.done():
                flight.abandoned = True
                flight.task.cancel()

    def _land(self, key: K) -> None:
        flight = self._flying.pop(key)
        if not flight.outcome.done():
            flight.outcome.cancel()


async def _fly(work: Callable[[], Awaitable[V]], outcome: asyncio.Future[V]) -> None:
    try:
        result = await work()
    except Exception as error:
        outcome.set_exception(error)
        outcome.exception()  # the last to wait may have gone, and then it is no news to log
    else:
        outcome.set_result(result)


class _Flight(Generic[V]):
    __slots__ = ("abandoned", "outcome", "task", "waiting")

    def __init__(self, task: asyncio.Task[None], outcome: asyncio.Future[V]) -> None:
        self.task = task
        self.outcome = outcome
        self.waiting = 0
        self.abandoned = False
