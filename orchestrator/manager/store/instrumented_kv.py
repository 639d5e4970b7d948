# SPDX-License-Identifier: Apache-2.0
"""A store that measures the requests to another one, and rejects some."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager

from orchestrator.manager.store.kv import Batch, Entry, Guard, Kv, Op, Snapshot, StoreUnavailable
from orchestrator.manager.store.lease_renewal import Renewal, Renewed


class InstrumentedKv:
    """Passes every request on to another store, and reports its duration."""

    def __init__(
        self,
        kv: Kv,
        took: Callable[[str, float], None],
        failed: Callable[[str], None],
        admit: Callable[[Sequence[Op]], None] = lambda _: None,
    ) -> None:
        """`took`: operation and seconds until its answer, which may be a conflict. `failed`:
        operation without an answer in time. `admit` raises for operations that must not be
        executed."""
        self._kv = kv
        self._took = took
        self._failed = failed
        self._admit = admit

    @contextmanager
    def _timed(self, operation: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        except StoreUnavailable:
            self._failed(operation)
            raise
        finally:
            self._took(operation, time.perf_counter() - began)

    async def get(self, key: str) -> Entry | None:
        """See `Kv`."""
        with self._timed("get"):
            return await self._kv.get(key)

    async def list(self, prefix: str) -> Snapshot:
        """See `Kv`."""
        with self._timed("list"):
            return await self._kv.list(prefix)

    async def txn(self, guards: Sequence[Guard], ops: Sequence[Op]) -> int:
        """See `Kv`."""
        self._admit(ops)
        with self._timed("txn"):
            return await self._kv.txn(guards, ops)

    @property
    def max_txn_ops(self) -> int:
        """See `Kv`."""
        return self._kv.max_txn_ops

    def watch(
        self, prefix: str, start_revision: int
    ) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        """See `Kv`."""
        return self._kv.watch(prefix, start_revision)

    async def grant(self, ttl: float) -> int:
        """See `Kv`."""
        with self._timed("grant"):
            return await self._kv.grant(ttl)

    async def keepalive(self, lease: int) -> float:
        """See `Kv`."""
        with self._timed("keepalive"):
            return await self._kv.keepalive(lease)

    async def revoke(self, lease: int) -> None:
        """See `Kv`."""
        with self._timed("revoke"):
            await self._kv.revoke(lease)


class InstrumentedRenewal:
    """Passes renewals on, and reports their durations, as `InstrumentedKv` does for keepalives."""

    def __init__(
        self, renewal: Renewal, took: Callable[[str, float], None], failed: Callable[[str], None]
    ) -> None:
        """`took` and `failed` are called by the thread that renews."""
        self._renewal = renewal
        self._took = took
        self._failed = failed

    def renew(self, lease: int, key: str, timeout: float, announce: int = 0) -> Renewed:
        """See `Renewal`."""
        began = time.perf_counter()
        try:
            return self._renewal.renew(lease, key, timeout, announce)
        except StoreUnavailable:
            self._failed("keepalive")
            raise
        finally:
            self._took("keepalive", time.perf_counter() - began)
