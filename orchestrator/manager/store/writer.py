"""What a leader writes: a round's parts in few transactions, in one sequence for the whole term.

**An answer that is lost is no failure.** Each transaction replaces the mark at `SEQUENCE` and
requires the one that the transaction before it left there. So one whose outcome is unknown is sent
again as it was: if the first one has been applied, or is applied later, only one of the two can be,
and the mark tells that it was. What was sent cannot be applied any more once its successor was.

**A conflict concerns what conflicted.** The store names the guards that failed. The parts that have
them, and those that need these, are dropped; all others are sent again at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from orchestrator.manager.store.commit import MAX_BYTES, Encoded
from orchestrator.manager.store.keys import SEQUENCE
from orchestrator.manager.store.kv import (
    Conflict,
    Entry,
    Guard,
    Kv,
    Op,
    Put,
    StoreError,
    StoreUnavailable,
    TooLarge,
)
from orchestrator.manager.store.parts import Part

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY = 0.1
"""Seconds between attempts while the store does not answer."""


class TermOver(StoreError):
    """Another leader was elected: nothing of this term can be written any more."""


@dataclass(slots=True)
class Written:
    """What became of a round's parts."""

    revision: int = 0
    """Of the store: a reader that has it has seen all that was written, and all that conflicted."""
    conflicted: list[Part] = field(default_factory=list)
    """Not written, or not to the end: what they had read has changed, or what they need was not
    written."""
    too_large: list[Part] = field(default_factory=list)
    """Not written: one change of theirs is larger than the store takes."""
    unwritten: list[Part] = field(default_factory=list)
    """Not written, because of `error`."""
    error: StoreError | None = None
    """Why the store takes nothing now."""


@dataclass(slots=True)
class _Transaction:
    """One transaction in the making."""

    guards: dict[str, Guard] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    size: int = 0
    holders: dict[str, set[int]] = field(default_factory=dict)
    """Key of a guard → the parts that want it, by identity."""
    keys: list[str] = field(default_factory=list)
    """Of the objects that it changes."""


