# SPDX-License-Identifier: Apache-2.0
"""`Kv` in memory, with etcd's revisions, leases and watches; for the simulator and unit tests.

Time is a function that the caller gives. Leases expire by it: on any access, or on `tick()` after
the clock was moved, which also lets waiting watches see it.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.manager.store.kv import (
    Batch,
    Compacted,
    Conflict,
    Delete,
    Entry,
    Event,
    Guard,
    LeaseLost,
    Op,
    Put,
    Snapshot,
    StoreError,
    TooLarge,
)

Verb = Literal["get", "list", "txn", "grant", "keepalive", "revoke"]
Phase = Literal["before", "after"]

SHORTEST_LEASE = 2
"""Seconds; etcd's minimum with its default election timeout."""


@dataclass(slots=True)
class _Lease:
    ttl: float
    deadline: float
    keys: set[str] = field(default_factory=set)


class MemoryKv:
    """A store that lives as long as the object. Many coroutines of one loop may use it.

    `fault`, if set, is called before and after each operation and may raise a StoreError: before
    means that nothing happened, after that it happened and the answer was lost.
    """

    def __init__(
        self, clock: Callable[[], float], *, max_txn_ops: int = 128, max_bytes: int = 3 << 19
    ) -> None:
        """`clock` is monotonic, in seconds; the limits default to etcd's."""
        self._clock = clock
        self._max_txn_ops = max_txn_ops
        self._max_bytes = max_bytes
        self._entries: dict[str, Entry] = {}
        self._lease_of: dict[str, int] = {}
        self._leases: dict[int, _Lease] = {}
        self._last_lease = 0
        self._revision = 1  # as an empty etcd
        self._compacted = 0
        self._history: list[Batch] = []
        self._watches: set[_Watch] = set()
        self.fault: Callable[[Verb, Phase], None] = _no_fault

    @property
    def max_txn_ops(self) -> int:
        return self._max_txn_ops

    async def get(self, key: str) -> Entry | None:
        self._begin("get")
        entry = self._entries.get(key)
        self.fault("get", "after")
        return entry

    async def list(self, prefix: str) -> Snapshot:
        self._begin("list")
        keys = sorted(key for key in self._entries if key.startswith(prefix))
        snapshot = Snapshot(tuple(self._entries[key] for key in keys), self._revision)
        self.fault("list", "after")
        return snapshot

    async def txn(self, guards: Sequence[Guard], ops: Sequence[Op]) -> int:
        self._begin("txn")
        most = max(len(guards), len(ops))
        if most > self._max_txn_ops:
            raise TooLarge(
                f"a transaction of {most} operations is larger than the store takes "
                f"({self._max_txn_ops}): split it"
            )
        size = sum(len(op.value) for op in ops if isinstance(op, Put))
        if size > self._max_bytes:
            raise TooLarge(f"a request of {size} bytes is too large ({self._max_bytes})")
        _refuse_duplicates(ops)
        if broken := [guard.key for guard in guards if not self._holds(guard)]:
            raise Conflict(broken)
        for op in ops:
            if isinstance(op, Put) and op.lease and op.lease not in self._leases:
                raise LeaseLost("the lease has expired or was revoked")
        self._apply(ops)
        revision = self._revision
        self.fault("txn", "after")
        return revision

    def watch(
        self, prefix: str, start_revision: int
    ) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        return _Watch(self, prefix, start_revision)

    async def grant(self, ttl: float) -> int:
        self._begin("grant")
        seconds = float(max(math.ceil(ttl), SHORTEST_LEASE))
        self._last_lease += 1
        self._leases[self._last_lease] = _Lease(seconds, self._clock() + seconds)
        granted = self._last_lease
        self.fault("grant", "after")
        return granted

    async def keepalive(self, lease: int) -> float:
        self._begin("keepalive")
        held = self._leases.get(lease)
        if held is None:
            raise LeaseLost("the lease has expired or was revoked")
        held.deadline = self._clock() + held.ttl
        self.fault("keepalive", "after")
        return held.ttl

    async def revoke(self, lease: int) -> None:
        self._begin("revoke")
        self._end_lease(lease)
        self.fault("revoke", "after")

    async def compact(self, revision: int) -> None:
        """Compact the history before `revision`."""
        if revision > self._revision:
            raise StoreError(f"revision {revision} is in the future")
        if revision <= self._compacted:
            raise Compacted("that revision is no longer in the store's history")
        self._compacted = revision
        self._history = [batch for batch in self._history if batch.revision >= revision]

    def tick(self) -> None:
        """Expire leases whose time has come."""
        now = self._clock()
        for lease in [id for id, held in self._leases.items() if held.deadline <= now]:
            self._end_lease(lease)

    def _begin(self, verb: Verb) -> None:
        self.tick()
        self.fault(verb, "before")

    def _holds(self, guard: Guard) -> bool:
        entry = self._entries.get(guard.key)
        if guard.create_revision is not None:
            return guard.create_revision == (entry.create_revision if entry else 0)
        if guard.unchanged_since is not None:
            return (entry.mod_revision if entry else 0) <= guard.unchanged_since
        return guard.mod_revision == (entry.mod_revision if entry else 0)

    def _end_lease(self, lease: int) -> None:
        held = self._leases.pop(lease, None)
        if held is not None:
            self._apply([Delete(key) for key in sorted(held.keys)])

    def _apply(self, ops: Sequence[Op]) -> None:
        """Apply changes at one new revision, and notify the watches."""
        changes = [op for op in ops if isinstance(op, Put) or op.key in self._entries]
        if not changes:
            return
        self._revision += 1
        events = []
        for op in changes:
            old = self._entries.pop(op.key, None)
            self._leave_lease(op.key)
            entry = None
            if isinstance(op, Put):
                created = old.create_revision if old else self._revision
                entry = Entry(op.key, op.value, self._revision, created)
                self._entries[op.key] = entry
                if op.lease:
                    self._lease_of[op.key] = op.lease
                    self._leases[op.lease].keys.add(op.key)
            elif old is None:
                continue  # deleted twice in one transaction
            events.append(Event(op.key, self._revision, entry))
        self._history.append(Batch(self._revision, tuple(events)))
        for watch in self._watches:
            watch.changed.set()

    def _leave_lease(self, key: str) -> None:
        lease = self._lease_of.pop(key, None)
        if lease is not None and lease in self._leases:
            self._leases[lease].keys.discard(key)

    def _since(self, revision: int) -> Sequence[Batch]:
        """The history from `revision` on; Compacted if some of it is gone."""
        self.tick()
        if revision < self._compacted:
            raise Compacted(
                f"revision {revision} is no longer in the store's history "
                f"(compacted at {self._compacted})"
            )
        recent = []
        for batch in reversed(self._history):
            if batch.revision < revision:
                break
            recent.append(batch)
        return recent[::-1]


