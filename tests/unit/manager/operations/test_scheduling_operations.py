# SPDX-License-Identifier: Apache-2.0
"""Queues, capacity, explanations and moves, as clients ask for them, on a store in memory."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import cast

import pytest
from builders import NOW, World, node, service, task_spec

from orchestrator.daemon.background import background
from orchestrator.manager.errors import RequestError
from orchestrator.manager.operations.context import ManagerContext
from orchestrator.manager.operations.workloads.placement import PlacementOperations
from orchestrator.manager.operations.workloads.queues import QueueOperations
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.model.jobs import JobSpec
from orchestrator.model.nodes import Availability
from orchestrator.model.objects import Cluster, Object
from orchestrator.model.specs import ServiceMode
from orchestrator.pb import jobs_pb2, scheduling_pb2, types_pb2


@dataclass
class Context:
    """What these operations use of a manager."""

    kv: MemoryKv
    cache: Cache

    @property
    def view(self) -> ClusterView:
        return self.cache.view

    def now(self) -> float:
        return NOW

    async def put(self, *objects: Object) -> None:
        for each in objects:
            revision = await commit(self.kv, [Change(None, each)])
            await self.cache.wait_for(revision)

    @property
    def queues(self) -> QueueOperations:
        return QueueOperations(cast(ManagerContext, self))

    @property
    def placement(self) -> PlacementOperations:
        return PlacementOperations(cast(ManagerContext, self))


@pytest.fixture
async def context() -> AsyncIterator[Context]:
    kv = MemoryKv(time.monotonic)
    made = Context(kv, Cache(kv))
    async with background(made.cache.follow()):
        await made.cache.wait_for(0)
        await made.put(Cluster(id="cluster"))
        yield made


async def test_queues_are_created_changed_listed_and_removed(context: Context) -> None:
    queues = context.queues
    await queues.set_queue(jobs_pb2.SetQueueRequest(name="b", create=True, weight=3))
    await queues.set_queue(jobs_pb2.SetQueueRequest(name="a", create=True, quota_shares=2048))
    changed = await queues.set_queue(jobs_pb2.SetQueueRequest(name="a", quota_memory=1 << 30))
    assert (changed.weight, changed.quota.shares, changed.quota.memory) == (1, 2048, 1 << 30)
    assert context.view.cluster is not None
    assert [each.name for each in context.view.cluster.queues] == ["a", "b"]
    job = service("sums", 4, mode=ServiceMode.REPLICATED_JOB)
    await context.put(replace(job, spec=replace(job.spec, job=JobSpec(queue="a"))))
    rows = (await queues.list_queues(jobs_pb2.ListQueuesRequest())).queues
    assert [(each.queue.name, each.queue.weight, each.jobs) for each in rows] == [
        ("a", 1, 0),
        ("b", 3, 0),
    ]
    with pytest.raises(RequestError, match="in use by sums"):
        await queues.remove_queue(jobs_pb2.RemoveQueueRequest(name="a"))
    await queues.remove_queue(jobs_pb2.RemoveQueueRequest(name="b"))
    assert [each.name for each in context.view.cluster.queues] == ["a"]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (jobs_pb2.SetQueueRequest(name="a", create=True), "already exists"),
        (jobs_pb2.SetQueueRequest(name="no"), "create it with 'orc queue create no'"),
        (jobs_pb2.SetQueueRequest(name="a", weight=0), "weight 0 is not from 1"),
        (jobs_pb2.SetQueueRequest(name="a", quota_shares=-1), "not negative"),
        (jobs_pb2.SetQueueRequest(name="a b", create=True), "queue name"),
    ],
)
async def test_refused_changes_of_queues(
    context: Context, request_: jobs_pb2.SetQueueRequest, said: str
) -> None:
    await context.queues.set_queue(jobs_pb2.SetQueueRequest(name="a", create=True))
    with pytest.raises(RequestError, match=said):
        await context.queues.set_queue(request_)


async def converged(context: Context) -> World:
    """Four tasks on one of two nodes."""
    world = World(node("n1"), service("web", 4, spec=task_spec(shares=512)))
    world.obey()
    world.put(node("n2"))
    world.put(node("n3", availability=Availability.DRAIN))
    world.obey()
    await context.put(*world.view.objects())
    return world


async def test_capacity_says_what_limits_it(context: Context) -> None:
    await converged(context)
    reply = await context.placement.get_capacity(scheduling_pb2.CapacityRequest(service="web"))
    assert (reply.service, reply.tasks, reply.each.shares) == ("web", 12, 512)
    assert [(each.hostname, each.tasks, each.if_active) for each in reply.nodes] == [
        ("host-n1", 4, 0),
        ("host-n2", 8, 0),
        ("host-n3", 0, 8),
    ]
    assert reply.nodes[2].limit == "drained"
    assert reply.per_node == 8
    size = types_pb2.Resources(shares=4096)
    reply = await context.placement.get_capacity(scheduling_pb2.CapacityRequest(reservation=size))
    assert reply.tasks == 1


async def test_placement_is_explained(context: Context) -> None:
    await converged(context)
    ask = context.placement.get_placement
    reply = await ask(scheduling_pb2.PlacementRequest(subject="web.1"))
    assert (reply.kind, [each.node for each in reply.tasks]) == ("task", ["host-n1"])
    best = reply.nodes[0]
    assert (best.hostname, best.place, best.tasks) == ("host-n2", 1, 0)
    here = next(each for each in reply.nodes if each.here)
    assert (here.hostname, here.place, here.tasks) == ("host-n1", 2, 3)
    reply = await ask(scheduling_pb2.PlacementRequest(subject="web"))
    assert (reply.kind, len(reply.tasks)) == ("service", 4)
    with pytest.raises(RequestError, match="no task or service 'wob'; did you mean 'web'"):
        await ask(scheduling_pb2.PlacementRequest(subject="wob"))


async def test_moves_are_written_to_their_tasks(context: Context) -> None:
    await converged(context)
    request = scheduling_pb2.RebalanceRequest(max_moves=1)
    reply = await context.placement.rebalance(request)
    [move] = reply.moves
    assert (move.source, move.target) == ("host-n1", "host-n2")
    assert context.view.tasks[move.task_id].move_to == "n2"
    reply = await context.placement.rebalance(scheduling_pb2.RebalanceRequest(service="web"))
    assert [each.target for each in reply.moves] == ["host-n2"]
    assert not (await context.placement.rebalance(scheduling_pb2.RebalanceRequest())).moves
    with pytest.raises(RequestError, match="negative"):
        await context.placement.rebalance(scheduling_pb2.RebalanceRequest(max_moves=-1))
