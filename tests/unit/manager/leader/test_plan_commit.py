# SPDX-License-Identifier: Apache-2.0
"""What a leader writes: the sequence of its term, answers that are lost, and conflicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from orchestrator.manager.leader.plan_commit import PlanWriter, TermEnded, group_changes
from orchestrator.manager.planning.plan import Change, Decision
from orchestrator.manager.store.keys import LEADER, object_key
from orchestrator.manager.store.kv import Guard, Op, Put, StoreFull, StoreUnavailable
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.model.convert import decode
from orchestrator.model.nodes import Node, SessionRecord
from orchestrator.model.objects import Object
from orchestrator.model.services import Service
from orchestrator.model.specs import ServiceSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus


class Store(MemoryKv):
    """A store in memory that counts transactions; `lose` may lose the answer of the next one."""

    def __init__(self, max_txn_ops: int = 128) -> None:
        super().__init__(lambda: 0.0, max_txn_ops=max_txn_ops)
        self.sent: list[tuple[Sequence[Guard], Sequence[Op]]] = []
        self.lose = ""

    async def txn(self, guards: Sequence[Guard], ops: Sequence[Op]) -> int:
        self.sent.append((guards, ops))
        lose, self.lose = self.lose, ""
        if lose == "before":
            raise StoreUnavailable("no answer")
        revision = await super().txn(guards, ops)
        if lose == "after":
            raise StoreUnavailable("no answer")
        return revision

    async def put(self, item: Object) -> None:
        await super().txn([], [Put(object_key(item), b"")])

    async def tasks(self) -> list[str]:
        entries = (await self.list("/orc/tasks/")).entries
        return [decode(Task, entry.value, entry.mod_revision).id for entry in entries]


async def elected(kv: Store) -> PlanWriter:
    revision = await MemoryKv.txn(kv, [], [Put(LEADER, b"m")])
    return PlanWriter(kv, Guard(LEADER, create_revision=revision), sleep=no_pause)


async def no_pause(seconds: float) -> None:
    """Time does not matter here."""


def new(*ids: str, service: str = "s", requires: tuple[Object, ...] = ()) -> Decision:
    changes = tuple(Change(None, Task(id=id, service_id=service)) for id in ids)
    return Decision(changes, requires, owner=service)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_write_whose_answer_is_lost_happens_once(when: str) -> None:
    kv = Store()
    writer = await elected(kv)
    await writer.write(group_changes([new("t0")]))
    kv.lose = when
    written = await writer.write(group_changes([new("t1", "t2")]))
    assert (written.conflicted, written.error) == ([], None)
    assert written.revision == (await kv.list("/")).revision
    assert await kv.tasks() == ["t0", "t1", "t2"]


async def test_nothing_is_applied_late_once_something_else_was_written() -> None:
    kv = Store()
    writer = await elected(kv)
    await writer.write(group_changes([new("t1")]))
    late = kv.sent[-1]
    kv.sent.clear()
    # The same, as it would be on its way when the answer did not come: it is refused.
    await writer.write(group_changes([new("t2")]))
    with pytest.raises(Exception, match="sequence"):
        await MemoryKv.txn(kv, *late)
    assert await kv.tasks() == ["t1", "t2"]


async def test_a_late_write_voids_decisions_made_without_it() -> None:
    kv = Store()
    writer = await elected(kv)
    await writer.write(group_changes([new("t0")]))
    mark = next(op for op in kv.sent[-1][1] if isinstance(op, Put) and op.key == "/orc/sequence")
    await MemoryKv.txn(kv, [], [replace(mark, value=b"late"), Put("/orc/tasks/late", b"")])
    written = await writer.write(group_changes([new("t1"), new("t2", service="other")]))
    assert len(written.conflicted) == 2
    assert written.revision == (await kv.list("/")).revision
    again = await writer.write(group_changes([new("t1")]))
    assert again.conflicted == []


async def test_only_conflicting_groups_are_dropped() -> None:
    kv = Store()
    writer = await elected(kv)
    web = Service(id="web", revision=77)
    written = await writer.write(
        group_changes([new("a", service="a"), new("w", service="web", requires=(web,)), new("b")])
    )
    assert [group.owners for group in written.conflicted] == [{"web"}]
    assert await kv.tasks() == ["a", "b"]
    assert len(kv.sent) == 2


async def test_dependents_of_a_conflicting_group_are_dropped() -> None:
    kv = Store()
    writer = await elected(kv)
    stale = Node(id="n", revision=5)
    hello = Decision((Change(stale, replace(stale, message="up")),))
    placed = Decision(
        (Change(None, Task(id="t", service_id="s", node_id="n")),), reads={"t": (stale,)}, owner="s"
    )
    written = await writer.write(group_changes([hello, placed, new("other", service="o")]))
    assert [group.owners for group in written.conflicted] == [frozenset(), {"s"}]
    assert await kv.tasks() == ["other"]


async def test_resources_are_not_taken_before_they_are_freed() -> None:
    kv = Store()
    writer = await elected(kv)
    running = Task(
        id="old", service_id="a", node_id="n", revision=9, status=TaskStatus(TaskState.RUNNING)
    )
    ends = replace(running, status=TaskStatus(TaskState.FAILED))
    taken = Task(id="new", service_id="b", node_id="n", status=TaskStatus(TaskState.ASSIGNED))
    written = await writer.write(
        group_changes(
            [Decision((Change(None, taken),), owner="b"), Decision((Change(running, ends),))]
        )
    )
    assert len(written.conflicted) == 2
    assert await kv.tasks() == []


async def test_a_service_is_not_planned_on_reports_that_are_not_committed() -> None:
    kv = Store()
    writer = await elected(kv)
    record = SessionRecord(id="n1")
    await kv.put(record)
    session = replace(record, revision=(await kv.list("/")).revision)
    ran = Task(id="t1", service_id="s", node_id="n1", status=TaskStatus(state=TaskState.RUNNING))
    await writer.write(group_changes([Decision((Change(None, ran),))]))
    ran = replace(ran, revision=(await kv.list("/")).revision)
    failed = replace(ran, status=TaskStatus(state=TaskState.FAILED))
    report = Decision((Change(ran, failed),), reads={"t1": (session,)})
    # The node's session moves to another manager before the report of this one is committed.
    await kv.put(record)
    written = await writer.write(group_changes([report, new("t2"), new("other", service="s2")]))
    # The replacement would be a second task of a slot whose first one still runs by the store.
    assert await kv.tasks() == ["other", "t1"]
    assert len(written.conflicted) == 2


async def test_each_transaction_has_the_guards_of_its_own_changes_only() -> None:
    kv = Store(max_txn_ops=16)
    writer = await elected(kv)
    nodes = [Node(id=f"n{number:03}") for number in range(100)]
    for node in nodes:
        await kv.put(node)
    stored = {entry.key: entry.mod_revision for entry in (await kv.list("/orc/nodes/")).entries}
    nodes = [replace(node, revision=stored[object_key(node)]) for node in nodes]
    changes = tuple(
        Change(None, Task(id=f"t{number:03}", service_id="s", node_id=node.id))
        for number, node in enumerate(nodes)
    )
    reads = {f"t{number:03}": (node,) for number, node in enumerate(nodes)}
    written = await writer.write(group_changes([Decision(changes, reads=reads, owner="s")]))
    assert (written.conflicted, written.error) == ([], None)
    assert len(await kv.tasks()) == 100
    assert all(len(guards) <= 16 for guards, _ in kv.sent)


async def test_requests_stay_smaller_than_etcd_takes() -> None:
    kv = Store(max_txn_ops=4096)
    writer = await elected(kv)
    large = [
        Decision((Change(None, Service(id=f"s{number}", spec=ServiceSpec(name="x" * 300_000))),))
        for number in range(10)
    ]
    written = await writer.write(group_changes(large))
    assert written.error is None
    assert len((await kv.list("/orc/services/")).entries) == 10


async def test_a_group_that_is_too_large_is_reported_and_the_rest_committed() -> None:
    kv = Store()
    writer = await elected(kv)
    huge = Service(id="huge", spec=ServiceSpec(name="x" * 2_000_000))
    written = await writer.write(
        group_changes([Decision((Change(None, huge),), owner="huge"), new("t", service="s")])
    )
    assert [group.owners for group in written.too_large] == [{"huge"}]
    assert await kv.tasks() == ["t"]


async def test_a_full_store_leaves_everything_uncommitted() -> None:
    kv = Store()
    writer = await elected(kv)

    def full(verb: str, phase: str) -> None:
        if verb == "txn":
            raise StoreFull("the database is full")

    quiet: Callable[[str, str], None] = kv.fault
    kv.fault = full
    written = await writer.write(group_changes([new("t")]))
    assert str(written.error) == "the database is full"
    assert [group.owners for group in written.unwritten] == [{"s"}]
    kv.fault = quiet
    assert (await writer.write(group_changes([new("t")]))).error is None


async def test_the_fence_of_a_lost_term_stops_a_write() -> None:
    kv = Store()
    writer = PlanWriter(kv, Guard(LEADER, create_revision=7))
    with pytest.raises(TermEnded):
        await writer.write(group_changes([new("t")]))
    assert await kv.tasks() == []
