# SPDX-License-Identifier: Apache-2.0
"""The autoscaler of a term, on a store in memory."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace

import pytest

from orchestrator.daemon.background import background
from orchestrator.manager.leader.autoscaler import Autoscaler
from orchestrator.manager.leader.prometheus_queries import QueryFailed
from orchestrator.manager.planning.autoscaling import Reading
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import LEADER
from orchestrator.manager.store.kv import Guard, Put
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.model.objects import Cluster as ClusterState
from orchestrator.model.objects import Object
from orchestrator.model.scheduling.autoscaling import AutoscaleSpec
from orchestrator.model.services import Service
from orchestrator.model.specs import Resources, ServiceSpec, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus

MIB = 1 << 20
SPEC = TaskSpec(reservation=Resources(1024, 100 * MIB))


class Cluster:
    """Two tasks of an autoscaled service, whose nodes report counters."""

    def __init__(self) -> None:
        self.kv = MemoryKv(time.monotonic)
        self.cache = Cache(self.kv)
        self.fence = Guard(LEADER, create_revision=0)
        self.readings: dict[str, Reading] = {}
        self.asked: list[str] = []
        self.now = 1000.0
        self.answer: float | str = "connection refused"
        """Of Prometheus; a text: why it has none."""

    async def fill(self) -> None:
        lead = await self.kv.txn([], [Put(LEADER, b"m1")])
        self.fence = Guard(LEADER, create_revision=lead)
        scale = AutoscaleSpec(least=1, most=8, cpu=50)
        spec = ServiceSpec(name="web", replicas=2, task=SPEC, autoscale=scale)
        await self.write(None, Service(id="web", spec=spec))
        for number in (1, 2):
            task = Task(
                id=f"t{number}",
                service_id="web",
                service_name="web",
                slot=number,
                spec=SPEC,
                node_id=f"n{number}",
                status=TaskStatus(TaskState.RUNNING),
            )
            await self.write(None, task)

    async def write(self, before: Object | None, after: Object) -> None:
        await self.cache.wait_for(await commit(self.kv, [Change(before, after)]))

    async def measure(self, node_id: str, tasks: Sequence[str]) -> Mapping[str, Reading]:
        self.asked.append(node_id)
        return {id: self.readings[id] for id in tasks if id in self.readings}

    async def ask(self, url: str, query: str) -> float:
        if isinstance(self.answer, str):
            raise QueryFailed(f"cannot ask {url}: {self.answer}")
        return self.answer

    def autoscaler(self) -> Autoscaler:
        return Autoscaler(self.kv, self.cache, self.fence, self.measure, self.ask, lambda: self.now)

    def use(self, cores: float) -> None:
        """Each task has used so many cores in the last 15 seconds."""
        for id in ("t1", "t2"):
            before = self.readings.get(id, Reading(0.0, 0.0, 0))
            self.readings[id] = Reading(before.at + 15, before.cpu + 15 * cores, 50 * MIB)

    async def service(self) -> Service:
        await self.cache.wait_for((await self.kv.list("")).revision)
        return self.cache.view.services["web"]


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    async with background(made.cache.follow()):
        await made.cache.wait_for(0)
        await made.fill()
        yield made


async def test_replicas_follow_what_the_nodes_measure(cluster: Cluster) -> None:
    autoscaler = cluster.autoscaler()
    cluster.use(1.0)
    await autoscaler.step()
    assert (await cluster.service()).replicas == 2, "one measurement is no rate"
    cluster.use(1.0)
    await autoscaler.step()
    web = await cluster.service()
    assert (web.replicas, web.autoscale.message) == (4, "cpu at 100% of 50%")
    assert sorted(set(cluster.asked)) == ["n1", "n2"]


async def test_replicas_follow_a_query(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    await cluster.write(None, ClusterState(id="c1", prometheus="http://10.0.0.5:9090"))
    web = await cluster.service()
    scale = AutoscaleSpec(least=1, most=8, query="sum(up)", per_replica=10, down_window=0.0)
    await cluster.write(web, replace(web, spec=replace(web.spec, autoscale=scale)))
    autoscaler = cluster.autoscaler()
    for _ in range(2):
        await autoscaler.step()
    assert (await cluster.service()).replicas == 2
    assert caplog.text.count("an autoscaling query failed") == 1
    cluster.answer = 35.0
    await autoscaler.step()
    web = await cluster.service()
    assert (web.replicas, web.autoscale.message) == (4, "query at 35, 10 per replica")
    state = cluster.cache.view.cluster
    assert state is not None
    await cluster.write(state, replace(state, prometheus=""))
    cluster.answer = 0.0
    await autoscaler.step()
    assert (await cluster.service()).replicas == 4


async def test_another_leader_continues_a_window(cluster: Cluster) -> None:
    first = cluster.autoscaler()
    cluster.use(0.0)
    await first.step()
    cluster.use(0.0)
    await first.step()
    assert (await cluster.service()).autoscale.fewer_since == 1000.0
    second = cluster.autoscaler()
    cluster.use(0.0)
    await second.step()
    cluster.use(0.0)
    cluster.now += 301
    await second.step()
    assert (await cluster.service()).replicas == 1


async def test_a_former_leader_writes_nothing(cluster: Cluster) -> None:
    cluster.fence = replace(cluster.fence, create_revision=12345)
    autoscaler = cluster.autoscaler()
    for _ in range(2):
        cluster.use(1.0)
        await autoscaler.step()
    assert (await cluster.service()).replicas == 2


async def test_nodes_that_do_not_answer_change_nothing(cluster: Cluster) -> None:
    autoscaler = cluster.autoscaler()
    for _ in range(3):
        await autoscaler.step()
    assert (await cluster.service()).autoscale.changed_at == 0
