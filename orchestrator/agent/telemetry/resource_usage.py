# SPDX-License-Identifier: Apache-2.0
"""Resource usage: `top`, `stats`, and the last hour of the node and its containers.

The history has a sample every 15 seconds. It is in memory only, so it is empty after a restart of
the agent. It takes about 6 KiB per container, and a sample a few reads of small files.
"""

from __future__ import annotations

import asyncio
import os
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from orchestrator.agent.runtime.engine.bundle import ContainerHandle
from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.runtime.resources.stats import StatsReader, node_memory
from orchestrator.agent.tasks.runner import TaskRunner
from orchestrator.linux.kernelfiles import keyed, read_text
from orchestrator.model.states import TaskState
from orchestrator.pb import dispatch_pb2, interact_pb2, system_pb2

INTERVAL = 1.0
"""Seconds between two samples of `stats`."""
_DEFAULT_OPTIONS = ("-ef",)


class ResourceUsage:
    """Serves `top` and `stats` of this node's containers."""

    def __init__(
        self, runners: Mapping[str, TaskRunner], access: Callable[[str], ContainerHandle]
    ) -> None:
        self._runners = runners
        self._access = access
        self._memory = node_memory()

    async def top(
        self, call: Any, order: dispatch_pb2.OpenTunnel, readers: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        """Send the output of ps(1) for a container's processes. Raises RuntimeFailure."""
        access = self._access(order.top.container)
        access.running()
        options = tuple(order.top.ps_options) or _DEFAULT_OPTIONS
        try:
            process = await asyncio.create_subprocess_exec(
                # Of the whole node, since users are arbitrary; `pick` selects the container's.
                *("ps", *options, "-A"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except FileNotFoundError:
            raise RuntimeFailure("the node has no program `ps`; install procps on it") from None
        try:
            output, errors = await process.communicate()
        except asyncio.CancelledError:
            process.kill()
            await asyncio.shield(process.wait())
            raise
        if process.returncode:
            raise RuntimeFailure(_first_line(errors) or f"ps: exit status {process.returncode}")
        reply = pick(output.decode(errors="replace"), set(access.pids()))
        await call.write(dispatch_pb2.Frame(top=reply))
        return dispatch_pb2.TunnelResult()

    async def stats(
        self, call: Any, order: dispatch_pb2.OpenTunnel, readers: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        """Send the usage of some, or all running, containers once a second until the stream
        ends."""
        wanted = frozenset(order.stats.containers)
        loop = asyncio.get_running_loop()
        due = loop.time()
        files: dict[tuple[str, int], StatsReader] = {}
        while True:
            rows = interact_pb2.NodeStats(containers=self._figures(wanted, files))
            await call.write(dispatch_pb2.Frame(stats=rows))
            # A slow reader gets fewer samples, not older ones.
            due = max(due + INTERVAL, loop.time())
            await asyncio.sleep(due - loop.time())

    def _figures(
        self, wanted: frozenset[str], files: dict[tuple[str, int], StatsReader]
    ) -> Iterator[interact_pb2.ContainerStats]:
        """The usage of running containers. `files` are the open files of earlier samples, by id and
        process."""
        known = dict(files)
        files.clear()
        for task_id in wanted or list(self._runners):
            runner = self._runners.get(task_id)
            if runner is None or runner.status.state is not TaskState.RUNNING:
                continue
            pid = runner.status.pid
            found = known.get((task_id, pid))
            if found is None:
                found = StatsReader(self._access(task_id).cgroups, task_id)
            files[task_id, pid] = found
            at = time.monotonic()
            figures = found.read(pid)
            yield interact_pb2.ContainerStats(
                task_id=task_id,
                name=runner.task.name,
                at=at,
                cpu=figures.cpu,
                memory=figures.memory,
                memory_limit=figures.memory_limit or self._memory,
                pids=figures.pids,
                pids_limit=figures.pids_limit,
                net_received=figures.net_received,
                net_sent=figures.net_sent,
                block_read=figures.block_read,
                block_written=figures.block_written,
            )


def pick(output: str, pids: set[int]) -> interact_pb2.TopReply:
    """The rows of some processes in the output of ps(1), by its column PID.

    Raises RuntimeFailure if there is no such column.
    """
    heading, *lines = output.splitlines() or [""]
    titles = heading.split()
    if "PID" not in titles:
        raise RuntimeFailure("with these options ps prints no column PID; add it")
    column = titles.index("PID")
    rows = []
    for line in lines:
        # The last column is the command, which may contain spaces.
        fields = line.split(None, len(titles) - 1)
        if len(fields) > column and fields[column].isdigit() and int(fields[column]) in pids:
            rows.append(interact_pb2.ProcessRow(fields=fields))
    return interact_pb2.TopReply(titles=titles, processes=rows)


def _first_line(text: bytes) -> str:
    return next(iter(text.decode(errors="replace").strip().splitlines()), "")


HISTORY_PERIOD = 15.0
"""Seconds between two samples."""
HISTORY_SAMPLES = 240
"""Samples."""

_NODE = ""
_TICK = os.sysconf("SC_CLK_TCK")
_IDLE = (3, 4)
"""Columns of /proc/stat in which a processor does nothing: idle, iowait (proc(5))."""


class _Series:
    """The samples of one container, or of the node."""

    __slots__ = ("_cpu", "_when", "at", "cores", "memory")

    def __init__(self) -> None:
        self.at, self.cores, self.memory = array("d"), array("d"), array("d")
        self._cpu: float | None = None
        self._when = 0.0

    def add(self, at: float, when: float, cpu: float, memory: float) -> None:
        """Take a sample: time of day, monotonic time, seconds of CPU time so far, bytes."""
        if self._cpu is not None and cpu >= self._cpu:
            for column, value in (
                (self.at, at),
                (self.cores, (cpu - self._cpu) / max(when - self._when, 1e-3)),
                (self.memory, memory),
            ):
                column.append(value)
                del column[:-HISTORY_SAMPLES]
        self._cpu, self._when = cpu, when


class UsageHistory:
    """Records samples of the node and its containers, and serves them."""

    def __init__(
        self,
        runners: Mapping[str, TaskRunner],
        access: Callable[[str], ContainerHandle],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runners = runners
        self._access = access
        self._clock = clock
        self._monotonic = monotonic
        self._series: dict[str, _Series] = {_NODE: _Series()}
        self._files: dict[tuple[str, int], StatsReader] = {}

    async def run(self) -> None:
        """Take samples until cancelled."""
        while True:
            self.sample()
            await asyncio.sleep(HISTORY_PERIOD)

    def sample(self) -> None:
        """Take a sample of everything now, and drop removed containers."""
        at, when = self._clock(), self._monotonic()
        self._series[_NODE].add(at, when, *_node())
        for task_id in self._series.keys() - self._runners.keys() - {_NODE}:
            del self._series[task_id]
        known, self._files = self._files, {}
        for task_id, runner in self._runners.items():
            pid = runner.status.pid
            if runner.status.state is not TaskState.RUNNING:
                continue
            files = known.get((task_id, pid))
            if files is None:
                files = StatsReader(self._access(task_id).cgroups, task_id)
            self._files[task_id, pid] = files
            figures = files.read(pid)
            series = self._series.setdefault(task_id, _Series())
            series.add(at, when, figures.cpu / 1e9, figures.memory)

    async def serve(
        self, call: Any, order: dispatch_pb2.OpenTunnel, readers: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        """Send the samples of a container, or of the node (a handler of `tunnels.Tunnels`)."""
        found = self._series.get(order.history.task_id) or _Series()
        history = system_pb2.History(at=found.at, cores=found.cores, memory=found.memory)
        return dispatch_pb2.TunnelResult(history=history)


def _node() -> tuple[float, float]:
    """CPU time of the host in seconds, and bytes of memory in use."""
    first = read_text("/proc/stat").split(b"\n", 1)[0].split()[1:9]
    busy = sum(int(ticks) for column, ticks in enumerate(first) if column not in _IDLE)
    memory = read_text("/proc/meminfo")
    used = keyed(memory, "MemTotal:") - keyed(memory, "MemAvailable:")
    return busy / _TICK, used * 1024.0
