# SPDX-License-Identifier: Apache-2.0
"""Resource usage of a container, read from its cgroups.

Sources: kernel, admin-guide/cgroup-v1 (cpuacct, memory, pids, blkio-controller) and cgroup-v2;
`/proc/PID/net/dev` for the network namespace. Memory is counted as Docker does, without the file
cache that the kernel can drop at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.agent.runtime.resources.cgroups import CgroupMode, Cgroups
from orchestrator.linux.kernelfiles import io_service, io_stat, keyed, number, read_text

UNLIMITED = 1 << 60
"""Bytes from which a memory limit of version 1 means no limit."""


@dataclass(frozen=True, slots=True)
class ContainerStats:
    """Counters and gauges at one time; bytes, and nanoseconds of CPU time."""

    cpu: int = 0
    memory: int = 0
    memory_limit: int = 0
    """0: none."""
    pids: int = 0
    pids_limit: int = 0
    """0: none."""
    net_received: int = 0
    net_sent: int = 0
    block_read: int = 0
    block_written: int = 0


class StatsReader:
    """Reads a container's statistics; paths and limits are determined once."""

    __slots__ = (
        *("_block", "_cpu", "_memory", "_memory_stat", "_pids"),
        *("_memory_limit", "_pids_limit", "_v2"),
    )

    def __init__(self, cgroups: Cgroups, container_id: str) -> None:
        def folder(controller: str) -> str:
            return f"{cgroups.folder(controller, container_id)}/"

        self._v2 = cgroups.hierarchy.mode is CgroupMode.V2
        memory, pids = folder("memory"), folder("pids")
        if self._v2:
            self._cpu, self._block = memory + "cpu.stat", memory + "io.stat"
            self._memory, limit = memory + "memory.current", memory + "memory.max"
        else:
            self._cpu = folder("cpuacct") + "cpuacct.usage"
            self._block = folder("blkio") + "blkio.throttle.io_service_bytes"
            self._memory = memory + "memory.usage_in_bytes"
            limit = memory + "memory.limit_in_bytes"
        self._memory_stat = memory + "memory.stat"
        self._pids = pids + "pids.current"
        most = number(read_text(limit))
        self._memory_limit = most if most < UNLIMITED else 0
        self._pids_limit = number(read_text(pids + "pids.max"))

    def read(self, pid: int) -> ContainerStats:
        """The present values; `pid` is the container's first process. A value that cannot be read
        is 0."""
        received, sent = _network(read_text(f"/proc/{pid}/net/dev"))
        cpu, memory = read_text(self._cpu), number(read_text(self._memory))
        stat = read_text(self._memory_stat)
        if self._v2:
            nanoseconds = keyed(cpu, "usage_usec") * 1000
            cached = keyed(stat, "inactive_file")
            read, written = io_stat(read_text(self._block))
        else:
            nanoseconds = number(cpu)
            cached = keyed(stat, "total_inactive_file")
            read, written = io_service(read_text(self._block))
        return ContainerStats(
            cpu=nanoseconds,
            memory=max(memory - cached, 0),
            memory_limit=self._memory_limit,
            pids=number(read_text(self._pids)),
            pids_limit=self._pids_limit,
            net_received=received,
            net_sent=sent,
            block_read=read,
            block_written=written,
        )


def node_memory() -> int:
    """The node's memory in bytes (proc_meminfo(5))."""
    return keyed(Path("/proc/meminfo").read_bytes(), "MemTotal:") * 1024


def _network(text: bytes) -> tuple[int, int]:
    """Bytes received and sent by all interfaces except the loopback."""
    received = sent = 0
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(b":")
        if name.strip() != b"lo":
            fields = rest.split()
            received += int(fields[0])
            sent += int(fields[8])
    return received, sent
