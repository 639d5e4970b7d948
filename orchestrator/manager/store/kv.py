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
    """The store could not do it; the text says what is wrong and what to check."""


class StoreUnavailable(StoreError):
    """No endpoint answered in time. The operation may or may not have happened."""


class LeaseLost(StoreError):
    """The lease has expired or was revoked."""


class Conflict(StoreError):
    """A guard of a transaction did not hold: what was read has changed. Recompute, never patch."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One key as stored. Revisions are store-wide counters (etcd's mod and create revision)."""

    key: str
    value: bytes
    mod_revision: int
    create_revision: int


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition of a transaction.

    `mod_revision` 0 asserts that the key does not exist. With `create_revision` set, that is
    compared instead (an election key keeps its create revision while it is renewed).
    """

    key: str
    mod_revision: int | None = None
    create_revision: int | None = None


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
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


class Compacted(StoreError):
    """The revision asked for is no longer in the store's history: list again."""


class Kv(Protocol):
    """What Orc asks of a key-value store. All methods raise `StoreError` subclasses only."""

    async def get(self, key: str) -> Entry | None:
        """The key's entry (linearizable), or None."""
        ...

    async def list(self, prefix: str) -> Snapshot:
        """All entries under `prefix` at one revision, of any total size (paged inside)."""
        ...

    async def txn(self, guards: Sequence[Guard], ops: Sequence[Op]) -> int:
        """Apply all `ops` atomically if all `guards` hold; the revision of the write.

        Raises `Conflict` when a guard fails (nothing is written). At most `max_txn_ops` guards
        and as many ops.
        """
        ...

    @property
    def max_txn_ops(self) -> int:
        """The most guards, or ops, that one transaction may hold."""
        ...

    def watch(
        self, prefix: str, start_revision: int
    ) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        """Changes under `prefix` from `start_revision` on, in order, one `Batch` a revision.

        The stream survives reconnects and endpoint changes without a gap or a double. It raises
        `Compacted` if the history needed is gone.
        """
        ...

    async def grant(self, ttl: float) -> int:
        """A new lease of `ttl` seconds; its id."""
        ...

    async def keepalive(self, lease: int) -> float:
        """Renew the lease; the seconds it now has. Raises `LeaseLost` if it is gone."""
        ...

    async def revoke(self, lease: int) -> None:
        """End the lease and delete its keys. Succeeds when it is already gone."""
        ...
