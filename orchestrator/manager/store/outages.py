# SPDX-License-Identifier: Apache-2.0
"""Moments in which etcd is expected to be unavailable: its members change, so it restarts or elects
a leader."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from orchestrator.manager.store.kv import StoreUnavailable

T = TypeVar("T")

BRIDGED = 15.0
"""Seconds that such a moment may last."""
_RETRY = 0.2


async def bridge_outage(attempt: Callable[[], Awaitable[T]]) -> T:
    """The result of an attempt, which is repeated while etcd is unavailable. It must recognise what
    an earlier one has done, as the outcome of that may be unknown. Raises StoreError."""
    end = asyncio.get_running_loop().time() + BRIDGED
    while True:
        try:
            return await attempt()
        except StoreUnavailable:
            if asyncio.get_running_loop().time() > end:
                raise
            await asyncio.sleep(_RETRY)
