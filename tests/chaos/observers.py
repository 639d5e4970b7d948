# SPDX-License-Identifier: Apache-2.0
"""What is seen from outside the managers: containers on the hosts, commits of etcd's members."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from orchestrator.pb import containers_pb2
from tests.chaos import history
from tests.chaos.api import Api
from tests.chaos.history import FOREVER, Change, Commit, Container
from tests.chaos.hosts import Testbed, send
from tests.chaos.recorder import Recorder

LOOK = 0.1
"""Seconds between two looks at the processes. A container that lives shorter may be missed; the end
of one that was seen is exact, by its pidfd."""

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class _Seen:
    container: Container
    descriptor: int


class ContainerObserver:
    """Records each container of the cluster when it has ended, and those left at the end."""

    def __init__(self, testbed: Testbed, recorder: Recorder) -> None:
        self._testbed = testbed
        self._recorder = recorder
        self._monitors: dict[int, tuple[str, str, str] | None] = {}
        """Pid of each known process → host, task and name of a monitor; None: another program."""
        self._running: dict[int, _Seen] = {}
        self._root = str(testbed.data("x").parent.parent)

    def running(self) -> list[Container]:
        """The containers that run now."""
        return [seen.container for seen in self._running.values()]

    async def run(self) -> None:
        """Observe until cancelled."""
        try:
            while True:
                self._look()
                await asyncio.sleep(LOOK)
        finally:
            for pid in list(self._running):
                self._end(pid, FOREVER)

    def _look(self) -> None:
        pids = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        for pid in self._monitors.keys() - pids:
            del self._monitors[pid]
        for pid in pids - self._monitors.keys():
            self._monitors[pid] = self._monitor(pid)
        for pid, monitor in self._monitors.items():
            if monitor is None:
                continue
            for child in _children(pid):
                if child not in self._running and _is_container(child):
                    self._begin(child, *monitor)

    def _monitor(self, pid: int) -> tuple[str, str, str] | None:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            if not words[0].endswith("/conmon"):
                return None
            space = os.stat(f"/proc/{pid}/ns/pid").st_ino
        except OSError:
            return None
        flags = dict(
            word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word
        )
        for host in self._testbed.node_hosts:
            init = self._testbed.pid(host)
            with suppress(OSError):
                if init is not None and os.stat(f"/proc/{init}/ns/pid").st_ino == space:
                    return host, flags.get("cid", ""), flags.get("name", "")
        return None

    def _begin(self, pid: int, host: str, task: str, name: str) -> None:
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return
        began = self._recorder.at(_started(pid))
        container = Container(host, task, name, pid, began, FOREVER)
        self._running[pid] = _Seen(container, descriptor)
        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, lambda: self._end(pid, self._recorder.now()))

    def _end(self, pid: int, at: float) -> None:
        seen = self._running.pop(pid)
        asyncio.get_running_loop().remove_reader(seen.descriptor)
        os.close(seen.descriptor)
        self._recorder.add(replace(seen.container, ended=at))


def _children(pid: int) -> list[int]:
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def _is_container(pid: int) -> bool:
    """Whether a child of a monitor is a container's first process, not the OCI runtime."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        space = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    numbers = next(line for line in space.splitlines() if line.startswith("NSpid:")).split()
    return not name.startswith(("crun", "conmon")) and numbers[-1] == "1"


def _started(pid: int) -> float:
    """When a process began, on the monotonic clock."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return time.monotonic()
    ticks = int(text.rpartition(")")[2].split()[19])
    # Since boot, while the monotonic clock does not count suspended time.
    lag = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    return ticks / _TICKS - lag


async def record_events(api: Api, recorder: Recorder) -> None:
    """Record the cluster's events, as one manager after the other streams them."""
    turn = 0
    while True:
        manager = api.managers[turn % len(api.managers)]
        turn += 1
        with suppress(grpc.aio.AioRpcError):
            async for event in manager.containers.Events(containers_pb2.EventsRequest()):
                words = (event.type, event.action, event.id, event.name, event.node)
                recorder.add(history.Event(recorder.now(), *words))
        await asyncio.sleep(0.5)


class StoreObserver:
    """Records the commits as each member of etcd delivers them; remembers the keys there are."""

    def __init__(self, testbed: Testbed, recorder: Recorder) -> None:
        self._testbed = testbed
        self._recorder = recorder
        self.revision = 0
        """The newest that was delivered."""
        self.keys: dict[tuple[str, str], Change] = {}

    async def ready(self) -> None:
        """Wait until the commits so far have been delivered."""
        while True:
            before = self.revision
            await asyncio.sleep(1.0)
            if self.revision == before > 0:
                return

    async def run(self) -> None:
        """Observe until cancelled."""
        async with asyncio.TaskGroup() as group:
            for host in self._testbed.manager_hosts:
                group.create_task(self._member(host))

    async def _member(self, host: str) -> None:
        seen = 0
        while True:
            pid = self._testbed.pid(host)
            if pid is None:
                await asyncio.sleep(0.5)
                continue
            seen = await self._follow(host, pid, seen)
            await asyncio.sleep(0.5)

    async def _follow(self, host: str, init: int, seen: int) -> int:
        """Record until the host goes off or its watch ends; the last revision recorded."""
        folder = self._testbed.data(host) / "etcd"
        process = await asyncio.create_subprocess_exec(
            *("nsenter", "-t", str(init), "-n", sys.executable, "-m", "tests.chaos.storewatch"),
            *(str(folder), str(seen + 1)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            limit=64 << 20,
        )
        assert process.stdout is not None
        ends = asyncio.ensure_future(self._off(host, init))
        try:
            while True:
                line = asyncio.ensure_future(process.stdout.readline())
                await asyncio.wait((line, ends), return_when=asyncio.FIRST_COMPLETED)
                if not line.done() or not line.result():
                    line.cancel()
                    return seen
                document = json.loads(line.result())
                seen = int(document["revision"])
                changes = tuple(Change(**change) for change in document["changes"])
                self._recorder.add(Commit(self._recorder.now(), host, seen, changes))
                if seen > self.revision:
                    self.revision = seen
                    self._apply(changes)
        finally:
            ends.cancel()
            send(process.pid, signal.SIGKILL)
            await process.wait()

    async def _off(self, host: str, init: int) -> None:
        while True:
            if self._testbed.pid(host) != init:
                return
            await asyncio.sleep(0.5)

    def _apply(self, changes: tuple[Change, ...]) -> None:
        for change in changes:
            if change.deleted:
                self.keys.pop((change.kind, change.id), None)
            else:
                self.keys[change.kind, change.id] = change
