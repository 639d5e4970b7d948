# SPDX-License-Identifier: Apache-2.0
"""A backup of many tasks and its restore: whole commands, with a real manager and its etcd."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.manager.backup.restore import put_all
from orchestrator.manager.store.etcd import EtcdKv
from orchestrator.manager.store.etcd_member import EtcdMember
from orchestrator.manager.store.keys import name_key, object_key
from orchestrator.model.convert import encode
from orchestrator.model.nodes import Node, NodeDescription, NodeState
from orchestrator.model.services import Service
from orchestrator.model.specs import ContainerSpec, Resources, ServiceSpec, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from tests.bench.cluster import ORC, BenchError
from tests.bench.tables import Table, at_most, mebibytes, seconds

TASKS, SERVICES, NODES = 10_000, 100, 200
BACKUP_TARGET, RESTORE_TARGET = 10.0, 60.0
_SERVES_WITHIN = 300.0


@dataclass(frozen=True, slots=True)
class Backups:
    """Seconds and bytes."""

    tasks: int
    backup: float
    """`orc cluster backup`."""
    size: int
    restore: float
    """`orc cluster restore`."""
    serving: float
    """From the start of `restore` until the restored cluster lists its services."""


def measure(folder: Path, tasks: int = TASKS) -> Backups:
    """Fill a manager's store, back it up, and restore it into another folder."""
    words, file = folder / "passphrase", folder / "cluster.orcbackup"
    words.write_text("correct horse battery")
    os.environ["XDG_CONFIG_HOME"] = str(folder / "config")
    first, second = folder / "first", folder / "second"
    port = str(_free_ports())
    place = ("--advertise", "127.0.0.1", "--listen-port", port)
    _orc("cluster", "init", *place, "--data-dir", str(first))
    asyncio.run(_fill(first, tasks))
    with _manager(first):
        _await_services()
        began = time.perf_counter()
        _orc("cluster", "backup", "--passphrase-file", str(words), str(file))
        backup = time.perf_counter() - began
    shutil.rmtree(first)
    began = time.perf_counter()
    _orc(
        *("cluster", "restore", *place, "--data-dir", str(second)),
        *("--passphrase-file", str(words), str(file)),
    )
    restore = time.perf_counter() - began
    with _manager(second):
        _await_services()
        serving = time.perf_counter() - began
        info = json.loads(_orc("cluster", "info", "--format", "json"))
        if info["tasks_running"] != tasks:
            raise BenchError(f"{info['tasks_running']} of {tasks} tasks were restored")
    return Backups(tasks, backup, file.stat().st_size, restore, serving)


def _free_ports() -> int:
    """The first of three ports in a row that are free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return min(int(probe.getsockname()[1]), 65_000)


def _orc(*arguments: str) -> str:
    done = subprocess.run([ORC, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"orc {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def _manager(data: Path) -> Iterator[None]:
    log = data.with_suffix(".log").open("wb")
    with log, subprocess.Popen([ORC, "manager", "--data-dir", data], stderr=log) as daemon:
        try:
            yield
        finally:
            daemon.terminate()


def _await_services() -> None:
    until = time.monotonic() + _SERVES_WITHIN
    while True:
        try:
            found = _orc("service", "ls", "-q").split()
        except BenchError:
            found = []
        if len(found) == SERVICES:
            return
        if time.monotonic() > until:
            raise BenchError(f"{len(found)} of {SERVICES} services are listed")
        time.sleep(0.1)


async def _fill(data: Path, tasks: int) -> None:
    async with (
        EtcdMember((data / "etcd").absolute()) as member,
        EtcdKv(member.endpoints, member.tls, max_txn_ops=member.max_txn_ops) as kv,
    ):
        await put_all(kv, _content(tasks))


def _content(tasks: int) -> Iterator[tuple[str, bytes]]:
    """A cluster at rest: nodes that have not reconnected, services, and running tasks."""
    now = time.time()
    for number in range(NODES):
        description = NodeDescription(f"host{number}", resources=Resources(1 << 16, 1 << 38))
        node = Node(
            id=f"n{number:04}", description=description, state=NodeState.UNKNOWN, awaited=True
        )
        yield object_key(node), encode(node)
    each = tasks // SERVICES
    for number in range(SERVICES):
        service = _service(number, each)
        yield object_key(service), encode(service)
        yield name_key(Service, service.spec.name), service.id.encode()
        for slot in range(1, each + 1):
            index = number * each + slot
            task = Task(
                id=f"t{index:06}",
                created_at=now,
                service_id=service.id,
                service_name=service.spec.name,
                slot=slot,
                spec=service.spec.task,
                node_id=f"n{index % NODES:04}",
                status=TaskStatus(
                    TaskState.RUNNING,
                    at=now,
                    started_at=now,
                    pid=index,
                    addresses={"default": f"10.128.{index >> 8 & 255}.{index & 255}"},
                ),
                running_since=now,
            )
            yield object_key(task), encode(task)


def _service(number: int, replicas: int) -> Service:
    environment = {f"VARIABLE_{index}": f"value {index} of {number}" for index in range(10)}
    container = ContainerSpec(image="registry.example/shop/web:1.2.3", env=environment)
    task = TaskSpec(container=container, reservation=Resources(128, 64 << 20))
    spec = ServiceSpec(name=f"service{number}", replicas=replicas, task=task)
    return Service(id=f"s{number:04}", spec=spec)


def report(result: Backups) -> Table:
    """Pure."""
    return Table(
        f"Backup of {result.tasks:,} tasks on {NODES} nodes",
        ("what", "measured", "target"),
        (
            (
                "`orc cluster backup`",
                seconds(result.backup),
                at_most(result.backup, BACKUP_TARGET, "10 s"),
            ),
            ("size of the file", mebibytes(result.size), ""),
            ("`orc cluster restore`", seconds(result.restore), ""),
            (
                "from its start to a serving cluster",
                seconds(result.serving),
                at_most(result.serving, RESTORE_TARGET, "60 s"),
            ),
        ),
    )
