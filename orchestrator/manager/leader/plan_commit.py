# SPDX-License-Identifier: Apache-2.0
"""Committing a planning round: changes in groups that fail independently, in few transactions.

**Groups.** Plans that change the same object form one group. A group *needs* another if it has
read what that one changes, takes resources on a node that it frees, or plans a service whose tasks'
reported states that one writes: it is written with it or after it, or not at all.

**A lost answer is not a failure.** Each transaction replaces the mark at `SEQUENCE` and requires
the one that its predecessor left. A transaction with an unknown outcome is sent again unchanged:
only one of the two can be applied, and the mark tells whether it was. Once its successor was
applied, it cannot be applied any more.

**A conflict affects only what conflicted.** The store names the guards that failed. Their groups,
and those that need them, are dropped; all others are sent again at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from orchestrator.manager.planning.node_load import occupies
from orchestrator.manager.planning.plan import Change, Decision
from orchestrator.manager.store.commit import MAX_BYTES, Encoded, encoded
from orchestrator.manager.store.keys import SEQUENCE, object_key
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
from orchestrator.model.objects import Object
from orchestrator.model.tasks import Task

_TASKS = object_key(Task(id=""))

Attribute = Callable[[Mapping[str, Change]], Iterable[Change]]


@dataclass(frozen=True, slots=True, eq=False)
class ChangeGroup:
    """Changes that are committed together, in the order in which they may be split."""

    changes: Sequence[Change]
    encoded: Sequence[Encoded]
    reads: Mapping[str, int]
    """Key → revision of what all of them have read."""
    owners: frozenset[str]
    """Ids of the services and standalone containers concerned."""
    needs: set[ChangeGroup] = field(default_factory=set)


@dataclass(slots=True)
class _GroupDraft:
    order: int
    changes: dict[str, Change] = field(default_factory=dict)
    reads: dict[str, Object] = field(default_factory=dict)
    own_reads: dict[str, Sequence[Object]] = field(default_factory=dict)
    owners: set[str] = field(default_factory=set)

    def take(self, other: _GroupDraft) -> None:
        """Append a later decision."""
        for key, change in other.changes.items():
            earlier = self.changes.pop(key, None)
            if earlier is None:
                self.changes[key] = change
            elif earlier.before is not None or change.after is not None:
                self.changes[key] = Change(earlier.before, change.after)
        for key, item in other.reads.items():
            self.reads.setdefault(key, item)
        for key, reads in other.own_reads.items():
            self.own_reads[key] = (*self.own_reads.get(key, ()), *reads)
        self.owners |= other.owners


def _unchanged(changes: Mapping[str, Change]) -> Iterable[Change]:
    return changes.values()


def group_changes(
    plans: Iterable[Decision], attribute: Attribute = _unchanged, seen: int | None = None
) -> list[ChangeGroup]:
    """Group the changes of these plans, in an order in which they may be committed. For an object
    that several plans change, the first `before` and the last `after` count. `attribute` completes
    all changes of the round, by key, before they are encoded. `seen`: the store revision of the
    view from which they were planned."""
    drafts: dict[int, _GroupDraft] = {}
    holder: dict[str, _GroupDraft] = {}
    for number, plan in enumerate(plans):
        draft = _draft(number, plan)
        # By order, not by key: the same plans give the same groups.
        same = {id(each): each for key in draft.changes if (each := holder.get(key))}
        merged = _GroupDraft(number)
        for each in sorted(same.values(), key=lambda each: each.order):
            del drafts[each.order]
            merged.take(each)
        merged.take(draft)
        drafts[number] = merged
        for key in merged.changes:
            holder[key] = merged
    folded = {key: change for draft in drafts.values() for key, change in draft.changes.items()}
    final = {object_key(change.subject): change for change in attribute(folded)}
    made = [_encoded_group(draft, final, seen) for draft in drafts.values() if draft.changes]
    _link_dependencies(made)
    return _sorted(made)


def _draft(number: int, plan: Decision) -> _GroupDraft:
    return _GroupDraft(
        number,
        {object_key(change.subject): change for change in plan.changes},
        {object_key(item): item for item in plan.requires},
        {_TASKS + id: read for id, read in plan.reads.items()},
        {plan.owner} if plan.owner else set(),
    )


def _encoded_group(
    draft: _GroupDraft, final: Mapping[str, Change], seen: int | None
) -> ChangeGroup:
    changes = [final[key] for key in draft.changes]
    return ChangeGroup(
        changes,
        [
            encoded(change, draft.own_reads.get(key, ()), seen)
            for key, change in zip(draft.changes, changes, strict=True)
        ],
        {key: item.revision for key, item in draft.reads.items()},
        frozenset(draft.owners),
    )


def _link_dependencies(made: Sequence[ChangeGroup]) -> None:
    """Record the dependencies between groups."""
    changer = {each.key: group for group in made for each in group.encoded}
    frees: dict[str, list[ChangeGroup]] = {}
    tasks_of: dict[str, list[ChangeGroup]] = {}
    for group in made:
        for node_id in {_freed(change) for change in group.changes}:
            frees.setdefault(node_id, []).append(group)
        for service_id in {_service_id(change) for change in group.changes} - {""}:
            tasks_of.setdefault(service_id, []).append(group)
    for group in made:
        read = [*group.reads, *(key for each in group.encoded for key in each.reads)]
        group.needs.update(changer[key] for key in read if key in changer)
        for node_id in {_taken(change) for change in group.changes} - {""}:
            group.needs.update(frees.get(node_id, ()))
        for owner in group.owners:
            group.needs.update(tasks_of.get(owner, ()))
        group.needs.discard(group)


def _service_id(change: Change) -> str:
    """Id of the service whose task the change is about."""
    return change.subject.service_id if isinstance(change.subject, Task) else ""


def _freed(change: Change) -> str:
    """Id of the node on which the change frees resources."""
    before, after = change.before, change.after
    if isinstance(before, Task) and occupies(before):
        return before.node_id if not (isinstance(after, Task) and occupies(after)) else ""
    return ""


def _taken(change: Change) -> str:
    """Id of the node on which the change occupies resources."""
    before, after = change.before, change.after
    if isinstance(after, Task) and occupies(after):
        return after.node_id if not (isinstance(before, Task) and occupies(before)) else ""
    return ""


def _sorted(made: Sequence[ChangeGroup]) -> list[ChangeGroup]:
    """Topological order; independent groups and cycles stay in decision order."""
    done: dict[int, ChangeGroup] = {}
    begun: set[int] = set()
    number = {id(group): place for place, group in enumerate(made)}
    for first in made:
        stack = [first]
        while stack:
            group = stack[-1]
            if id(group) in done:
                stack.pop()
                continue
            begun.add(id(group))
            left = [each for each in group.needs if id(each) not in begun]
            if left:
                stack.append(min(left, key=lambda each: number[id(each)]))
            else:
                done[id(stack.pop())] = group
    return list(done.values())


log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY = 0.1
"""Seconds between attempts while the store does not answer."""


class TermEnded(StoreError):
    """Another leader was elected: this term can commit nothing any more."""


@dataclass(slots=True)
class WriteResult:
    """The outcome of a round's commit."""

    revision: int = 0
    """Store revision that includes all that was committed and all that conflicted."""
    conflicted: list[ChangeGroup] = field(default_factory=list)
    """Groups not or only partly committed: what they read has changed, or a group that they need
    was not committed."""
    too_large: list[ChangeGroup] = field(default_factory=list)
    """Groups with a change that exceeds the store's limit."""
    unwritten: list[ChangeGroup] = field(default_factory=list)
    """Groups not committed because of `error`."""
    error: StoreError | None = None
    """Why the store rejects writes."""


