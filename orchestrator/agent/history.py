"""What the node and its containers used in the last hour, for the web page's charts.

A sample every quarter of a minute, in memory: an agent that is started anew begins anew. A
container costs some 6 KiB, and its sample a few small files.
"""

from __future__ import annotations

import asyncio
import os
import time
from array import array
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.agent.runner import TaskRunner
from orchestrator.agent.runtime.engine.bundle import ContainerHandle
from orchestrator.agent.runtime.resources.stats import StatsReader
from orchestrator.linux.kernelfiles import keyed, read_text
from orchestrator.model.states import TaskState
from orchestrator.pb import dispatch_pb2, system_pb2

PERIOD = 15.0
"""Seconds between two samples."""
KEPT = 240
"""Samples."""

_NODE = ""
_TICK = os.sysconf("SC_CLK_TCK")
_IDLE = (3, 4)
"""Columns of /proc/stat in which a processor does nothing: idle, iowait (proc(5))."""


class _Series:
    """The samples of one thing."""

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
                del column[:-KEPT]
        self._cpu, self._when = cpu, when


class History:
    """Takes samples, and tells them."""

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
            await asyncio.sleep(PERIOD)

    def sample(self) -> None:
        """Take one of everything now; what the node has no more is forgotten."""
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
        """Tell the samples of a container, or of the node (a handler of `tunnels.Tunnels`)."""
        found = self._series.get(order.history.task_id) or _Series()
        history = system_pb2.History(at=found.at, cores=found.cores, memory=found.memory)
        return dispatch_pb2.TunnelResult(history=history)


def _node() -> tuple[float, float]:
    """Seconds of CPU time that the host's processors worked, and bytes of memory in use."""
    first = read_text("/proc/stat").split(b"\n", 1)[0].split()[1:9]
    busy = sum(int(ticks) for column, ticks in enumerate(first) if column not in _IDLE)
    memory = read_text("/proc/meminfo")
    used = keyed(memory, "MemTotal:") - keyed(memory, "MemAvailable:")
    return busy / _TICK, used * 1024.0
