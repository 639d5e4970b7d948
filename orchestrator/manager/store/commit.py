# SPDX-License-Identifier: Apache-2.0
"""Changes as guarded transactions: their encoding, and commits of API operations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.store.keys import address_keys, claimed_hostname, object_key, unique_key
from orchestrator.manager.store.kv import Conflict, Delete, Guard, Kv, LeaseLost, Op, Put, TooLarge
from orchestrator.manager.store.request_records import AlreadyApplied, PendingRecord, pending_record
from orchestrator.model.convert import encode
from orchestrator.model.objects import Object

MAX_BYTES = 1 << 20
"""Bytes of values in one transaction at most; etcd's default limit is 1.5 MiB per request."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One change as store operations, guarded by the revision that was read."""

    key: str
    guards: tuple[Guard, ...]
    ops: tuple[Op, ...]
    size: int
    """Bytes."""
    reads: Mapping[str, int]
    """Key → revision of what was only read for it and must not have changed."""


def encoded(change: Change, reads: Iterable[Object] = (), seen: int | None = None) -> Encoded:
    """A change with its guards. Deleting an object releases its unique name. Addresses that an
    object acquires are claimed with it, and released when it loses them. A node's new hostname is
    claimed, if the store revision `seen` is given up to which no other node has it."""
    key = object_key(change.subject)
    had, has = address_keys(change.before), address_keys(change.after)
    owner = change.subject.id.encode()
    guards = [
        Guard(key, mod_revision=change.before.revision if change.before is not None else 0),
        *(Guard(each, mod_revision=0) for each in sorted(has - had)),
    ]
    ops: list[Op] = []
    if seen is not None and (hostname := claimed_hostname(change.before, change.after)):
        guards.append(Guard(hostname, unchanged_since=seen))
        ops.append(Put(hostname, owner))
    if change.after is not None:
        ops.append(Put(key, encode(change.after)))
    else:
        ops.append(Delete(key))
        if (name := unique_key(change.subject)) is not None:
            ops.append(Delete(name))
        if hostname := claimed_hostname(None, change.subject):
            ops.append(Delete(hostname))
    ops += [Put(each, owner) for each in sorted(has - had)]
    ops += [Delete(each) for each in sorted(had - has)]
    size = sum(len(op.key) + (len(op.value) if isinstance(op, Put) else 0) for op in ops)
    read = {object_key(item): item.revision for item in reads}
    return Encoded(key, tuple(guards), tuple(ops), size, read)


async def commit(
    kv: Kv,
    changes: Sequence[Change],
    requires: Iterable[Object] = (),
    *,
    guards: Sequence[Guard] = (),
    ops: Sequence[Op] = (),
    seen: int | None = None,
) -> int:
    """Commit the changes of one API operation; the revision of the last write.

    `requires` are objects that were read and must not have changed; `guards` and `ops` are added to
    the first transaction unchanged (name keys); `seen`: see `encoded`. One transaction if the store
    takes that many operations; otherwise several, in the order of the changes, each fully guarded.
    The last one writes the record of the request, if it has one.

    Raises `Conflict` when a guard fails; earlier transactions stay. After `StoreUnavailable` the
    outcome is unknown. Repeating the call is safe: changes are guarded by the revision that was
    read, and creations by the unique name, so a second attempt is refused. Raises `AlreadyApplied`
    if another manager has applied the same request.
    """
    pending = pending_record()
    record = pending.operations(changes) if pending is not None else None
    changed = {object_key(change.subject) for change in changes}
    read = {object_key(item): item.revision for item in requires}
    shared = [
        Guard(key, mod_revision=mod) for key, mod in sorted(read.items()) if key not in changed
    ]
    room = kv.max_txn_ops - max(len(shared) + len(guards), len(ops)) - (record is not None)
    if room < 1:
        raise TooLarge(f"{len(shared)} guards leave no room in a transaction")
    revision = 0
    chunks = list(_chunks([encoded(change, seen=seen) for change in changes], room))
    for number, chunk in enumerate(chunks, 1):
        checks = [*shared, *guards, *(guard for each in chunk for guard in each.guards)]
        writes = [*ops, *(op for each in chunk for op in each.ops)]
        if pending is None or record is None or number < len(chunks):
            revision = await kv.txn(checks, writes)
        else:
            revision = await _recorded(kv, pending, record, checks, writes)
        guards = ops = ()
    return revision


async def _recorded(
    kv: Kv,
    pending: PendingRecord,
    record: tuple[Guard, Put],
    guards: Sequence[Guard],
    ops: Sequence[Op],
) -> int:
    """Commit a transaction together with the record of its request."""
    absent, put = record
    try:
        revision = await kv.txn([absent, *guards], [put, *ops])
    except Conflict as conflict:
        if absent.key in conflict.keys:
            raise AlreadyApplied from None
        raise
    except LeaseLost:
        pending.lease_lost()
        raise
    pending.written = True
    return revision


def _chunks(changes: Sequence[Encoded], size: int) -> Iterator[Sequence[Encoded]]:
    """The changes in chunks of at most `size` operations and as many guards."""
    if not changes:
        yield ()
    chunk: list[Encoded] = []
    ops = guards = total = 0
    for change in changes:
        ops += len(change.ops)
        guards += len(change.guards)
        total += change.size
        if chunk and (max(ops, guards) > size or total > MAX_BYTES):
            yield chunk
            chunk = []
            ops, guards, total = len(change.ops), len(change.guards), change.size
        chunk.append(change)
    if chunk:
        yield chunk
