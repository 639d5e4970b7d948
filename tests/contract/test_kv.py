# SPDX-License-Identifier: Apache-2.0
"""What Orc relies on from its store, asserted of the one in memory and of a real etcd."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import pytest
from kvhost import Host, hosted, next_of

from orchestrator.manager.store.etcd import PAGE, EtcdKv
from orchestrator.manager.store.kv import (
    Compacted,
    Conflict,
    Delete,
    Guard,
    Kv,
    LeaseLost,
    Put,
    StoreError,
)
from orchestrator.manager.store.memory import MemoryKv


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with hosted(tmp_path_factory.mktemp("etcd")) as host:
        yield host


@pytest.fixture
async def etcd(host: Host) -> AsyncIterator[EtcdKv]:
    async with EtcdKv(host.endpoints, host.tls, max_txn_ops=host.max_txn_ops) as kv:
        yield kv


@dataclass
class Store:
    """A store under test, with the means to let time pass in it (a real one needs none)."""

    kv: MemoryKv | EtcdKv
    advance: Callable[[float], None]


@pytest.fixture(params=["memory", "etcd"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        now = [100.0]
        # As large as the manager's own member of etcd takes them.
        kv = MemoryKv(lambda: now[0], max_bytes=16 << 20)

        def advance(seconds: float) -> None:
            now[0] += seconds
            kv.tick()

        yield Store(kv, advance)
        return
    host: Host = request.getfixturevalue("host")
    async with EtcdKv(host.endpoints, host.tls, max_txn_ops=host.max_txn_ops) as real:
        yield Store(real, lambda seconds: None)


@pytest.fixture
def kv(store: Store) -> Kv:
    return store.kv


@pytest.fixture
def at() -> str:
    """A prefix of this test alone."""
    return f"/test/{uuid.uuid4().hex}/"


async def test_a_key_keeps_its_create_revision_and_gets_a_new_mod_revision(kv: Kv, at: str) -> None:
    assert await kv.get(at + "a") is None
    first = await kv.txn([], [Put(at + "a", b"1")])
    second = await kv.txn([], [Put(at + "a", b"2")])
    assert second == first + 1
    entry = await kv.get(at + "a")
    assert entry is not None
    assert (entry.value, entry.create_revision, entry.mod_revision) == (b"2", first, second)
    await kv.txn([], [Delete(at + "a")])
    assert await kv.get(at + "a") is None


async def test_a_list_is_sorted_whole_and_at_one_revision(kv: Kv, at: str) -> None:
    revision = await kv.txn([], [Put(at + name, name.encode()) for name in ("b", "a", "c/d")])
    await kv.txn([], [Put(at[:-1] + "0", b"next to the prefix")])
    snapshot = await kv.list(at)
    assert [entry.key for entry in snapshot.entries] == [at + "a", at + "b", at + "c/d"]
    assert {entry.mod_revision for entry in snapshot.entries} == {revision}
    assert snapshot.revision == revision + 1


async def test_a_list_may_be_larger_than_grpcs_4_mib_and_longer_than_a_page(
    kv: Kv, at: str
) -> None:
    for start in range(0, PAGE + 100, 100):
        await kv.txn([], [Put(f"{at}{n:06}", b"x" * 4000) for n in range(start, start + 100)])
    snapshot = await kv.list(at)
    assert [entry.key for entry in snapshot.entries] == [f"{at}{n:06}" for n in range(PAGE + 100)]
    assert sum(len(entry.value) for entry in snapshot.entries) > 8 << 20
    await kv.txn([], [Delete(entry.key) for entry in snapshot.entries[:100]])


@pytest.mark.parametrize(
    ("guard", "holds"),
    [
        (lambda key, at, made: Guard(key, mod_revision=at), True),
        (lambda key, at, made: Guard(key, mod_revision=made), False),
        (lambda key, at, made: Guard(key, mod_revision=0), False),
        (lambda key, at, made: Guard(key, create_revision=made), True),
        (lambda key, at, made: Guard(key, create_revision=at), False),
        (lambda key, at, made: Guard(key, create_revision=0), False),
        (lambda key, at, made: Guard(key + "-none", mod_revision=0), True),
        (lambda key, at, made: Guard(key + "-none", create_revision=0), True),
        (lambda key, at, made: Guard(key + "-none", mod_revision=at), False),
        (lambda key, at, made: Guard(key + "-none", create_revision=made), False),
        (lambda key, at, made: Guard(key, unchanged_since=at), True),
        (lambda key, at, made: Guard(key, unchanged_since=at + 1), True),
        (lambda key, at, made: Guard(key, unchanged_since=made), False),
        (lambda key, at, made: Guard(key + "-none", unchanged_since=0), True),
    ],
)
async def test_guards(
    kv: Kv, at: str, guard: Callable[[str, int, int], Guard], holds: bool
) -> None:
    made = await kv.txn([], [Put(at + "a", b"1")])
    modified = await kv.txn([], [Put(at + "a", b"2")])
    condition = guard(at + "a", modified, made)
    if holds:
        assert await kv.txn([condition], [Put(at + "b", b"")]) == modified + 1
        return
    with pytest.raises(Conflict) as conflict:
        await kv.txn([condition], [Put(at + "b", b"")])
    assert conflict.value.keys == (condition.key,)


async def test_conflict_writes_nothing_and_names_the_failed_guard(kv: Kv, at: str) -> None:
    revision = await kv.txn([], [Put(at + "a", b"1"), Put(at + "b", b"1")])
    with pytest.raises(Conflict, match=at + "b") as conflict:
        await kv.txn(
            [Guard(at + "a", mod_revision=revision), Guard(at + "b", mod_revision=revision - 1)],
            [Put(at + "a", b"2"), Delete(at + "b"), Put(at + "c", b"2")],
        )
    assert conflict.value.keys == (at + "b",)
    snapshot = await kv.list(at)
    assert [(entry.key, entry.value) for entry in snapshot.entries] == [
        (at + "a", b"1"),
        (at + "b", b"1"),
    ]
    assert snapshot.revision == revision


async def test_a_transaction_that_changes_nothing_is_no_revision(kv: Kv, at: str) -> None:
    revision = await kv.txn([], [Put(at + "a", b"1")])
    assert await kv.txn([Guard(at + "a", mod_revision=revision)], []) == revision
    assert await kv.txn([], [Delete(at + "none")]) == revision
    assert await kv.txn([], [Put(at + "a", b"1"), Delete(at + "none")]) == revision + 1


@pytest.mark.parametrize(
    "second", [lambda key: Put(key, b"2"), lambda key: Delete(key)], ids=["put", "delete"]
)
async def test_a_key_twice_in_one_transaction_is_refused(
    kv: Kv, at: str, second: Callable[[str], Put | Delete]
) -> None:
    with pytest.raises(StoreError):
        await kv.txn([], [Put(at + "a", b"1"), second(at + "a")])
    assert await kv.get(at + "a") is None


async def test_transactions_are_limited_to_max_txn_ops(kv: Kv, at: str) -> None:
    most = kv.max_txn_ops
    keys = [f"{at}{n}" for n in range(most + 1)]
    await kv.txn([Guard(key, mod_revision=0) for key in keys[:most]], [Put(keys[0], b"")])
    await kv.txn([], [Put(key, b"") for key in keys[:most]])
    with pytest.raises(StoreError, match=str(most)):
        await kv.txn([], [Put(key, b"") for key in keys])
    with pytest.raises(StoreError, match=str(most)):
        await kv.txn([Guard(key, mod_revision=0) for key in keys], [])


async def test_a_watch_gives_each_revision_once_and_whole(kv: Kv, at: str) -> None:
    start = await kv.txn([], [Put(at + "a", b"1")])
    made = await kv.txn([], [Put(f"{at}{n:03}", b"") for n in range(100)])
    mixed = await kv.txn([], [Put(at + "000", b"2"), Delete(at + "001"), Put(at + "new", b"")])
    async with kv.watch(at, start + 1) as changes:
        batch = await next_of(changes)
        assert batch.revision == made
        assert {event.key for event in batch.events} == {f"{at}{n:03}" for n in range(100)}
        batch = await next_of(changes)
        assert batch.revision == mixed
        found = {event.key: event.entry for event in batch.events}
        assert found.keys() == {at + "000", at + "001", at + "new"}
        assert found[at + "001"] is None
        changed = found[at + "000"]
        assert changed is not None
        assert (changed.value, changed.create_revision, changed.mod_revision) == (b"2", made, mixed)
        later = await kv.txn([], [Delete(at + "new")])
        assert (await next_of(changes)).revision == later


async def test_a_watch_sees_its_prefix_alone(kv: Kv, at: str) -> None:
    start = await kv.txn([], [Put(at + "x", b"")])
    async with kv.watch(at + "in/", start + 1) as changes:
        await kv.txn([], [Put(at + "out", b"")])
        revision = await kv.txn([], [Put(at + "in/a", b""), Put(at + "out", b"2")])
        batch = await next_of(changes)
    assert batch.revision == revision
    assert [event.key for event in batch.events] == [at + "in/a"]


async def test_revisions_that_etcd_sends_in_fragments_are_whole_batches(kv: Kv, at: str) -> None:
    """Read from history, they come in one answer, which etcd cuts up anywhere above 16 MiB."""
    start = await kv.txn([], [Put(at + "start", b"")])
    revisions = [
        await kv.txn([], [Put(f"{at}{n:03}", b"x" * 130_000) for n in range(120)]) for _ in range(3)
    ]
    async with kv.watch(at, start + 1) as changes:
        for revision in revisions:
            batch = await next_of(changes)
            assert batch.revision == revision
            assert [event.key for event in batch.events] == [f"{at}{n:03}" for n in range(120)]
            assert {event.mod_revision for event in batch.events} == {revision}
    await kv.txn([], [Delete(event.key) for event in batch.events])


async def test_a_cancelled_wait_loses_nothing(kv: Kv, at: str) -> None:
    start = await kv.txn([], [Put(at + "a", b"1")])
    async with kv.watch(at, start + 1) as changes:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(changes)
        revision = await kv.txn([], [Put(at + "a", b"2")])
        assert (await next_of(changes)).revision == revision


async def test_watch_from_compacted_history_fails(store: Store, at: str) -> None:
    kv = store.kv
    start = await kv.txn([], [Put(at + "a", b"1")])
    last = await kv.txn([], [Put(at + "a", b"2")])
    last = await kv.txn([], [Put(at + "a", b"3")])
    await kv.compact(last)
    async with kv.watch(at, start) as changes:
        with pytest.raises(Compacted):
            await next_of(changes)
    with pytest.raises(Compacted):
        await kv.compact(start)


async def test_a_watch_starts_at_1_or_later(kv: Kv, at: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        kv.watch(at, 0)


async def test_an_expired_lease_deletes_its_keys_in_one_revision(store: Store, at: str) -> None:
    kv = store.kv
    lease = await kv.grant(0.5)
    revision = await kv.txn(
        [], [Put(at + "a", b"", lease), Put(at + "b", b"", lease), Put(at + "c", b"")]
    )
    async with kv.watch(at, revision + 1) as changes:
        store.advance(10)
        batch = await next_of(changes)
    assert {(event.key, event.entry) for event in batch.events} == {
        (at + "a", None),
        (at + "b", None),
    }
    assert [entry.key for entry in (await kv.list(at)).entries] == [at + "c"]


async def test_keepalive_renews_and_fails_once_the_lease_is_gone(store: Store, at: str) -> None:
    kv = store.kv
    lease = await kv.grant(3)
    await kv.txn([], [Put(at + "a", b"", lease)])
    store.advance(2)
    assert await kv.keepalive(lease) == 3
    store.advance(2)
    assert await kv.get(at + "a") is not None
    await kv.revoke(lease)
    assert await kv.get(at + "a") is None
    with pytest.raises(LeaseLost):
        await kv.keepalive(lease)
    await kv.revoke(lease)


async def test_a_put_on_a_dead_lease_writes_nothing(kv: Kv, at: str) -> None:
    lease = await kv.grant(10)
    await kv.revoke(lease)
    with pytest.raises(LeaseLost):
        await kv.txn([], [Put(at + "a", b""), Put(at + "b", b"", lease)])
    assert (await kv.list(at)).entries == ()


async def test_a_key_written_without_its_lease_outlives_it(kv: Kv, at: str) -> None:
    lease = await kv.grant(10)
    await kv.txn([], [Put(at + "a", b"1", lease)])
    await kv.txn([], [Put(at + "a", b"2")])
    await kv.revoke(lease)
    assert await kv.get(at + "a") is not None


async def test_a_key_written_with_another_lease_is_bound_to_that_one_only(kv: Kv, at: str) -> None:
    first, second = await kv.grant(10), await kv.grant(10)
    created = await kv.txn([], [Put(at + "a", b"", first)])
    await kv.txn([Guard(at + "a", create_revision=created)], [Put(at + "a", b"", second)])
    await kv.revoke(first)
    entry = await kv.get(at + "a")
    assert entry is not None
    assert entry.create_revision == created
    await kv.revoke(second)
    assert await kv.get(at + "a") is None


@pytest.mark.parametrize("seed", range(10))
async def test_memory_and_etcd_give_the_same_answers(etcd: EtcdKv, at: str, seed: int) -> None:
    dice = random.Random(seed)
    stores: list[Kv] = [MemoryKv(lambda: 0.0), etcd]
    for _ in range(10):  # so that no revision asked for below is 0 by accident
        starts = [await kv.txn([], [Put(at + "start", b"")]) for kv in stores]
    leases = [await kv.grant(60) for kv in stores]
    keys = [at + name for name in "abcd"]

    def choose() -> Callable[[int, int], tuple[list[Guard], list[Put | Delete]]]:
        """Guards at revisions since the start, and operations; some of them make no sense."""
        guards = [
            (key, dice.choice(("mod_revision", "create_revision")), dice.choice((0, None)))
            for key in dice.sample(keys, dice.choice((0, 0, 1, 1, 2)))
        ]
        ages = [dice.randrange(-8, 1) for _ in guards]
        ops = [
            (dice.choice(keys), dice.choice(("put", "put", "lease", "delete")), dice.randbytes(2))
            for _ in range(dice.randrange(4))
        ]

        def build(now: int, lease: int) -> tuple[list[Guard], list[Put | Delete]]:
            return [
                Guard(key, **{kind: now + age if fixed is None else fixed})
                for (key, kind, fixed), age in zip(guards, ages, strict=True)
            ], [
                Delete(key)
                if verb == "delete"
                else Put(key, value, lease if verb == "lease" else 0)
                for key, verb, value in ops
            ]

        return build

    outcomes: list[list[object]] = [[], []]
    now = list(starts)
    for _ in range(80):
        build = choose()
        for n, kv in enumerate(stores):
            try:
                now[n] = await kv.txn(*build(now[n], leases[n]))
                outcomes[n].append(now[n] - starts[n])
            except Conflict as conflict:
                outcomes[n].append(conflict.keys)
            except StoreError as error:
                outcomes[n].append(type(error))
    for n, kv in enumerate(stores):
        await kv.revoke(leases[n])
        end = await kv.txn([], [Put(at + "end", b"")])
        snapshot = await kv.list(at)
        outcomes[n].append(
            [
                (e.key, e.value, e.mod_revision - starts[n], e.create_revision - starts[n])
                for e in snapshot.entries[:-1]
                if e.key != at + "start"
            ]
        )
        async with kv.watch(at, starts[n] + 1) as changes:
            while (batch := await next_of(changes)).revision < end:
                outcomes[n].append(
                    (
                        batch.revision - starts[n],
                        [(event.key, event.entry and event.entry.value) for event in batch.events],
                    )
                )
    for memory, real in zip(*outcomes, strict=True):
        assert memory == real
    kinds = {type(outcome) for outcome in outcomes[0]}
    assert kinds == {int, tuple, type, list}, "each kind of outcome was seen"
