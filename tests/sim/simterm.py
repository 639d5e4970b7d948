# SPDX-License-Identifier: Apache-2.0
"""A cluster led by real terms: the leader's loop, its cache and its writes, in virtual time.

`simcluster` proves the decisions; this proves what is done with them. A seed picks the faults of
its kind (`Kind`), each of which has invariants of its own beside those that always hold.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from random import Random
from typing import Any

import simchecks
from simloop import run
from simnode import LATE, STOPPING, Agent, advance, obey, report
from simstore import Faults, FaultyKv, nobody

from orchestrator.manager.leader.agent_reports import Hello, ReportBuffer
from orchestrator.manager.leader.planning_loop import PlanningLoop, inline
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.reconcile.convergence import progress
from orchestrator.manager.planning.view import assigned_tasks
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import LEADER, object_key, object_type
from orchestrator.manager.store.kv import Conflict, Guard, Put
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.model.nodes import Node, NodeDescription, NodeState
from orchestrator.model.objects import Cluster, Network
from orchestrator.model.services import Service
from orchestrator.model.specs import (
    ContainerSpec,
    Resources,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    UpdatePolicy,
)
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.tasks import Task

MIB = 1 << 20
TICK = 0.25
NODE_TIMEOUT = 2.0
GRACE = STOPPING + LATE + 2 * TICK
MOST = 6
"""Replicas of a service."""
PATIENCE = 1.0
"""Seconds within which a new service has its nodes, whatever happens to another one: some rounds at
the speed of this store."""

DAY = 86400.0


class Kind(Enum):
    """What goes wrong in a cluster's life."""

    OUTCOMES = "outcomes"
    """Writes of unknown outcome, late writes, a lagging watch, terms that end."""
    TERMS = "terms"
    """Terms end at every point, and nothing else."""
    CLOCKS = "clocks"
    """The leader's wall clock steps, and nothing else."""
    CONFLICTS = "conflicts"
    """Somebody writes one service whenever the leader does."""
    FULL = "full"
    """Now and then the store takes no writes."""
    UNDECODABLE = "undecodable"
    """One object cannot be decoded for a while, also by a manager that has just started."""


