# SPDX-License-Identifier: Apache-2.0
"""The contract between Orc and its key-value store.

Everything that a manager acknowledged lives behind this protocol. It is the part of etcd v3 that
Orc needs: revisions, guarded transactions, leases and watches that resume. Two implementations
pass one contract suite: `etcd` (the real thing) and `memory` (for the simulator and unit tests).

Revisions are those of etcd: one counter for the whole store; all writes of a transaction share
one revision; `create_revision` 0 means that the key does not exist.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol


class StoreError(Exception):
    """The operation failed; the text says why and what to check."""


class StoreUnavailable(StoreError):
    """No endpoint answered in time. The operation may or may not have happened."""


class StoreFull(StoreError):
    """The store has no space left: reads succeed, writes fail until an operator makes room."""


class TooLarge(StoreError):
    """A transaction exceeds the store's limits. Nothing was written; a smaller one may succeed."""


class LeaseLost(StoreError):
    """The lease has expired or was revoked."""


class Compacted(StoreError):
    """The requested revision is compacted: list again."""


class Conflict(StoreError):
    """A guard of a transaction failed: what was read has changed. Recompute, never patch.

    `keys` are those whose guards failed, so that a caller can tell a lost term from a lost race.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__(f"changed in the meantime: {', '.join(keys)}")
        self.keys = tuple(keys)


@dataclass(frozen=True, slots=True)
class Entry:
    """One key as stored. Revisions are store-wide counters (etcd's mod and create revision)."""

    key: str
    value: bytes
    mod_revision: int
    create_revision: int


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition of a transaction: exactly one of the revisions is set and compared.

    0 asserts that the key does not exist. `create_revision` is for keys that are written while they
    are held (an election key keeps its create revision for the whole term). `unchanged_since`
    asserts that the key was not written after that revision; it need not exist.
    """

    key: str
    mod_revision: int | None = None
    create_revision: int | None = None
    unchanged_since: int | None = None

    def __post_init__(self) -> None:
        given = (self.mod_revision, self.create_revision, self.unchanged_since)
        if sum(revision is not None for revision in given) != 1:
            raise ValueError(f"guard of {self.key}: set exactly one revision")


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key. With `lease`, the key is deleted when that lease ends."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a key; no-op if it does not exist."""

    key: str


Op = Put | Delete


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one key. `entry` is None when the key was deleted."""

    key: str
    mod_revision: int
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All entries under a prefix at one revision."""

    entries: tuple[Entry, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Batch:
    """All changes of one revision under the watched prefix (readers never see half a txn)."""

    revision: int
    events: tuple[Event, ...]


class Kv(Protocol):
    """What Orc requires of a key-value store. All methods raise `StoreError` subclasses only."""

    async def get(self, key: str) -> Entry | None:
        """The key's entry (linearizable), or None."""
        ...

    async def list(self, prefix: str) -> Snapshot:
        """All entries under `prefix` at one revision, of any total size (paged inside)."""
        ...

    async def txn(self, guards: Sequence[Guard], ops: Sequence[Op]) -> int:
        """Apply all `ops` atomically if all `guards` hold; the revision of the write.

        Raises `Conflict` when a guard fails, `LeaseLost` when a `Put` names a lease that is gone;
        nothing is written then. At most `max_txn_ops` guards and as many ops; one op per key. After
        `StoreUnavailable` the transaction may or may not have happened: read again. If the ops
        change nothing (no ops, deletes of missing keys), the current revision.
        """
        ...

    @property
    def max_txn_ops(self) -> int:
        """The maximum number of guards, or ops, of one transaction."""
        ...

    def watch(
        self, prefix: str, start_revision: int
    ) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        """Changes under `prefix` from `start_revision` on, in order, one `Batch` per revision.

        `start_revision` is at least 1, usually that of a `Snapshot` plus 1. The stream survives
        reconnects and endpoint changes without gaps or duplicates. It raises `Compacted` if the
        history needed is gone. Cancelling a wait for the next batch loses nothing: the next wait
        continues there.
        """
        ...

    async def grant(self, ttl: float) -> int:
        """Grant a lease of at least `ttl` seconds; its id. etcd takes whole seconds, 2 or more."""
        ...

    async def keepalive(self, lease: int) -> float:
        """Renew the lease; its new seconds to live. Raises `LeaseLost` if it is gone."""
        ...

    async def revoke(self, lease: int) -> None:
        """Revoke the lease and delete its keys. Succeeds if it is already gone."""
        ...
