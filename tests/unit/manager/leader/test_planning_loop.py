# SPDX-License-Identifier: Apache-2.0
"""The leader's loop on a store in memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count

import pytest

from orchestrator.manager.leader.agent_reports import ReportBuffer
from orchestrator.manager.leader.planning_loop import PlanningLoop
from orchestrator.manager.planning import pipeline
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.slots import Draft
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import LEADER
from orchestrator.manager.store.kv import Guard, Put, StoreFull
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.model.nodes import Node, NodeDescription, NodeState
from orchestrator.model.objects import Cluster
from orchestrator.model.services import Service
from orchestrator.model.specs import Resources, ServiceSpec
from orchestrator.model.states import TaskState

NOW = 1000.0


def ids() -> Callable[[], str]:
    numbers = count(1)
    return lambda: f"id{next(numbers):06}"


def node(id: str) -> Node:
    described = NodeDescription(hostname=id, resources=Resources(1 << 20, 1 << 50))
    return Node(id=id, state=NodeState.READY, description=described)


def service(id: str, replicas: int) -> Service:
    return Service(id=id, spec=ServiceSpec(name=id, replicas=replicas))


class Said:
    """What a leader tells of itself."""

    def __init__(self) -> None:
        self.store = ""
        self.store_has_failed = asyncio.Event()
        self.store_is_well = asyncio.Event()
        self.aside: Mapping[str, str] = {}
        self.has_put_aside = asyncio.Event()

    def took(self, seconds: float) -> None: ...

    def conflicted(self) -> None: ...

    def store_failed(self, error: str) -> None:
        self.store = error
        if error:
            self.store_has_failed.set()
        else:
            self.store_is_well.set()

    def set_aside(self, services: Mapping[str, str]) -> None:
        self.aside = services
        if services:
            self.has_put_aside.set()

    def suspected(self, silent: int) -> None: ...

    def refused(self, kind: str) -> None: ...

    def ended(self) -> None: ...


@asynccontextmanager
async def leading(
    kv: MemoryKv, new_id: Callable[[], str], said: Said | None = None
) -> AsyncIterator[Cache]:
    """A term on what is stored, for as long as the block runs."""
    cache = Cache(kv)
    revision = await kv.txn([Guard(LEADER, create_revision=0)], [Put(LEADER, b"m")])
    term = PlanningLoop(
        kv,
        cache,
        ReportBuffer(lambda: NOW),
        fence=Guard(LEADER, create_revision=revision),
        now=lambda: NOW,
        clock=lambda: NOW,
        new_id=new_id,
        times=said,
    )
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(cache.follow()), group.create_task(term.run(revision))]
        yield cache
        for task in tasks:
            task.cancel()


async def until(cache: Cache, holds: Callable[[], bool]) -> None:
    """Wait for the cache to be so."""
    async with asyncio.timeout(60), cache.subscribe() as feed:
        while not holds():
            await feed.next()


async def stored(*objects: Cluster | Node | Service) -> MemoryKv:
    kv = MemoryKv(lambda: NOW)
    await commit(kv, [Change(None, item) for item in objects])
    return kv


async def test_the_event_loop_runs_while_a_round_is_planned() -> None:
    kv = await stored(Cluster(id="c"), node("a"), service("web", 1))
    loop, served = asyncio.get_running_loop(), threading.Event()

    def new_id() -> str:
        loop.call_soon_threadsafe(served.set)
        assert served.wait(60), "nothing else ran while the leader planned"
        return "task"

    async with leading(kv, new_id) as cache:
        await until(cache, lambda: "task" in cache.view.tasks)


async def test_a_service_that_cannot_be_planned_delays_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reconcile = pipeline.reconcile_replicated

    def fails_for_bad(view: ClusterView, service: Service, draft: Draft) -> None:
        if service.id == "bad":
            raise ValueError("a defect")
        reconcile(view, service, draft)

    monkeypatch.setattr(pipeline, "reconcile_replicated", fails_for_bad)
    kv = await stored(Cluster(id="c"), node("a"), service("bad", 2), service("good", 2))
    said = Said()
    async with leading(kv, ids(), said) as cache:
        await until(cache, lambda: len(cache.view.tasks_of_service("good")) == 2)
        await said.has_put_aside.wait()
        assert said.aside == {"bad": "ValueError: a defect"}
        monkeypatch.setattr(pipeline, "reconcile_replicated", reconcile)
        bad = cache.view.services["bad"]
        await commit(kv, [Change(bad, replace(bad, updated_at=NOW))])
        await until(cache, lambda: len(cache.view.tasks_of_service("bad")) == 2)


async def test_a_full_store_is_read_only_until_there_is_room_again() -> None:
    kv = await stored(Cluster(id="c"), node("a"), service("web", 1))
    full = asyncio.Event()
    full.set()

    def fault(verb: str, phase: str) -> None:
        if verb == "txn" and phase == "before" and full.is_set():
            raise StoreFull("the database is full")

    said = Said()
    async with leading(kv, ids(), said) as cache:
        kv.fault = fault
        await said.store_has_failed.wait()
        assert said.store == "the database is full"
        assert not cache.view.tasks
        said.store_is_well.clear()
        full.clear()
        await until(cache, lambda: len(cache.view.tasks) == 1)
        await said.store_is_well.wait()


async def test_a_large_service_is_placed_round_by_round_without_any_other_cause() -> None:
    kv = await stored(Cluster(id="c"), node("a"), service("web", 1200))
    async with leading(kv, ids()) as cache:
        await until(cache, lambda: len(cache.view.tasks) == 1200)
        assert {task.status.state for task in cache.view.tasks.values()} == {TaskState.ASSIGNED}
