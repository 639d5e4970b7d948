# SPDX-License-Identifier: Apache-2.0
"""A store with faults, as a leader meets them: answers that are lost or late, a slow watch, a full
disk, and others who write between what is read and what is written.

`MemoryKv` under it does what etcd would; the users of the simulation write to that directly.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from random import Random

from orchestrator.manager.store.kv import (
    Batch,
    Entry,
    Guard,
    Op,
    Snapshot,
    StoreError,
    StoreUnavailable,
)
from orchestrator.manager.store.memory import MemoryKv

LATE = 2.0
"""Most seconds by which a write whose answer was lost is late."""

TAKES = 0.05
"""Seconds that a write takes else."""

Meddler = Callable[[Sequence[Guard]], Awaitable[None]]


@dataclass
class Faults:
    """How likely each fault is, from 0 to 1, for one write; all are 0 at first."""

    applied: float = 0.0
    """The write happens; its answer is lost."""
    not_applied: float = 0.0
    """It does not happen, and nobody knows."""
    late: float = 0.0
    """Its answer is lost, and it happens a moment later."""
    slow: float = 0.0
    """It takes a while."""
    lagging: float = 0.0
    """The watch shows a change a while later."""
    full: bool = False
    """Nothing can be written."""


async def nobody(guards: Sequence[Guard]) -> None:
    """The `Meddler` who does nothing."""


class FaultyKv:
    """`Kv` as a leader sees it."""

    def __init__(self, kv: MemoryKv, random: Random) -> None:
        self.kv = kv
        self.faults = Faults()
        self.meddler: Meddler = nobody
        """Called when a write has left its sender, before the store has it."""
        self.writes = 0
        self._random = random

    @property
    def max_txn_ops(self) -> int:
        return self.kv.max_txn_ops

    async def get(self, key: str) -> Entry | None:
        return await self.kv.get(key)

    async def list(self, prefix: str) -> Snapshot:
        return await self.kv.list(prefix)

    async def txn(self, guards: Sequence[Guard], ops: Sequence[Op]) -> int:
        self.writes += 1
        faults, chance = self.faults, self._random.random
        await asyncio.sleep(self._random.uniform(0.1, 1.0) if chance() < faults.slow else TAKES)
        if faults.full:
            raise StoreError("etcd's database is full, so nothing can be written")
        await self.meddler(guards)
        if chance() < faults.not_applied:
            raise StoreUnavailable("no answer")
        if chance() < faults.late:
            self._apply_later(guards, ops)
            raise StoreUnavailable("no answer")
        revision = await self.kv.txn(guards, ops)
        if chance() < faults.applied:
            raise StoreUnavailable("no answer")
        return revision

    def _apply_later(self, guards: Sequence[Guard], ops: Sequence[Op]) -> None:
        loop = asyncio.get_running_loop()

        def apply() -> None:
            with suppress(StoreError, StopIteration):
                self.kv.txn(guards, ops).send(None)  # it never waits

        loop.call_later(self._random.uniform(0.0, LATE), apply)

    @asynccontextmanager
    async def watch(self, prefix: str, start_revision: int) -> AsyncIterator[AsyncIterator[Batch]]:
        async with self.kv.watch(prefix, start_revision) as batches:
            yield self._lagging(batches)

    async def _lagging(self, batches: AsyncIterator[Batch]) -> AsyncIterator[Batch]:
        async for batch in batches:
            if self._random.random() < self.faults.lagging:
                await asyncio.sleep(self._random.uniform(0.0, 1.0))
            yield batch

    async def grant(self, ttl: float) -> int:
        return await self.kv.grant(ttl)

    async def keepalive(self, lease: int) -> float:
        return await self.kv.keepalive(lease)

    async def revoke(self, lease: int) -> None:
        await self.kv.revoke(lease)
