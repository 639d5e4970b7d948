# SPDX-License-Identifier: Apache-2.0
"""A node with a full disk: containers continue, new tasks wait, and writes are deferred."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from agentfakes import NOW, Host, Reports, assigned, until
from fulldisk import Disk, small_disk
from volumekit import private

from orchestrator.agent import statedb as statedb_module
from orchestrator.agent.runtime.interface import Exit
from orchestrator.agent.statedb import StateDb
from orchestrator.agent.tasks.worker import Worker
from orchestrator.cni.attachments.ipam import Ipam, Key
from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.netconf import parse
from orchestrator.daemon.background import background
from orchestrator.model.states import TaskState
from orchestrator.pb import dispatch_pb2

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statedb_module, "_RETRY_FIRST", 0.001)
    monkeypatch.setattr(statedb_module, "_RETRY_MOST", 0.01)


class Agent:
    def __init__(self, host: Host, worker: Worker, db: StateDb, disk: Disk) -> None:
        self.host, self.worker, self.db, self.disk = host, worker, db, disk
        self.reports = Reports()

    def full(self, *tasks: dispatch_pb2.AssignedTask) -> None:
        self.worker.apply(tasks, [], [], full=True)

    def diff(self, *tasks: dispatch_pb2.AssignedTask, removed: tuple[str, ...] = ()) -> None:
        self.worker.apply(tasks, removed, None, full=False)

    def fill(self) -> None:
        """Fill the disk, also what room the state file has left in its own files."""
        self.disk.fill()
        while not self.db.trouble:
            self.db.put_managers(["m" * 1000])


@asynccontextmanager
async def agent(host: Host, disk: Disk) -> AsyncIterator[Agent]:
    """An agent with its state on the disk; its process dies with the block."""
    reports = Reports()
    with StateDb(disk.folder / "state.db") as db:
        worker = Worker(host.backends(), db, reports.reporter)
        async with background(db.run()), worker:
            made = Agent(host, worker, db, disk)
            made.reports = reports
            yield made


@private
async def test_running_tasks_are_driven_and_new_ones_wait(tmp_path: Path) -> None:
    host, disk = Host(tmp_path), small_disk(tmp_path / "disk")
    async with agent(host, disk) as a:
        a.full(assigned("runs"), assigned("ends"), assigned("stops"))
        for task_id in ("runs", "ends", "stops"):
            await until(lambda id=task_id: a.reports.state(id) is TaskState.RUNNING)
        a.fill()

        # A new task waits, and reports why.
        a.diff(assigned("new"), assigned("late"))
        await until(lambda: "full" in a.reports.last("new").message)
        assert a.reports.state("new") is TaskState.ASSIGNED
        # Ends are observed and reported, and disk space is freed.
        await host.runtime.end("ends", Exit(3, False, NOW))
        await until(lambda: a.reports.state("ends") is TaskState.FAILED)
        assert "ends" in host.runtime.did("remove")
        # Orders to stop are obeyed; so are those for what has not begun.
        a.diff(assigned("stops", TaskState.SHUTDOWN), assigned("late", TaskState.SHUTDOWN))
        await until(lambda: a.reports.state("stops") is TaskState.SHUTDOWN)
        await until(lambda: a.reports.state("late") is TaskState.SHUTDOWN)
        a.diff(removed=("stops",))
        await until(lambda: "stops" not in a.worker.runners)
        assert a.reports.state("runs") is TaskState.RUNNING
        assert host.runtime.did("create") == ["runs", "ends", "stops"]

        disk.free()
        await until(lambda: a.reports.state("new") is TaskState.RUNNING)
        assert a.db.trouble == ""
        records = a.db.records()
        assert records.keys() == {"runs", "ends", "late", "new"}
        assert records["ends"].status.state is TaskState.FAILED
        assert records["ends"].released
    async with agent(host, disk) as a:
        await until(lambda: a.reports.state("runs") is TaskState.RUNNING)
        assert host.runtime.did("create") == ["runs", "ends", "stops", "new"]


@private
async def test_a_task_is_not_started_before_that_is_recorded(tmp_path: Path) -> None:
    host, disk = Host(tmp_path), small_disk(tmp_path / "disk")
    async with agent(host, disk) as a:
        a.full(assigned(desired=TaskState.READY))
        await until(lambda: a.reports.state() is TaskState.READY)
        a.fill()
        a.diff(assigned())
        await until(lambda: "full" in a.reports.last().message)
        assert host.runtime.did("create") == []
        # It can still be taken back.
        a.diff(assigned(desired=TaskState.SHUTDOWN))
        await until(lambda: a.reports.state() is TaskState.SHUTDOWN)


@private
async def test_a_task_that_waits_is_forgotten_when_it_is_no_longer_assigned(
    tmp_path: Path,
) -> None:
    host, disk = Host(tmp_path), small_disk(tmp_path / "disk")
    async with agent(host, disk) as a:
        a.full()
        a.fill()
        a.diff(assigned("a"), assigned("b"))
        a.diff(removed=("a",))
        a.full(assigned("c"))
        disk.free()
        await until(lambda: a.reports.state("c") is TaskState.RUNNING)
        assert host.runtime.did("create") == ["c"]
        assert a.db.records().keys() == {"c"}


@private
async def test_addresses_are_known_on_a_full_disk(tmp_path: Path) -> None:
    """Also to a network helper that starts there, which cannot make SQLite's shared memory."""
    conf = parse({"cniVersion": "1.1.0", "name": "net", "subnet": "10.128.0.0/24"})
    kept, moved = Key("net", "kept", "eth0"), Key("net", "moved", "eth0")
    disk = small_disk(tmp_path / "disk")
    with Ipam(disk.folder) as ipam:
        address = ipam.reserve(kept, conf).address
    disk.fill()
    with Ipam(disk.folder) as ipam:
        assert [lease.address for lease in ipam.leases()] == [address]
        with pytest.raises(CniError, match="disk is full") as refused:
            ipam.reserve(moved, conf)
        assert refused.value.code == Code.IO_FAILURE
        disk.free()
        ipam.release(kept)
        assert ipam.reserve(moved, conf).address != address
    with Ipam(disk.folder) as one, Ipam(disk.folder) as another:
        assert [lease.key for lease in one.leases()] == [moved]
        assert [lease.key for lease in another.leases()] == [moved]
