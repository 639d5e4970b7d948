# SPDX-License-Identifier: Apache-2.0
"""Keeping the event loop responsive in a process with a large heap.

**Computation in threads.** Encoding a list of ten thousand tasks takes a second. The loop must
meanwhile renew the lease, receive from agents and answer other calls, so `offload` runs such work
on an immutable snapshot in one of a few threads; the interpreter switches between threads every
few milliseconds.

**Garbage collection.** A full collection stops everything: 0.1 s for 10,000 tasks, growing with
the cluster. The cluster's objects are immutable and acyclic, so reference counts free them.
`freezing_survivors` exempts what survives a full collection from later ones, which then cost as
much as has changed. The price: a cycle that becomes garbage after surviving one collection stays;
the manager's own long-lived objects are few.

**Liveness.** `LivenessClock` stands still while the loop is late, so that no node is declared down
because the manager could not read what it sent.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = 2
_threads = ThreadPoolExecutor(_THREADS, "offload")


async def offload(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a computation in a thread; its result. Raises what it raises."""
    call = partial(copy_context().run, function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_threads, call)


@contextmanager
def freezing_survivors() -> Iterator[None]:
    """Exempt what survives a full collection from later ones, while the body runs."""
    gc.callbacks.append(_freeze)
    try:
        yield
    finally:
        gc.callbacks.remove(_freeze)
        gc.unfreeze()


def _freeze(phase: str, info: dict[str, Any]) -> None:
    if phase == "stop" and info["generation"] == 2:
        gc.freeze()


SAMPLE_INTERVAL = 0.1
"""Seconds between samples."""
LONGEST_STEP = 0.2
"""Seconds that the clock advances between two samples, at most."""


class LivenessClock:
    """Monotonic clock that stands still while the event loop is late.

    A loop that is blocked, or a process without CPU time, reads nothing: data of agents waits in
    its sockets. By this clock, no node is silent because of that.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._turned = now()
        self._passed = self._turned

    def __call__(self) -> float:
        return self._passed + min(self._now() - self._turned, LONGEST_STEP)

    def turn(self) -> None:
        """Record that the event loop runs."""
        self._passed = self()
        self._turned = self._now()

    async def run(self) -> None:
        """Sample the event loop, until cancelled."""
        while True:
            await asyncio.sleep(SAMPLE_INTERVAL)
            self.turn()
