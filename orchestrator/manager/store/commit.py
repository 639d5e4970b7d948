"""Plans and API writes as guarded transactions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.store.keys import address_keys, object_key, unique_key
from orchestrator.manager.store.kv import Delete, Guard, Kv, Op, Put
from orchestrator.model.convert import encode
from orchestrator.model.objects import Object


@dataclass(frozen=True, slots=True)
class Transaction:
    """One transaction as the store takes it."""

    guards: Sequence[Guard]
    ops: Sequence[Op]


async def commit(
    kv: Kv,
    changes: Sequence[Change],
    requires: Iterable[Object] = (),
    *,
    fence: Guard | None = None,
    guards: Sequence[Guard] = (),
    ops: Sequence[Op] = (),
) -> int:
    """Write `changes`, each guarded by the revision that was read; the revision of the last write.

    For what one call of the API writes. See `transactions` for the arguments and `send` for errors.
    """
    made = transactions(
        changes, requires, max_ops=kv.max_txn_ops, fence=fence, guards=guards, ops=ops
    )
    return await send(kv, made)


async def send(kv: Kv, made: Iterable[Transaction]) -> int:
    """Write transactions, one after the other; the revision of the last. Raises `Conflict` when a
    guard fails; transactions before it stay."""
    revision = 0
    for each in made:
        revision = await kv.txn(each.guards, each.ops)
    return revision


def transactions(
    changes: Sequence[Change],
    requires: Iterable[Object] = (),
    *,
    max_ops: int,
    fence: Guard | None = None,
    guards: Sequence[Guard] = (),
    ops: Sequence[Op] = (),
) -> list[Transaction]:
    """Encode `changes`, each guarded by the revision that was read.

    `requires` are objects that were read and must not have changed, `fence` is the leader's key,
    `guards` and `ops` go along with the first transaction as they are (name keys). One
    transaction if the store takes that many operations; else several, in the order of the
    changes, each guarded in full: a plan may be cut anywhere. What is deleted gives its unique name
    back with it.
    Addresses that an object comes to own are taken with it, and given back by what loses them.
    """
    changed = {object_key(change.subject) for change in changes}
    shared = [fence] if fence is not None else []
    read = {object_key(item): item.revision for item in requires}
    shared.extend(
        Guard(key, mod_revision=mod) for key, mod in sorted(read.items()) if key not in changed
    )
    room = max_ops - max(len(shared) + len(guards), len(ops))
    if room < 1:
        raise ValueError(f"{len(shared)} guards leave no room in a transaction")
    made: list[Transaction] = []
    for chunk in _chunks(changes, room):
        made.append(
            Transaction(
                [*shared, *guards, *(guard for change in chunk for guard in _guards(change))],
                [*ops, *(op for change in chunk for op in _ops(change))],
            )
        )
        guards = ops = ()
    return made


def _chunks(changes: Sequence[Change], size: int) -> Iterator[Sequence[Change]]:
    """The changes in parts of at most `size` operations."""
    if not changes:
        yield ()
    chunk: list[Change] = []
    taken = 0
    for change in changes:
        cost = len(_ops(change))
        if chunk and taken + cost > size:
            yield chunk
            chunk, taken = [], 0
        chunk.append(change)
        taken += cost
    if chunk:
        yield chunk


def _guards(change: Change) -> list[Guard]:
    before = change.before
    revision = before.revision if before is not None else 0
    new = address_keys(change.after) - address_keys(before)
    return [
        Guard(object_key(change.subject), mod_revision=revision),
        *(Guard(key, mod_revision=0) for key in sorted(new)),
    ]


def _ops(change: Change) -> list[Op]:
    key = object_key(change.subject)
    had, has = address_keys(change.before), address_keys(change.after)
    owner = change.subject.id.encode()
    ops: list[Op] = [Put(each, owner) for each in sorted(has - had)]
    ops += [Delete(each) for each in sorted(had - has)]
    if change.after is not None:
        return [Put(key, encode(change.after)), *ops]
    name = unique_key(change.subject)
    return [Delete(key), *ops] if name is None else [Delete(key), *ops, Delete(name)]
