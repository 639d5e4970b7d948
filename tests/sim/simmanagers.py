# SPDX-License-Identifier: Apache-2.0
"""A cluster of several managers, in virtual time, each with a cache, lease, sessions and term.

Managers crash, resign, and are cut off from the store; agents lose their sessions and open others.
Whatever happens to a minority of them, no node is down and no running container is replaced.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random

from simloop import run
from simnode import Agent, advance, obey
from simstore import FaultyKv
from simterm import MIB, Kind, TermCluster

from orchestrator.daemon.background import background
from orchestrator.manager.cluster.registration import Presence
from orchestrator.manager.dispatch.session_records import SessionRecords
from orchestrator.manager.leader.agent_reports import Hello, RejectedClaims, ReportBuffer
from orchestrator.manager.leader.election import Election, LeadershipLost
from orchestrator.manager.leader.planning_loop import PlanningLoop, inline
from orchestrator.manager.leader.report_commit import ReportCommitter
from orchestrator.manager.planning.view import assigned_tasks
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.keys import LEADER
from orchestrator.manager.store.kv import Batch, Entry, Guard, Op, Snapshot, StoreUnavailable
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.model.nodes import NodeDescription, NodeState
from orchestrator.model.specs import Resources

MANAGERS = 3
LEASE = 3.0


class CuttableKv(FaultyKv):
    """A store that one manager may be cut off from."""

    def __init__(self, kv: MemoryKv, random: Random) -> None:
        super().__init__(kv, random)
        self.is_cut = False

    def _check(self) -> None:
        if self.is_cut:
            raise StoreUnavailable("no etcd endpoint answered in time")

    async def get(self, key: str) -> Entry | None:
        self._check()
        return await super().get(key)

    async def list(self, prefix: str) -> Snapshot:
        self._check()
        return await super().list(prefix)

    async def txn(self, guards: Sequence[Guard], ops: Sequence[Op]) -> int:
        self._check()
        return await super().txn(guards, ops)

    @asynccontextmanager
    async def watch(self, prefix: str, start_revision: int) -> AsyncIterator[AsyncIterator[Batch]]:
        self._check()
        async with super().watch(prefix, start_revision) as batches:
            yield self._until_cut(batches)

    async def _until_cut(self, batches: AsyncIterator[Batch]) -> AsyncIterator[Batch]:
        async for batch in batches:
            self._check()  # the cache lists again
            yield batch

    async def grant(self, ttl: float) -> int:
        self._check()
        return await super().grant(ttl)

    async def keepalive(self, lease: int) -> float:
        self._check()
        return await super().keepalive(lease)

    async def revoke(self, lease: int) -> None:
        self._check()
        await super().revoke(lease)


class SimManager:
    """One run of a manager's process, wired as `manager.daemon` does."""

    def __init__(self, world: ManagersCluster, id: str) -> None:
        self.id = id
        self.world = world
        self.kv = CuttableKv(world.memory, world.random)
        self.cache = Cache(self.kv)
        self.buffer = ReportBuffer(world.loop_time)
        self.records = SessionRecords(
            self.kv,
            self.cache,
            Presence(self.kv, self.cache, id, now=world.wall, clock=world.loop_time),
            lambda: self.buffer.heard,
            clock=world.loop_time,
        )
        self.records.on_moved = self._moved
        self.records.on_lease_lost = self.close_sessions
        self.records.on_unwritten = lambda node_id, session_id: self._end(node_id)
        self.sessions: dict[str, str] = {}
        """Node id → session id."""

    async def run(self) -> None:
        """Serve until cancelled."""
        async with (
            background(self.cache.follow()),
            background(self.records.run()),
            background(self._follow()),
        ):
            await self._lead()

    async def _follow(self) -> None:
        async with self.cache.subscribe() as feed:
            while True:
                changes = await feed.next()
                self.records.changed(changes)
                for change in changes:
                    node = self.cache.view.nodes.get(change.subject.id)
                    if node is not None and node.state is NodeState.DOWN:
                        self._end(node.id)

    async def _lead(self) -> None:
        world = self.world
        reports = ReportCommitter(
            self.kv,
            self.cache,
            self.buffer,
            is_local=self.records.is_local,
            now=world.wall,
            offload=inline,
            rejected=RejectedClaims(lambda kind: None),
        )
        election = Election(self.kv, LEADER, self.id, ttl=LEASE, clock=world.loop_time)
        while True:
            try:
                async with background(reports.run()) as stop, election.term() as won:
                    await stop()
                    self.buffer.begin_term()
                    term = PlanningLoop(
                        self.kv,
                        self.cache,
                        self.buffer,
                        fence=won.guard,
                        clock=world.loop_time,
                        now=world.wall,
                        new_id=world.new_id,
                        offload=inline,
                        manager_id=self.id,
                    )
                    await term.run(won.revision)
            except LeadershipLost:
                pass

    def open(self, agent: Agent) -> None:
        """A session of an agent begins."""
        session_id = self.world.new_id()
        self.sessions[agent.node_id] = session_id
        self.records.begin(agent.node_id, session_id)
        about = NodeDescription(agent.node_id, resources=Resources(1024, 1024 * MIB))
        self.buffer.hello(agent.node_id, Hello(about, "boot"))

    def close_sessions(self) -> None:
        """All sessions end."""
        for node_id in list(self.sessions):
            self._end(node_id)

    def _moved(self, node_id: str, session_id: str) -> None:
        self.buffer.drop(node_id)
        if self.sessions.get(node_id) == session_id:
            self._end(node_id)

    def _end(self, node_id: str) -> None:
        if (session_id := self.sessions.pop(node_id, None)) is not None:
            self.records.end(node_id, session_id)
            agent = self.world.agents[node_id]
            if self.world.manager_of.get(node_id) is self:
                agent.leave()