@dataclass(slots=True)
class _Transaction:
    """A transaction under construction."""

    guards: dict[str, Guard] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    size: int = 0
    holders: dict[str, set[int]] = field(default_factory=dict)
    """Key of a guard → the groups that require it, by identity."""
    keys: list[str] = field(default_factory=list)
    """Keys of the objects that it changes."""


class PlanWriter:
    """Commits the rounds of one term, or, without a fence, of a follower.

    A follower commits only what is idempotent: a transaction whose answer was lost is sent again,
    and if it was applied, the second one conflicts and is computed anew.
    """

    def __init__(
        self,
        kv: Kv,
        fence: Guard | None,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._kv = kv
        self._fence = fence
        self._sleep = sleep
        self._sequence = -1
        """Revision of the sequence mark; -1 before the first write."""
        self._count = 0

    async def write(self, groups: Sequence[ChangeGroup]) -> WriteResult:
        """Commit the groups in order. Raises `TermEnded`; other lasting errors of the store are in
        the result. Waits for a store that does not answer."""
        if self._sequence < 0 and self._fence is not None:
            self._sequence = _revision(await self._mark())
        round_ = _PendingGroups(groups, self._kv.max_txn_ops)
        while (transaction := round_.next()) is not None:
            try:
                round_.succeeded(await self._send(transaction))
            except Conflict as conflict:
                if self._fence is not None and self._fence.key in conflict.keys:
                    raise TermEnded("another leader was elected") from conflict
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
            # A cache that has reached this revision includes the conflicting write.
            written.revision = (await self._retried(lambda: self._kv.list(SEQUENCE))).revision
        return written

    async def _send(self, transaction: _Transaction) -> int:
        """Commit one transaction; its revision, also if the answer was lost."""
        self._count += 1
        guards, ops, mark = [*transaction.guards.values()], transaction.ops, b""
        if self._fence is not None:
            mark = f"{self._fence.create_revision}/{self._count}".encode()
            guards = [self._fence, Guard(SEQUENCE, mod_revision=self._sequence), *guards]
            ops = [Put(SEQUENCE, mark), *ops]
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
        return await self._retried(lambda: self._kv.get(SEQUENCE))

    async def _retried(self, read: Callable[[], Awaitable[T]]) -> T:
        """Read, retrying for as long as the store does not answer."""
        while True:
            try:
                return await read()
            except StoreUnavailable as error:
                log.warning("cannot read", extra={"error": error})
                await self._sleep(RETRY)


def _revision(entry: Entry | None) -> int:
    return entry.mod_revision if entry is not None else 0


class _PendingGroups:
    """The groups that are not committed yet, and the progress of each."""

    def __init__(self, groups: Iterable[ChangeGroup], max_ops: int) -> None:
        self._left: dict[int, ChangeGroup] = {id(group): group for group in groups}
        self._done: dict[int, int] = {}
        """Group → number of its committed changes."""
        self._max_ops = max_ops - 2  # the fence and the sequence
        self._max_bytes = MAX_BYTES
        self._transaction = _Transaction()
        """The transaction in flight."""
        self._revisions: dict[str, int] = {}
        """Key → revision that this round has committed."""
        self._sent: dict[int, int] = {}
        """Group → number of its changes committed when the transaction in flight succeeds."""
        self._written = WriteResult()

    def next(self) -> _Transaction | None:
        """The next transaction: as many whole groups as fit, or part of one that is larger."""
        transaction = self._transaction = _Transaction()
        self._sent = {}
        for identity, group in self._left.items():
            if self._sent and any(
                id(each) in self._left and id(each) not in self._sent for each in group.needs
            ):
                break  # dependencies first; in a cycle, any group may be the first
            begun = self._done.get(identity, 0)
            if not self._add(transaction, identity, group, group.encoded[begun:]):
                if self._sent:
                    break
                self._cut(transaction, identity, group)
                break
            self._sent[identity] = len(group.encoded)
        return transaction if self._sent else None

    def _cut(self, transaction: _Transaction, identity: int, group: ChangeGroup) -> None:
        """Take as many of the group's next changes as fit into one transaction, at least one."""
        count = self._done.get(identity, 0)
        while count < len(group.encoded):
            each = group.encoded[count : count + 1]
            if not self._add(transaction, identity, group, each, at_least=not transaction.keys):
                break
            count += 1
        self._sent[identity] = count

    def _add(
        self,
        transaction: _Transaction,
        identity: int,
        group: ChangeGroup,
        changes: Sequence[Encoded],
        *,
        at_least: bool = False,
    ) -> bool:
        """Add these changes if all fit, or if `at_least`."""
        guards = {guard.key: guard for each in changes for guard in each.guards}
        reads = dict(group.reads)
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
        """Record that the transaction was committed."""
        for key in self._transaction.keys:
            self._revisions[key] = revision
        self._written.revision = revision
        for identity, count in self._sent.items():
            self._done[identity] = count
            if count == len(self._left[identity].encoded):
                del self._left[identity]

    def failed(self, keys: Iterable[str]) -> None:
        """Record that these guards of the transaction failed."""
        holders = self._transaction.holders
        culprits = {identity for key in keys for identity in holders.get(key, ())}
        self._drop(culprits or set(self._sent), self._written.conflicted)

    def halve(self) -> None:
        """Record that the transaction was too large, whatever its computed size."""
        if len(self._transaction.keys) > 1:
            self._max_bytes = max(self._transaction.size // 2, 1)
            self._max_ops = max(len(self._transaction.ops) // 2, 1)
        else:
            self._drop(set(self._sent), self._written.too_large)

    def end(self, error: StoreError | None) -> WriteResult:
        self._written.unwritten += self._left.values()
        self._written.error = error
        return self._written

    def _drop(self, culprits: set[int], into: list[ChangeGroup]) -> None:
        """Drop these groups and those that need them."""
        into += [self._left.pop(identity) for identity in list(self._left) if identity in culprits]
        gone = set(culprits)
        while more := [
            identity
            for identity, group in self._left.items()
            if any(id(each) in gone for each in group.needs)
        ]:
            self._written.conflicted += [self._left.pop(identity) for identity in more]
            gone.update(more)
