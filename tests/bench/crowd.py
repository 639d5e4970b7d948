# SPDX-License-Identifier: Apache-2.0
"""A cluster of many nodes and tasks that only a store knows, and a page that shows it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from orchestrator.daemon.background import background
from orchestrator.identity.bootstrap import init_cluster
from orchestrator.manager.operations.administration.web_sessions import WebSessions
from orchestrator.manager.operations.context import ManagerContext
from orchestrator.manager.security.vault import Vault
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.keys import object_key
from orchestrator.manager.store.kv import Delete, Op, Put
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.manager.telemetry.event_log import EventLog
from orchestrator.manager.web.application import web_application
from orchestrator.manager.web.dashboard import Dashboard
from orchestrator.model.convert import encode
from orchestrator.model.nodes import Node, NodeDescription, NodeState
from orchestrator.model.objects import Network, Object
from orchestrator.model.services import Service
from orchestrator.model.specs import ContainerSpec, Resources, ServiceSpec, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.web.https import TlsFiles, listening

NODES, SERVICES, TASKS = 100, 40, 5000
MOST_OPS = 100
"""Of a transaction."""
_MEMORY = 64 << 30


@dataclass(slots=True)
class Crowd:
    """The cluster; `step` lets some of its tasks be replaced, as an update does."""

    kv: MemoryKv
    api: ManagerContext
    address: str
    sessions: WebSessions
    tasks: list[Task]
    _begun: list[int] = field(default_factory=list)
    _turn: int = 0
    _made: int = TASKS

    async def step(self, number: int) -> None:
        """Replace so many tasks: those begun in the step before run now, and for each of the next a
        new one is begun elsewhere, and it is gone."""
        ops: list[Op] = []
        for place in self._begun:
            begun = self.tasks[place]
            status = replace(begun.status, state=TaskState.RUNNING, at=time.time())
            self.tasks[place] = replace(begun, status=status)
            ops.append(_put(self.tasks[place]))
        self._begun = [(self._turn + index) % len(self.tasks) for index in range(number)]
        self._turn += number
        for place in self._begun:
            old = self.tasks[place]
            self.tasks[place] = _task(old.slot, self._made, TaskState.STARTING, old.service_id)
            self._made += 1
            ops += [Delete(object_key(old)), _put(self.tasks[place])]
        for first in range(0, len(ops), MOST_OPS):
            await self.kv.txn([], ops[first : first + MOST_OPS])


@asynccontextmanager
async def crowd(folder: Path) -> AsyncIterator[Crowd]:
    """Have it be, and be served, while the body runs."""
    identity, _, _ = init_cluster(folder, "127.0.0.1", 1, "10.128.0.0/14")
    kv = MemoryKv(time.monotonic)
    cache = Cache(kv)
    nobody = cast(Any, None)
    api = ManagerContext(
        kv=kv,
        cache=cache,
        dispatcher=nobody,
        tunnels=nobody,
        events=EventLog(cache, time.time),
        vault=Vault(b"k" * 32),
        identity=identity,
        ca_digest="",
        leader=lambda: "",
        now=time.time,
        new_id=lambda: "",
    )
    tasks = [_task(number, number, TaskState.RUNNING) for number in range(TASKS)]
    everything: list[Object] = [Network(id="net", name="default", driver="overlay")]
    everything += [_node(number) for number in range(NODES)]
    everything += [_service(number) for number in range(SERVICES)]
    everything += tasks
    for first in range(0, len(everything), MOST_OPS):
        await kv.txn([], [_put(each) for each in everything[first : first + MOST_OPS]])
    sessions = WebSessions(api)
    dashboard = Dashboard(api, sessions)
    app = web_application(dashboard.routes)
    files = TlsFiles.of(folder, "manager")
    async with (
        background(cache.follow()),
        api.events.following(),
        dashboard.updates.following(),
        listening(app, "127.0.0.1", 0, files) as port,
    ):
        await cache.wait_for(await kv.txn([], [_put(everything[0])]))
        yield Crowd(kv, api, f"https://127.0.0.1:{port}/", sessions, tasks)


def _put(item: Object) -> Put:
    return Put(object_key(item), encode(item))


def _node(number: int) -> Node:
    return Node(
        id=f"n{number}",
        state=NodeState.READY,
        description=NodeDescription(
            hostname=f"host{number + 1}",
            address=f"10.1.0.{number + 1}",
            resources=Resources(shares=64 * 1024, memory=_MEMORY),
        ),
    )


def _spec(service: int) -> TaskSpec:
    return TaskSpec(
        container=ContainerSpec(image=f"registry.example/shop/part{service}:1.{service}")
    )


def _service(number: int) -> Service:
    spec = ServiceSpec(name=f"part{number}", replicas=TASKS // SERVICES, task=_spec(number))
    return Service(id=f"s{number}", spec=spec)


def _task(slot: int, number: int, state: TaskState, service_id: str = "") -> Task:
    service_id = service_id or f"s{slot % SERVICES}"
    name = service_id.replace("s", "part")
    address = f"10.128.{number // 250 % 250}.{number % 250 + 2}"
    return Task(
        id=f"t{number}",
        service_id=service_id,
        service_name=name,
        slot=slot,
        # A new one goes elsewhere, each time by another way.
        node_id=f"n{(number * 7 + number // TASKS * 13) % NODES}",
        spec=_spec(int(service_id.removeprefix("s"))),
        status=TaskStatus(state, at=time.time(), addresses={"default": address}),
    )