class Writer:
    """Writes the parts of one term's rounds."""

    def __init__(
        self,
        kv: Kv,
        fence: Guard,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._kv = kv
        self._fence = fence
        self._sleep = sleep
        self._sequence = -1
        """Revision of the mark; -1 before the first write."""
        self._count = 0

    async def write(self, parts: Sequence[Part]) -> Written:
        """Write the parts, in their order. Raises `TermOver`; other errors of the store that last
        are in the answer. A store that does not answer is waited for."""
        if self._sequence < 0:
            self._sequence = _revision(await self._mark())
        round_ = _Round(parts, self._kv.max_txn_ops)
        while (transaction := round_.next()) is not None:
            try:
                round_.succeeded(await self._send(transaction))
            except Conflict as conflict:
                if self._fence.key in conflict.keys:
                    raise TermOver("another leader was elected") from conflict
                if SEQUENCE in conflict.keys:
                    self._sequence = _revision(await self._mark())
                    round_.failed(transaction.holders)
                else:
                    round_.failed(conflict.keys)
            except TooLarge as error:
                log.warning("a transaction is too large", extra={"error": error})
                round_.halve()
            except StoreError as error:
                return round_.end(error)
        written = round_.end(None)
        if written.conflicted:
            # A cache that has reached this revision includes the write that conflicted.
            written.revision = (await self._again(lambda: self._kv.list(SEQUENCE))).revision
        return written

    async def _send(self, transaction: _Transaction) -> int:
        """Write one transaction; its revision, also if its answer was lost."""
        self._count += 1
        mark = f"{self._fence.create_revision}/{self._count}".encode()
        guards = [
            self._fence,
            Guard(SEQUENCE, mod_revision=self._sequence),
            *transaction.guards.values(),
        ]
        ops = [Put(SEQUENCE, mark), *transaction.ops]
        unknown = False
        while True:
            try:
                self._sequence = await self._kv.txn(guards, ops)
                return self._sequence
            except Conflict as conflict:
                if unknown and SEQUENCE in conflict.keys:
                    entry = await self._mark()
                    if entry is not None and entry.value == mark:
                        self._sequence = entry.mod_revision
                        return self._sequence
                raise
            except StoreUnavailable as error:
                unknown = True
                log.warning("cannot write", extra={"error": error})
                await self._sleep(RETRY)

    async def _mark(self) -> Entry | None:
        return await self._again(lambda: self._kv.get(SEQUENCE))

    async def _again(self, read: Callable[[], Awaitable[T]]) -> T:
        """Read, however long the store does not answer."""
        while True:
            try:
                return await read()
            except StoreUnavailable as error:
                log.warning("cannot read", extra={"error": error})
                await self._sleep(RETRY)


def _revision(entry: Entry | None) -> int:
    return entry.mod_revision if entry is not None else 0


class _Round:
    """The parts that are yet to be written, and how far each has come."""

    def __init__(self, parts: Iterable[Part], max_ops: int) -> None:
        self._left: dict[int, Part] = {id(part): part for part in parts}
        self._done: dict[int, int] = {}
        """Part → how many of its changes are written."""
        self._max_ops = max_ops - 2  # the fence and the sequence
        self._max_bytes = MAX_BYTES
        self._transaction = _Transaction()
        """The one under way."""
        self._revisions: dict[str, int] = {}
        """Key → revision of what this round has written."""
        self._sent: dict[int, int] = {}
        """Part → how many of its changes will be written with the transaction under way."""
        self._written = Written()

    def next(self) -> _Transaction | None:
        """The next transaction: as many whole parts as go in, or some of one that is larger."""
        transaction = self._transaction = _Transaction()
        self._sent = {}
        for identity, part in self._left.items():
            if self._sent and any(
                id(each) in self._left and id(each) not in self._sent for each in part.needs
            ):
                break  # what it needs comes first; in a circle, somebody has to
            begun = self._done.get(identity, 0)
            if not self._add(transaction, identity, part, part.encoded[begun:]):
                if self._sent:
                    break
                self._cut(transaction, identity, part)
                break
            self._sent[identity] = len(part.encoded)
        return transaction if self._sent else None

    def _cut(self, transaction: _Transaction, identity: int, part: Part) -> None:
        """As many of the part's next changes as go into one transaction, at least one."""
        count = self._done.get(identity, 0)
        while count < len(part.encoded):
            each = part.encoded[count : count + 1]
            if not self._add(transaction, identity, part, each, at_least=not transaction.keys):
                break
            count += 1
        self._sent[identity] = count

    def _add(
        self,
        transaction: _Transaction,
        identity: int,
        part: Part,
        changes: Sequence[Encoded],
        *,
        at_least: bool = False,
    ) -> bool:
        """Put these changes into the transaction if there is room for all, or if `at_least`."""
        guards = {guard.key: guard for each in changes for guard in each.guards}
        reads = dict(part.reads)
        for each in changes:
            reads.update(each.reads)
        for key, revision in reads.items():
            if key not in guards and key not in transaction.keys:
                now = self._revisions.get(key, revision)
                guards[key] = Guard(key, mod_revision=now)
        ops = [op for each in changes for op in each.ops]
        size = sum(each.size for each in changes)
        new = sum(key not in transaction.guards for key in guards)
        fits = (
            len(transaction.guards) + new <= self._max_ops
            and len(transaction.ops) + len(ops) <= self._max_ops
            and transaction.size + size <= self._max_bytes
        )
        if not fits and not at_least:
            return False
        for key, guard in guards.items():
            transaction.guards[key] = guard
            transaction.holders.setdefault(key, set()).add(identity)
        for change in changes:
            transaction.keys.append(change.key)
        transaction.ops += ops
        transaction.size += size
        return True

    def succeeded(self, revision: int) -> None:
        """The transaction was written."""
        for key in self._transaction.keys:
            self._revisions[key] = revision
        self._written.revision = revision
        for identity, count in self._sent.items():
            self._done[identity] = count
            if count == len(self._left[identity].encoded):
                del self._left[identity]

    def failed(self, keys: Iterable[str]) -> None:
        """These guards of the transaction did not hold."""
        holders = self._transaction.holders
        culprits = {identity for key in keys for identity in holders.get(key, ())}
        self._drop(culprits or set(self._sent), self._written.conflicted)

    def halve(self) -> None:
        """The transaction was larger than the store takes, whatever it said."""
        if len(self._transaction.keys) > 1:
            self._max_bytes = max(self._transaction.size // 2, 1)
            self._max_ops = max(len(self._transaction.ops) // 2, 1)
        else:
            self._drop(set(self._sent), self._written.too_large)

    def end(self, error: StoreError | None) -> Written:
        self._written.unwritten += self._left.values()
        self._written.error = error
        return self._written

    def _drop(self, culprits: set[int], into: list[Part]) -> None:
        """Leave these parts out, and those that need them."""
        into += [self._left.pop(identity) for identity in list(self._left) if identity in culprits]
        gone = set(culprits)
        while more := [
            identity
            for identity, part in self._left.items()
            if any(id(each) in gone for each in part.needs)
        ]:
            self._written.conflicted += [self._left.pop(identity) for identity in more]
            gone.update(more)
