# SPDX-License-Identifier: Apache-2.0
"""A loop that compares a manager's keys and certificates with the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from orchestrator.manager.security.vault import VaultError
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.kv import StoreError

PERIOD = 1.0
"""Seconds after which the state is compared again without a change in the store: another manager
may have become reachable, this one the leader."""


async def follow_store(
    cache: Cache, compare: Callable[[], Awaitable[None]], log: logging.Logger, failure: str
) -> None:
    """Call `compare` now, after each change in the store and each `PERIOD`, until cancelled.

    Its StoreError, VaultError or OSError is logged as `failure`; the same one once in a row.
    """
    reason = ""
    async with cache.subscribe() as feed:
        while True:
            try:
                await compare()
                reason = ""
            except (StoreError, VaultError, OSError) as error:
                if str(error) != reason:
                    reason = str(error)
                    log.warning(failure, extra={"reason": reason})
            with suppress(TimeoutError):
                async with asyncio.timeout(PERIOD):
                    await feed.next()
