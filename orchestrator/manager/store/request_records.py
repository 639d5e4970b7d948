# SPDX-License-Identifier: Apache-2.0
"""Records of applied requests, so that a client repeats a write whose outcome it does not know.

A client that loses its manager after it has sent a write calls another one with the same request
id. The record of a request is written in the transaction that applies it, under the guard that it
does not exist, so two managers that process the same request cannot both apply it: the second one
finds the record, and answers from it. Records are bound to a lease and disappear after minutes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.store.keys import object_key
from orchestrator.manager.store.kv import Guard, Kv, Put

REQUESTS = "/orc-requests/"
"""Outside of what managers cache."""

_KEPT = 600.0
"""Seconds that the lease of records lasts."""
_LEASE_USED = 300.0
"""Seconds after which new records get a new lease; so a record is kept at least for the rest."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What a request has changed."""

    subject: str
    """Store key of the first object that was changed."""
    id: str
    """Its id."""
    name: str
    """Its name, if it has one."""
    revision: int = 0
    """Store revision of the change."""


class AlreadyApplied(Exception):
    """The request has been applied before, perhaps by another manager."""


@dataclass(slots=True)
class PendingRecord:
    """The record that a request in progress has yet to write."""

    key: str
    lease: int
    deletions: bool
    """Write it with the first deletion only: earlier transactions may be repeated."""
    lease_lost: Callable[[], None]
    written: bool = False

    def operations(self, changes: Sequence[Change]) -> tuple[Guard, Put] | None:
        """What writes the record in the transaction of these changes; None if it does not belong
        there."""
        if self.written or not changes:
            return None
        if self.deletions and not any(change.after is None for change in changes):
            return None
        subject = changes[0].subject
        name = str(getattr(subject, "name", ""))
        record = RequestRecord(object_key(subject), subject.id, name)
        return Guard(self.key, mod_revision=0), Put(self.key, _encode(record), self.lease)


_PENDING: ContextVar[PendingRecord | None] = ContextVar("pending_record", default=None)


def pending_record() -> PendingRecord | None:
    """The record of the request that is processed, if it is to have one."""
    return _PENDING.get()


class RequestRecords:
    """Writes and finds records."""

    def __init__(self, kv: Kv, clock: Callable[[], float]) -> None:
        """`clock` is monotonic."""
        self._kv = kv
        self._clock = clock
        self._lease = 0
        self._lease_until = 0.0

    async def find(self, key: str) -> RequestRecord | None:
        """The record of an applied request. Raises StoreError."""
        entry = await self._kv.get(key)
        if entry is None:
            return None
        return RequestRecord(**{**json.loads(entry.value), "revision": entry.mod_revision})

    async def prepare(self, key: str, *, deletions: bool) -> PendingRecord:
        """A record to be written. Raises StoreError."""
        if self._clock() >= self._lease_until:
            until = self._clock() + _LEASE_USED
            self._lease, self._lease_until = await self._kv.grant(_KEPT), until
        return PendingRecord(key, self._lease, deletions, self._forget_lease)

    def _forget_lease(self) -> None:
        self._lease_until = 0.0


@contextmanager
def recording(pending: PendingRecord) -> Iterator[None]:
    """Have the transaction of this context write the record. Raises AlreadyApplied if it exists."""
    token = _PENDING.set(pending)
    try:
        yield
    finally:
        _PENDING.reset(token)


def _encode(record: RequestRecord) -> bytes:
    fields = asdict(record)
    del fields["revision"]
    return json.dumps(fields).encode()
