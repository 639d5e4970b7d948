# SPDX-License-Identifier: Apache-2.0
"""The cache is the store, whatever happens to the watch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.unplannable import quarantined_services
from orchestrator.manager.store.cache import Cache, Unreadable, fold
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import object_key, object_type
from orchestrator.manager.store.kv import Conflict, Delete, Guard, Op, Put
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.model.convert import encode, to_proto
from orchestrator.model.nodes import Availability, Node, NodeState
from orchestrator.model.objects import Object
from orchestrator.model.services import Service
from orchestrator.model.specs import ServiceSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus


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


async def test_committed_objects_are_read_back() -> None:
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


async def test_change_of_a_stale_read_conflicts() -> None:
    kv = new_kv()
    async with following(kv) as cache:
        await cache.wait_for(await commit(kv, [Change(None, Service(id="s"))]))
        read = cache.view.services["s"]
        await cache.wait_for(await commit(kv, [Change(read, replace(read, removed=True))]))
        with pytest.raises(Conflict):
            await commit(kv, [Change(None, Task(id="t"))], [read])


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
    # Without a watch: one changes, one goes, one comes, and the history is lost.
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


def garbage(item: Object) -> Put:
    return Put(object_key(item), b"\xff\xffgarbage")


async def write(kv: MemoryKv, cache: Cache, *ops: Op) -> None:
    await cache.wait_for(await kv.txn([], ops))


SERVICE = Service(id="s", spec=ServiceSpec(name="web", replicas=2))
OTHER = Service(id="o", spec=ServiceSpec(name="other", replicas=1))
TASKS = [
    Task(id=f"t{slot}", service_id="s", slot=slot, status=TaskStatus(TaskState.RUNNING))
    for slot in (1, 2)
]


async def test_an_object_that_cannot_be_decoded_is_set_aside_until_it_can() -> None:
    kv = new_kv()
    async with following(kv) as cache:
        known: list[Object] = [SERVICE, OTHER, *TASKS]
        changes = [Change(None, item) for item in known]
        await cache.wait_for(await commit(kv, changes))
        before = cache.view.tasks["t1"]
        await write(kv, cache, garbage(before))
        (found,) = cache.view.quarantined.values()
        assert (found.key, found.kind, found.id) == ("/orc/tasks/t1", "task", "t1")
        assert "not a Task" in found.reason
        # What was known of it still counts: its slot is taken, its service is left alone.
        assert cache.view.tasks["t1"] == before
        assert quarantined_services(cache.view).keys() == {"s"}
        await cache.wait_for(await commit(kv, [Change(None, Node(id="n"))]))
        assert "n" in cache.view.nodes
        async with cache.subscribe() as feed:
            await write(kv, cache, Put(found.key, encode(replace(before, attempt=3))))
            told = await feed.next()
        assert not cache.view.quarantined
        assert cache.view.tasks["t1"].attempt == 3
        assert {change.subject.id for change in told} == {"t1", "s"}


async def test_deleting_an_undecodable_object_releases_its_service() -> None:
    kv = new_kv()
    await commit(kv, [Change(None, SERVICE), Change(None, TASKS[0])])
    await kv.txn([], [garbage(TASKS[1])])
    async with following(kv) as cache, cache.subscribe() as feed:
        assert quarantined_services(cache.view).keys() == {"s"}
        await write(kv, cache, Delete("/orc/tasks/t2"))
        assert {change.subject.id for change in await feed.next()} == {"s"}
        assert not cache.view.quarantined


async def test_an_undecodable_object_deleted_during_an_outage() -> None:
    kv = new_kv()
    await kv.txn([], [garbage(TASKS[0]), garbage(Node(id="n")), Put("/orc/gadgets/x", b"")])
    async with following(kv) as cache:
        assert cache.view.quarantined.keys() == {"/orc/gadgets/x", "/orc/nodes/n", "/orc/tasks/t1"}
    await kv.txn([], [Delete(key) for key in cache.view.quarantined])
    task = asyncio.create_task(cache.follow())
    async with cache.subscribe() as feed:
        assert {change.subject.id for change in await feed.next()} == {"n"}
    assert not cache.view.quarantined
    assert not cache.view.nodes
    task.cancel()


async def test_a_manager_that_starts_with_undecodable_tasks_holds_possible_owners() -> None:
    kv = new_kv()
    await commit(kv, [Change(None, item) for item in (SERVICE, OTHER, TASKS[0])])
    await commit(kv, [Change(None, Task(id="x", service_id="o", slot=1))])
    await kv.txn([], [garbage(TASKS[1])])
    await commit(kv, [Change(None, replace(SERVICE, id="younger"))])
    async with following(kv) as cache:
        # A task of `web` is missing. `other` has all of its own, and one cannot have had it yet.
        assert quarantined_services(cache.view).keys() == {"s"}


@pytest.mark.parametrize(
    ("keep", "held"),
    [
        (encode(TASKS[1])[:8], {"s"}),  # up to the service
        (encode(replace(TASKS[1], service_id="o"))[:8], {"o"}),
        (encode(replace(TASKS[1], service_id=""))[:6], set()),  # a container's own
        (encode(replace(TASKS[1], id="else"))[:10], {"s"}),  # it may be anything
    ],
)
async def test_the_service_of_a_truncated_task_is_known(keep: bytes, held: set[str]) -> None:
    kv = new_kv()
    await commit(kv, [Change(None, item) for item in (SERVICE, OTHER, TASKS[0])])
    await commit(kv, [Change(None, Task(id="x", service_id="o", slot=1))])
    await kv.txn([], [Put("/orc/tasks/t2", keep + b"\xff")])
    async with following(kv) as cache:
        assert quarantined_services(cache.view).keys() == held


async def test_an_unknown_enum_number_leaves_an_object_readable_and_untouched() -> None:
    kv = new_kv()
    await commit(kv, [Change(None, SERVICE)])
    message = to_proto(TASKS[0])
    message.status.health = 77
    await kv.txn([], [Put("/orc/tasks/t1", message.SerializeToString())])
    async with following(kv) as cache:
        task = cache.view.tasks["t1"]
        assert (task.slot, task.status.state) == (1, TaskState.RUNNING)
        assert quarantined_services(cache.view).keys() == {"s"}
        assert "Health" in cache.view.quarantined["/orc/tasks/t1"].reason
        with pytest.raises(Unreadable, match=r"/orc/tasks/t1 cannot be decoded"):
            cache.admit([Delete("/orc/tasks/t1")])
        cache.admit([Delete("/orc/tasks/t2")])


async def test_a_node_that_cannot_be_decoded_keeps_its_tasks_and_gets_no_others() -> None:
    kv = new_kv()
    await kv.txn([], [garbage(Node(id="n" * 20))])
    async with following(kv) as cache:
        (node,) = cache.view.nodes.values()
        assert (node.state, node.availability) == (NodeState.UNKNOWN, Availability.PAUSE)
        assert node.description.hostname == "n" * 12


async def test_an_object_under_anothers_key_is_set_aside() -> None:
    kv = new_kv()
    await kv.txn([], [Put("/orc/tasks/t1", encode(TASKS[1])), Put("/orc/nodes/n", b"")])
    async with following(kv) as cache:
        reasons = {key: each.reason for key, each in cache.view.quarantined.items()}
        assert "its id is 't2'" in reasons["/orc/tasks/t1"]
        assert "its id is ''" in reasons["/orc/nodes/n"]
        assert not cache.view.tasks