class ManagersCluster(TermCluster):
    """The store, its managers, the agents and the users."""

    node_timeout = 5.0
    """As by default: a manager that is cut off from the store keeps its sessions nearly as long."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, Kind.TERMS)
        self.managers: list[SimManager] = []
        self.manager_of: dict[str, SimManager] = {}
        """Node id → the manager that its agent has the session with, or had last."""

    async def lead(self) -> None:
        """Run all managers, for ever; each starts again after a crash."""
        async with asyncio.TaskGroup() as group:
            for number in range(MANAGERS):
                group.create_task(self._keep(f"m{number}"))

    async def _keep(self, id: str) -> None:
        while True:
            manager = SimManager(self, id)
            self.managers.append(manager)
            life = asyncio.ensure_future(manager.run())
            try:
                await asyncio.wait((life,), timeout=self._time_to_fault())
                while not self._may_fail(manager):
                    await asyncio.wait((life,), timeout=1.0)
                await self._fail(manager, life)
            finally:
                life.cancel()
                await asyncio.wait((life,))
                manager.close_sessions()
                self.managers.remove(manager)
            await asyncio.sleep(self.random.uniform(0.0, 4.0))

    def _time_to_fault(self) -> float:
        return self.random.uniform(0.5, 15.0)

    def _may_fail(self, manager: SimManager) -> bool:
        """Whether two managers are well without this one, and have been for a while."""
        well = [
            other
            for other in self.managers
            if other is not manager and not other.kv.is_cut and other.records.has_lease
        ]
        return self.trouble and len(well) == MANAGERS - 1

    async def _fail(self, manager: SimManager, life: asyncio.Future[None]) -> None:
        """Cut the manager off for a while, or have it crash, or end."""
        fault = self.random.choice(("cut", "crash", "end"))
        manager.kv.is_cut = fault in ("cut", "crash")
        if fault == "cut":
            await asyncio.wait((life,), timeout=self.random.uniform(0.5, 12.0))
            manager.kv.is_cut = False
            await asyncio.wait((life,), timeout=self.random.uniform(0.0, 8.0))

    # Agents

    def tick_agents(self) -> None:
        """Each agent acts, through the manager that it has a session with."""
        for agent in self.agents.values():
            self._tick(agent)

    def _tick(self, agent: Agent) -> None:
        manager = self.manager_of.get(agent.node_id)
        if agent.greeted and (manager is None or agent.node_id not in manager.sessions):
            agent.leave()
        if not agent.greeted:
            able = [
                each
                for each in self.managers
                if each.records.has_lease and agent.node_id in each.cache.view.nodes
            ]
            if not able or (self.trouble and self.random.random() < 0.3):
                obey(self, agent)
                advance(self, agent)
                return
            manager = self.manager_of[agent.node_id] = self.random.choice(able)
            manager.open(agent)
            agent.greeted = True
        assert manager is not None
        manager.buffer.hear(agent.node_id)
        written = manager.records.written(agent.node_id, manager.sessions.get(agent.node_id, ""))
        if written and manager.cache.revision >= written:
            agent.orders = assigned_tasks(manager.cache.view, agent.node_id)
        obey(self, agent)
        advance(self, agent)
        if agent.unreported:
            self._report_to(manager, agent)

    def _report_to(self, manager: SimManager, agent: Agent) -> None:
        self.report_buffer = manager.buffer
        self._report(agent)

    # Its life

    async def suffer(self) -> None:
        """Managers fail while users change services."""
        for _ in range(240):
            if self.random.random() < 0.1:
                await self.change()
            await self.tick()

    def check(self) -> None:
        """What must hold at every moment."""
        super().check()
        if self.trouble:
            down = [
                node.id for node in self.truth.view.nodes.values() if node.state is NodeState.DOWN
            ]
            assert not down, f"{down} count as down, though they had managers to reach"
            for id, agent in self.agents.items():
                for task_id, container in agent.containers.items():
                    task = self.truth.view.tasks.get(task_id)
                    assert task is None or task.node_id == id, f"{container} runs elsewhere, too"


def live_of_managers(seed: int) -> None:
    """Raises AssertionError, whose text tells how to see it again."""

    async def life() -> None:
        cluster = ManagersCluster(seed)
        try:
            await cluster.live_with(cluster.suffer)
        except BaseExceptionGroup as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise AssertionError(
                f"managers: seed {seed} at {cluster.now:g}: {type(error).__name__}: {error}\n"
                f"{cluster.picture()}"
            ) from error

    run(life())
