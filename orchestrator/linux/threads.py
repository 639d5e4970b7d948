# SPDX-License-Identifier: Apache-2.0
"""Blocking calls that may never return, such as on a file system that does not answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class KeyedThreads:
    """Runs each call in its own daemon thread, at most one at a time per key.

    A call that hangs delays only calls of the same key, and at most one thread per key hangs.
    """

    def __init__(self, name: str) -> None:
        """Threads are named `name`, then the key."""
        self._name = name
        self._running: dict[str, asyncio.Future[None]] = {}
        """Key → resolved when its call has returned."""

    async def run(self, key: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a call, which starts once an earlier one for the same key has returned.

        When cancelled, a running call continues and its result is discarded. Raises what the call
        raises, and RuntimeError when no thread can be started.
        """
        while (earlier := self._running.get(key)) is not None:
            await asyncio.wait({earlier})
        loop = asyncio.get_running_loop()
        returned: asyncio.Future[None] = loop.create_future()
        results: list[T] = []
        errors: list[BaseException] = []

        def finish() -> None:
            if self._running.get(key) is returned:
                del self._running[key]
            returned.set_result(None)

        def work() -> None:
            try:
                results.append(call(*args, **kwargs))
            except BaseException as error:
                errors.append(error)
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(finish)

        thread = threading.Thread(target=work, name=f"{self._name} {key}", daemon=True)
        thread.start()
        self._running[key] = returned
        await asyncio.shield(returned)
        if errors:
            raise errors[0]
        return results[0]
