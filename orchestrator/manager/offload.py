"""Work that takes long on a large cluster, away from the event loop.

A list of ten thousand tasks takes a second to encode. The loop must renew the lease, hear agents
and answer others meanwhile, so such work gets an immutable snapshot and runs in a thread; the
interpreter takes turns between threads every few milliseconds. There are few of these threads, so
that the loop's turn always comes soon.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = 2
_threads = ThreadPoolExecutor(_THREADS, "offload")


async def offload(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that only computes, in a thread; its result. Raises what it raises."""
    call = partial(copy_context().run, function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_threads, call)
