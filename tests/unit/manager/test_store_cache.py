"""The cache is the store, whatever happens to the watch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.store.cache import Cache, fold
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import object_key, object_type
from orchestrator.manager.store.kv import Conflict, Guard, Put
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.model.convert import encode
from orchestrator.model.nodes import Node
from orchestrator.model.services import Service
from orchestrator.model.tasks import Task


def new_kv(max_txn_ops: int = 128) -> MemoryKv:
    return MemoryKv(lambda: 0.0, max_txn_ops=max_txn_ops)


@asynccontextmanager
async def following(kv: MemoryKv) -> AsyncIterator[Cache]:
    cache = Cache(kv)
    task = asyncio.create_task(cache.follow())
    await cache.wait_for(1)
    try:
        yield cache
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_what_was_committed_is_read_back() -> None:
    kv = new_kv()
    async with following(kv) as cache:
        await cache.wait_for(await commit(kv, [Change(None, Node(id="n", role="worker"))]))
        node = cache.view.nodes["n"]
        assert (node.role, node.revision) == ("worker", cache.revision)
        await cache.wait_for(await commit(kv, [Change(node, None)]))
        assert not cache.view.nodes


async def test_a_stale_change_conflicts_and_writes_nothing() -> None:
    kv = new_kv()
    async with following(kv) as cache:
        await cache.wait_for(await commit(kv, [Change(None, Node(id="n"))]))
        stale = cache.view.nodes["n"]
        await cache.wait_for(await commit(kv, [Change(stale, replace(stale, role="a"))]))
        with pytest.raises(Conflict):
            await commit(kv, [Change(None, Node(id="m")), Change(stale, replace(stale, role="b"))])
        assert set(cache.view.nodes) == {"n"}
        assert cache.view.nodes["n"].role == "a"


async def test_what_was_read_must_still_hold() -> None:
    kv = new_kv()
    async with following(kv) as cache:
        await cache.wait_for(await commit(kv, [Change(None, Service(id="s"))]))
        read = cache.view.services["s"]
        await cache.wait_for(await commit(kv, [Change(read, replace(read, removed=True))]))
        with pytest.raises(Conflict):
            await commit(kv, [Change(None, Task(id="t"))], [read])


async def test_the_fence_of_a_lost_term_stops_a_write() -> None:
    kv = new_kv()
    with pytest.raises(Conflict):
        await commit(
            kv, [Change(None, Node(id="n"))], fence=Guard("/orc/leader", create_revision=7)
        )


async def test_a_large_plan_is_cut_and_every_part_is_guarded() -> None:
    kv = new_kv(max_txn_ops=10)
    async with following(kv) as cache:
        created = [Change(None, Task(id=f"t{i:02}")) for i in range(25)]
        await cache.wait_for(
            await commit(
                kv, created, guards=[Guard("/orc/x", mod_revision=0)], ops=[Put("/orc/x", b"")]
            )
        )
        assert len(cache.view.tasks) == 25


async def test_readers_see_a_transaction_whole() -> None:
    kv = new_kv()
    async with following(kv) as cache, cache.subscribe() as feed:
        changes = [Change(None, Task(id=f"t{i}")) for i in range(5)]
        revision = await commit(kv, changes)
        seen = await feed.next()
        assert cache.revision == revision
        assert {change.subject.id for change in seen} == {f"t{i}" for i in range(5)}


async def test_a_compacted_watch_is_healed_by_comparing_revisions() -> None:
    kv = new_kv()
    await commit(kv, [Change(None, Node(id="stays")), Change(None, Node(id="goes"))])
    async with following(kv) as cache:
        await cache.wait_for((await kv.list("/orc/")).revision)
        changed, gone = cache.view.nodes["stays"], cache.view.nodes["goes"]
    # While nobody watches: one changes, one goes, one comes, and the history is lost.
    await commit(
        kv,
        [
            Change(changed, replace(changed, role="new")),
            Change(gone, None),
            Change(None, Node(id="came")),
        ],
    )
    revision = (await kv.list("/orc/")).revision
    task = asyncio.create_task(cache.follow())
    async with cache.subscribe() as feed:
        await cache.wait_for(revision)
        seen = {change.subject.id: change for change in feed.take()}
    task.cancel()
    assert {id: node.role for id, node in cache.view.nodes.items()} == {
        "stays": "new",
        "came": "worker",
    }
    assert seen["goes"].after is None
    assert seen["came"].before is None


def test_folding_keeps_the_first_before_and_the_last_after() -> None:
    a, b, c = (Node(id="n", role=role) for role in "abc")
    folded: dict[str, Change] = {}
    fold(folded, [Change(a, b), Change(b, c)])
    assert list(folded.values()) == [Change(a, c)]
    fold(folded, [Change(c, None)])
    assert list(folded.values()) == [Change(a, None)]
    came_and_went: dict[str, Change] = {}
    fold(came_and_went, [Change(None, a), Change(a, None)])
    assert came_and_went == {}


def test_keys_name_their_objects() -> None:
    task = Task(id="t1")
    assert object_type(object_key(task)) == (Task, "t1")
    assert object_type("/orc/names/services/web") is None
    assert object_type("/elsewhere/tasks/t1") is None
    assert encode(task)