class _Watch:
    """A reader of the history; its only state is its position."""

    def __init__(self, store: MemoryKv, prefix: str, start_revision: int) -> None:
        if start_revision < 1:
            raise ValueError(f"start_revision of a watch is at least 1, not {start_revision}")
        self._store = store
        self._prefix = prefix
        self._next = start_revision
        self._ready: deque[Batch] = deque()
        self.changed = asyncio.Event()

    async def __aenter__(self) -> _Watch:
        self._store._watches.add(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._store._watches.discard(self)

    def __aiter__(self) -> _Watch:
        return self

    async def __anext__(self) -> Batch:
        while not self._ready:
            self.changed.clear()
            self._read()
            if not self._ready:
                await self.changed.wait()
        return self._ready.popleft()

    def _read(self) -> None:
        for batch in self._store._since(self._next):
            self._next = batch.revision + 1
            mine = tuple(event for event in batch.events if event.key.startswith(self._prefix))
            if mine:
                self._ready.append(Batch(batch.revision, mine))
        # An idle watch advances too, so that compaction does not end it.
        self._next = max(self._next, self._store._revision + 1)


def _refuse_duplicates(ops: Sequence[Op]) -> None:
    """etcd accepts a key once per transaction, unless it is only deleted."""
    put: set[str] = set()
    deleted = {op.key for op in ops if isinstance(op, Delete)}
    for op in ops:
        if isinstance(op, Put):
            if op.key in put or op.key in deleted:
                raise StoreError(f"{op.key} occurs twice in one transaction")
            put.add(op.key)


def _no_fault(verb: Verb, phase: Phase) -> None:
    """The default: nothing goes wrong."""
