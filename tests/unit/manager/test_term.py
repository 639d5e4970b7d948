"""The leader's loop on a store in memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count

from orchestrator.manager.inbox import Inbox
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import LEADER
from orchestrator.manager.store.kv import Guard, Put
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.manager.term import Term
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


@asynccontextmanager
async def leading(kv: MemoryKv, new_id: Callable[[], str]) -> AsyncIterator[Cache]:
    """A term on what is stored, for as long as the block runs."""
    cache = Cache(kv)
    revision = await kv.txn([Guard(LEADER, create_revision=0)], [Put(LEADER, b"m")])
    term = Term(
        kv,
        cache,
        Inbox(lambda: NOW),
        fence=Guard(LEADER, create_revision=revision),
        started_at=NOW,
        now=lambda: NOW,
        new_id=new_id,
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


async def test_a_large_service_is_placed_round_by_round_without_any_other_cause() -> None:
    kv = await stored(Cluster(id="c"), node("a"), service("web", 1200))
    async with leading(kv, ids()) as cache:
        await until(cache, lambda: len(cache.view.tasks) == 1200)
        assert {task.status.state for task in cache.view.tasks.values()} == {TaskState.ASSIGNED}