class TermCluster:
    """The store, the managers, the agents and the users of one simulated cluster."""

    node_timeout = NODE_TIMEOUT

    def __init__(self, seed: int, kind: Kind) -> None:
        self.random = Random(seed)
        self.now = self.loop_time()
        self.kind = kind
        self.faults = False
        """Whether containers fail by chance, as `simnode` has it."""
        self.trouble = False
        """Whether the faults of its kind happen."""
        self.clock = 1e9
        """What the leader's wall clock is ahead of the loop's."""
        self.memory = MemoryKv(self.loop_time, max_txn_ops=self.random.choice((12, 128)))
        self.kv = FaultyKv(self.memory, self.random)
        self.cache = Cache(self.kv)
        self.truth = Cache(self.memory)
        """What is stored, without delay."""
        self.report_buffer = ReportBuffer(self.loop_time)
        self.agents: dict[str, Agent] = {}
        self.lease = 0
        self._ids = 0

    @staticmethod
    def loop_time() -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        return self.clock + self.loop_time()

    def new_id(self) -> str:
        self._ids += 1
        return f"id{self._ids:06}"

    # Managers

    async def lead(self) -> None:
        """One term after the other, for ever."""
        number = 0
        while True:
            number += 1
            revision = await self._elect(number)
            self.report_buffer.begin_term()
            for agent in self.agents.values():
                agent.leave()
            if self.kind is Kind.OUTCOMES:
                self.clock = 1e9 + self.random.uniform(-3, 3)
            term = self._term(revision)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._lifetime()):
                    await term.run(revision)
            await asyncio.sleep(self.random.choice((0.0, 0.5)))

    def _term(self, revision: int) -> PlanningLoop:
        return PlanningLoop(
            self.kv,
            self.cache,
            self.report_buffer,
            fence=Guard(LEADER, create_revision=revision),
            clock=self.loop_time,
            now=self.wall,
            new_id=self.new_id,
            offload=inline,
        )

    def _lifetime(self) -> float | None:
        if self.kind is Kind.UNDECODABLE:
            return 1.0
        if self.trouble and self.kind in (Kind.TERMS, Kind.OUTCOMES):
            return self.random.choice((0.02, 0.3, 1.0, 3.0)) * self.random.random() * 2
        return 5.0 if self.kind in (Kind.TERMS, Kind.OUTCOMES) else None

    async def _elect(self, number: int) -> int:
        held = await self.memory.get(LEADER)
        if held is not None:
            await self.memory.revoke(self.lease)
        self.lease = await self.memory.grant(1e9)
        return await self.memory.txn([], [Put(LEADER, f"m{number}".encode(), self.lease)])

    # Users

    async def write(self, *changes: Change) -> None:
        """Store what a user or a joining node wants; one that meets a newer object lets it be."""
        with suppress(Conflict):
            await self.truth.wait_for(await commit(self.memory, changes))

    async def create(self, replicas: int, *, delay: float = 0.0) -> Service:
        id = self.new_id()
        task = TaskSpec(
            container=ContainerSpec(image="web:1"),
            reservation=Resources(64, 32 * MIB),
            restart=RestartPolicy(delay=delay),
        )
        mode = ServiceMode.REPLICATED
        spec = ServiceSpec(
            name=f"web{id}", mode=mode, replicas=replicas, task=task, update=UpdatePolicy(2)
        )
        service = Service(id=id, created_at=self.wall(), spec=spec)
        await self.write(Change(None, service))
        return service

    async def change(self) -> None:
        """Scale a service, or roll out another version of it."""
        services = [each for each in self.truth.view.services.values() if not each.removed]
        service = self.random.choice(services)
        spec = service.spec
        if self.random.random() < 0.5:
            spec = replace(spec, replicas=self.random.randrange(1, MOST + 1))
        else:
            spec = replace(spec, task=replace(spec.task, force=spec.task.force + 1))
        await self.write(Change(service, replace(service, spec=spec)))

    # Agents

    def tick_agents(self) -> None:
        for agent in self.agents.values():
            node = self.cache.view.nodes.get(agent.node_id)
            if node is None:
                continue
            if not agent.greeted and (not self.trouble or self.random.random() < 0.5):
                self._greet(agent)
            if agent.greeted:
                self.report_buffer.hear(agent.node_id)
                agent.orders = assigned_tasks(self.cache.view, agent.node_id)
            obey(self, agent)
            advance(self, agent)
            if agent.greeted and agent.unreported:
                self._report(agent)

    def _greet(self, agent: Agent) -> None:
        size = Resources(1024, 1024 * MIB)
        about = NodeDescription(agent.node_id, resources=size)
        self.report_buffer.hello(agent.node_id, Hello(about, "boot"))
        agent.greeted = True

    def _report(self, agent: Agent) -> None:
        statuses = dict(agent.unreported)

        def acknowledge() -> None:
            for id, status in statuses.items():
                if agent.unreported.get(id) is status:
                    del agent.unreported[id]

        self.report_buffer.statuses(agent.node_id, statuses, acknowledge)

    # Its life

    async def live(self) -> None:
        await self.live_with(lambda: _FAULTS[self.kind](self))

    async def live_with(self, suffer: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Live, with trouble for as long as `suffer` takes."""
        async with asyncio.TaskGroup() as group:
            following = [
                group.create_task(self.truth.follow()),
                group.create_task(self.cache.follow()),
            ]
            await self.write(
                Change(None, Cluster(id="cluster", node_timeout=self.node_timeout)),
                Change(None, Network(id="net", name="default", subnet="10.128.0.0/20")),
            )
            for _ in range(4):
                id = self.new_id()
                self.agents[id] = Agent(id, skew=self.random.uniform(-1, 1))
                await self.write(Change(None, Node(id=id, created_at=self.wall())))
            for _ in range(3):
                await self.create(self.random.randrange(1, 6), delay=self.random.choice((0.0, 1.0)))
            leading = group.create_task(self.lead())
            await self.settle(30.0)
            self.trouble, self.faults = True, self.kind is Kind.OUTCOMES
            await suffer()
            self.heal()
            await self.settle(60.0)
            for task in (*following, leading):
                task.cancel()

    async def tick(self) -> None:
        await asyncio.sleep(TICK)
        self.now = self.loop_time()
        self.tick_agents()
        self.check()

    async def pass_(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            await self.tick()

    def heal(self) -> None:
        self.trouble = self.faults = False
        self.kv.faults = Faults()
        self.kv.meddler = nobody

    async def settle(self, limit: float) -> None:
        until = self.now + limit
        while self.now < until:
            await self.tick()
            if self.converged():
                return
        raise AssertionError(f"not at rest after {limit:g} s")

    def converged(self) -> bool:
        view = self.truth.view
        return all(node.state is NodeState.READY for node in view.nodes.values()) and all(
            progress(view, id).converged and len(self.running(id)) == service.spec.replicas
            for id, service in view.services.items()
        )

    def running(self, service_id: str = "") -> set[str]:
        """Ids of the tasks that run, and are to."""
        return {
            task.id
            for task in self.truth.view.tasks.values()
            if task.status.state is TaskState.RUNNING
            and task.desired_state is TaskState.RUNNING
            and service_id in ("", task.service_id)
        }

    # What must hold

    def check(self) -> None:
        view = self.truth.view
        simchecks.check_nodes(view)
        slots: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
        for task in view.tasks.values():
            if not is_terminal(task.status.state) and task.desired_state <= TaskState.RUNNING:
                slots[task.service_id, task.slot].append(task.id)
        twice = {key: ids for key, ids in slots.items() if len(ids) > 1}
        assert not twice, f"slots have several tasks that are to run: {twice}"
        for id, service in view.services.items():
            live = sum(key[0] == id for key in slots)
            assert live <= MOST, f"{live} slots of {service.spec.name}"

    def picture(self) -> str:
        """The state of everything, for the message of a failed test."""
        view = self.truth.view
        lines = [
            f"{task.name} {task.id} on {task.node_id or '-'} {task.status.state.name}"
            f" (desired {task.desired_state.name}) {task.status.message}"
            for task in sorted(view.tasks.values(), key=lambda task: (task.name, task.id))
        ]
        lines += [f"{node.id} {node.state.name} {node.message}" for node in view.nodes.values()]
        lines += [f"{each.spec.name} {each.spec.replicas}" for each in view.services.values()]
        return "\n".join(lines)


async def _outcomes(cluster: TermCluster) -> None:
    faults = cluster.kv.faults
    faults.applied = faults.not_applied = faults.late = 0.1
    faults.slow, faults.lagging = 0.1, 0.2
    for _ in range(60):
        if cluster.random.random() < 0.3:
            await cluster.change()
        await cluster.tick()


async def _terms(cluster: TermCluster) -> None:
    before = cluster.running()
    cluster.kv.faults.slow = 0.1
    for _ in range(60):
        await cluster.tick()
        assert cluster.running() == before, "a new term rescheduled what runs"


async def _clocks(cluster: TermCluster) -> None:
    running = cluster.running()
    for _ in range(60):
        if cluster.random.random() < 0.2:
            size = cluster.random.choice((1.0, 10.0, 3600.0, DAY))
            cluster.clock += cluster.random.choice((-1, 1)) * size
        await cluster.tick()
        assert cluster.running() == running, "a clock step rescheduled what runs"
    # Something fails right now, whatever the clock says, and is restarted after its delay.
    victim = cluster.random.choice(sorted(running))
    agent = next(each for each in cluster.agents.values() if victim in each.containers)
    agent.containers[victim].state = TaskState.FAILED
    report(cluster, agent, agent.containers[victim])
    await cluster.pass_(0.5)
    cluster.clock += cluster.random.choice((-1, 1)) * cluster.random.choice((1.0, 3600.0, DAY))
    await cluster.pass_(4.5)
    assert len(cluster.running()) == len(running), "what failed was not restarted in time"


async def _conflicts(cluster: TermCluster) -> None:
    services = sorted(cluster.truth.view.services)
    victim = cluster.random.choice(services)

    async def meddle(guards: Sequence[Guard]) -> None:
        found = [object_type(guard.key) for guard in guards]
        stored = cluster.truth.view.services[victim]
        tasks = {id for each in found if each for type_, id in [each] if type_ is not Service}
        mine = any(
            (task := cluster.truth.view.tasks.get(id)) and task.service_id == victim for id in tasks
        )
        if mine or (Service, victim) in found:
            labels = {"changed": str(cluster.now)}
            spec = replace(stored.spec, labels=labels)
            await cluster.write(Change(stored, replace(stored, spec=spec)))

    cluster.kv.meddler = meddle
    spec = cluster.truth.view.services[victim].spec
    spec = replace(spec, task=replace(spec.task, force=spec.task.force + 1))
    stored = cluster.truth.view.services[victim]
    await cluster.write(Change(stored, replace(stored, spec=spec)))
    for _ in range(8):
        await cluster.pass_(0.5)
        other = await cluster.create(2)
        began = cluster.now
        while not _assigned(cluster, other.id):
            await cluster.tick()
            assert cluster.now - began <= PATIENCE, f"{other.spec.name} waits for another service"


def _assigned(cluster: TermCluster, service_id: str) -> bool:
    tasks = cluster.truth.view.tasks_of_service(service_id).values()
    return sum(task.status.state >= TaskState.ASSIGNED for task in tasks) == 2


async def _full(cluster: TermCluster) -> None:
    for _ in range(3):
        cluster.kv.faults.full = True
        await cluster.change()
        await cluster.pass_(cluster.random.uniform(0.0, 4.0))
        cluster.kv.faults.full = False
        await cluster.pass_(cluster.random.uniform(0.0, 4.0))


async def _undecodable(cluster: TermCluster) -> None:
    view = cluster.truth.view
    known: list[Task | Service] = [*view.tasks.values(), *view.services.values()]
    victim = cluster.random.choice(known)
    key, others = object_key(victim), set(view.services)
    entry = await cluster.memory.get(key)
    assert entry is not None
    garbage = cluster.random.choice((b"\xff", entry.value[: len(entry.value) // 2] + b"\xff"))
    running = cluster.running()
    await cluster.memory.txn([], [Put(key, garbage)])
    async with asyncio.TaskGroup() as group:
        following = None
        if cluster.random.random() < 0.5:
            # The manager starts anew; what it knew of the object is lost.
            cluster.cache = Cache(cluster.kv)
            following = group.create_task(cluster.cache.follow())
        for _ in range(4):
            other = await cluster.create(2)
            began = cluster.now
            while not _assigned(cluster, other.id):
                await cluster.tick()
                assert cluster.now - began <= PATIENCE, "a new service waits for what is damaged"
        await cluster.pass_(3.0)
        made = {
            task.id
            for task in cluster.truth.view.tasks.values()
            if task.service_id in others and task.id not in view.tasks
        }
        assert not made, f"{made} took the place of what merely cannot be decoded"
        assert running - {victim.id} <= cluster.running()
        now = await cluster.memory.get(key)
        assert now is not None
        assert now.value == garbage, "what cannot be decoded was overwritten"
        await cluster.memory.txn([], [Put(key, entry.value)])
        cluster.heal()
        await cluster.settle(60.0)
        if following is not None:
            following.cancel()


_FAULTS: dict[Kind, Callable[[TermCluster], Coroutine[Any, Any, None]]] = {
    Kind.OUTCOMES: _outcomes,
    Kind.TERMS: _terms,
    Kind.CLOCKS: _clocks,
    Kind.CONFLICTS: _conflicts,
    Kind.FULL: _full,
    Kind.UNDECODABLE: _undecodable,
}


def live_of_terms(seed: int, kind: Kind) -> None:
    """Raises AssertionError, whose text tells how to see it again."""

    async def life() -> None:
        cluster = TermCluster(seed, kind)
        try:
            await cluster.live()
        except BaseExceptionGroup as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise AssertionError(
                f"{kind.value}: seed {seed} at {cluster.now:g}: {type(error).__name__}: {error}\n"
                f"{cluster.picture()}"
            ) from error

    run(life())
