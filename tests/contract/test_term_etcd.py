# SPDX-License-Identifier: Apache-2.0
"""The leader's loop on a real etcd with the limits that an operator's own etcd has."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from orchestrator.manager.leader.agent_reports import ReportBuffer
from orchestrator.manager.leader.planning_loop import PlanningLoop
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.etcd import EtcdKv
from orchestrator.manager.store.keys import LEADER
from orchestrator.manager.store.kv import Delete, Guard, Kv, Put, StoreFull
from orchestrator.model.nodes import Node, NodeDescription, NodeState
from orchestrator.model.objects import Cluster, Object
from orchestrator.model.services import Service
from orchestrator.model.specs import Resources, ServiceSpec
from orchestrator.model.states import TaskState
from tests.freeports import free_ports


@contextmanager
def etcd(folder: Path, *flags: str) -> Iterator[str]:
    """An etcd with these flags; its URL."""
    port = free_ports(2)
    client, peer = (f"http://127.0.0.1:{number}" for number in (port, port + 1))
    command = [
        *("setpriv", "--pdeathsig", "KILL", "etcd", f"--data-dir={folder}", "--log-level=error"),
        *(f"--listen-client-urls={client}", f"--advertise-client-urls={client}"),
        *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"),
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
        *flags,
    ]
    with subprocess.Popen(command) as process:
        try:
            yield client
        finally:
            process.kill()
    shutil.rmtree(folder, ignore_errors=True)


class Said:
    """What a leader tells of itself."""

    def __init__(self) -> None:
        self.conflicts = 0
        self.store = ""
        self.changed = asyncio.Event()

    def took(self, seconds: float) -> None: ...

    def conflicted(self) -> None:
        self.conflicts += 1

    def store_failed(self, error: str) -> None:
        if error != self.store:
            self.store = error
            self.changed.set()

    def set_aside(self, services: Mapping[str, str]) -> None: ...

    def suspected(self, silent: int) -> None: ...

    def ended(self) -> None: ...


async def elected(kv: Kv) -> int:
    return await kv.txn([Guard(LEADER, create_revision=0)], [Put(LEADER, b"m")])


@asynccontextmanager
async def leading(kv: Kv, revision: int, said: Said) -> AsyncIterator[Cache]:
    """The term that began at that revision, for as long as the block runs."""
    cache, numbers = Cache(kv), count(1)
    term = PlanningLoop(
        kv,
        cache,
        ReportBuffer(lambda: 0.0),
        fence=Guard(LEADER, create_revision=revision),
        now=lambda: 1e9,
        clock=lambda: 0.0,
        new_id=lambda: f"t{next(numbers):05}",
        times=said,
    )
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(cache.follow()), group.create_task(term.run(revision))]
        yield cache
        for task in tasks:
            task.cancel()


async def until(cache: Cache, holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(120), cache.subscribe() as feed:
        while not holds():
            await feed.next()


def cluster_of(nodes: int) -> list[Object]:
    size = Resources(1 << 20, 1 << 50)
    found: list[Object] = [Cluster(id="c", node_timeout=1000.0)]
    for number in range(nodes):
        described = NodeDescription(hostname=f"n{number:03}", resources=size)
        found.append(Node(id=f"n{number:03}", state=NodeState.READY, description=described))
    return found


async def test_a_thousand_tasks_on_300_nodes_fit_into_an_etcd_with_default_limits(
    tmp_path: Path,
) -> None:
    said = Said()
    with etcd(tmp_path / "etcd", "--max-txn-ops=128") as url:
        async with EtcdKv((url,), None) as kv:
            await commit(kv, [Change(None, item) for item in cluster_of(300)])
            for id in ("one", "two", "three", "four"):
                spec = ServiceSpec(name=id, replicas=250)
                await commit(kv, [Change(None, Service(id=id, spec=spec))])
            async with leading(kv, await elected(kv), said) as cache:
                await until(cache, lambda: len(cache.view.tasks) == 1000)
                tasks = cache.view.tasks
                assert {task.status.state for task in tasks.values()} == {TaskState.ASSIGNED}
                on_node = Counter(task.node_id for task in tasks.values())
                assert (len(on_node), set(on_node.values())) == (300, {3, 4})
                slots = {(task.service_id, task.slot) for task in tasks.values()}
                assert len(slots) == 1000
    assert (said.conflicts, said.store) == (0, "")


async def test_a_full_etcd_makes_the_cluster_read_only_until_there_is_room(tmp_path: Path) -> None:
    said = Said()
    with etcd(tmp_path / "etcd", f"--quota-backend-bytes={1 << 20}") as url:
        async with EtcdKv((url,), None) as kv:
            spec = ServiceSpec(name="web", replicas=2)
            found = [*cluster_of(2), Service(id="web", spec=spec)]
            await commit(kv, [Change(None, item) for item in found])
            revision = await elected(kv)
            await _fill(kv)
            async with leading(kv, revision, said) as cache:
                await said.changed.wait()
                assert "database is full" in said.store
                assert set(cache.view.nodes) == {"n000", "n001"}, "it can still be read"
                said.changed.clear()
                await _make_room(kv, url)
                await said.changed.wait()
                assert said.store == ""
                await until(cache, lambda: len(cache.view.tasks) == 2)


async def _fill(kv: EtcdKv) -> None:
    with suppress(StoreFull):
        for number in count():
            await kv.txn([], [Put(f"/filler/{number}", b"x" * 65536)])


async def _make_room(kv: EtcdKv, url: str) -> None:
    """What the message of the error says."""
    for entry in (await kv.list("/filler/")).entries:
        await kv.txn([], [Delete(entry.key)])
    await kv.compact((await kv.list("/filler/")).revision)
    await asyncio.to_thread(_maintain, url, "defragment", {})
    found = await asyncio.to_thread(_maintain, url, "alarm", {"action": "GET"})
    for alarm in found["alarms"]:
        await asyncio.to_thread(_maintain, url, "alarm", {"action": "DEACTIVATE", **alarm})


def _maintain(url: str, call: str, body: dict[str, str]) -> Any:
    """A call of etcd's maintenance API, as etcdctl makes it."""
    request = Request(f"{url}/v3/maintenance/{call}", json.dumps(body).encode())
    with urlopen(request) as answer:
        return json.load(answer)
