# SPDX-License-Identifier: Apache-2.0
"""Metrics of a container's cgroups under cAdvisor's names, so that its dashboards work.

Source of the names: github.com/google/cadvisor, docs/storage/prometheus.md. Units are seconds and
bytes, as usual in Prometheus. Sources of the values: as in `stats`; `memory.oom_control` (version
1, Linux 4.13) and `memory.events` (version 2) for processes killed by the OOM killer, and
`cpu.stat` of both for throttling.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from orchestrator.agent.runtime.resources.cgroups import CgroupMode, Cgroups
from orchestrator.agent.runtime.resources.stats import UNLIMITED
from orchestrator.linux.kernelfiles import io_service, io_stat, keyed, number, read_text, stalled

COUNTERS = {
    "container_cpu_usage_seconds_total": "CPU time used",
    "container_cpu_user_seconds_total": "CPU time used in user mode",
    "container_cpu_system_seconds_total": "CPU time used in the kernel",
    "container_cpu_cfs_periods_total": "Periods in which a CPU limit was enforced",
    "container_cpu_cfs_throttled_periods_total": "Periods that were throttled at the CPU limit",
    "container_cpu_cfs_throttled_seconds_total": "Time throttled at the CPU limit",
    "container_memory_failcnt": "Number of times that the memory limit was hit",
    "container_oom_events_total": "Processes killed by the OOM killer",
    "container_fs_reads_bytes_total": "Bytes read from disks",
    "container_fs_writes_bytes_total": "Bytes written to disks",
    "container_fs_reads_total": "Read requests to disks",
    "container_fs_writes_total": "Write requests to disks",
}
"""Name → help."""

LEVELS = {
    "container_memory_usage_bytes": "Memory in use, the file cache included",
    "container_memory_working_set_bytes": "Memory in use without the inactive file cache",
    "container_memory_max_usage_bytes": "Peak memory usage",
    "container_memory_rss": "Anonymous memory in bytes",
    "container_memory_mapped_file": "Memory of mapped files in bytes",
    "container_memory_cache": "File cache in bytes",
    "container_memory_swap": "Swap in use in bytes",
    "container_spec_memory_limit_bytes": "Memory limit, 0 for none",
    "container_spec_memory_reservation_limit_bytes": "Memory reservation, 0 for none",
    "container_spec_cpu_shares": "CPU weight, 1024 per core",
    "container_spec_cpu_quota": "CPU time per period in microseconds, 0 for no limit",
    "container_spec_cpu_period": "Period of the CPU limit in microseconds",
    "container_processes": "Processes",
    "container_threads": "Processes and threads, as counted by the PID limit",
    "container_threads_max": "The PID limit, 0 for none",
}
"""Name → help."""

PRESSURES = {
    f"container_pressure_{resource}_{word}_seconds_total": (
        f"Time in which {who} of its processes waited for {resource}",
        f"{resource}.pressure",
        kind,
    )
    for resource in ("cpu", "memory", "io")
    for word, who, kind in (("waiting", "some", b"some"), ("stalled", "all", b"full"))
}
"""Counter's name → (help, file, start of the line), on version 2 with pressure accounting."""

INTERFACES = {
    "container_network_receive_bytes_total": ("Bytes received", 0),
    "container_network_receive_packets_total": ("Packets received", 1),
    "container_network_receive_errors_total": ("Errors while receiving", 2),
    "container_network_receive_packets_dropped_total": ("Packets dropped while receiving", 3),
    "container_network_transmit_bytes_total": ("Bytes sent", 8),
    "container_network_transmit_packets_total": ("Packets sent", 9),
    "container_network_transmit_errors_total": ("Errors while sending", 10),
    "container_network_transmit_packets_dropped_total": ("Packets dropped while sending", 11),
}
"""Counter's name → (help, column of /proc/PID/net/dev, proc(5))."""

_TICK = os.sysconf("SC_CLK_TCK")
_NANO, _MICRO = 1e9, 1e6


class CadvisorReader:
    """Reads a container's metrics; paths and limits are determined once."""

    __slots__ = ("_block", "_cpu", "_cpuacct", "_fixed", "_memory", "_pids", "_stalls", "_v2")

    def __init__(
        self, cgroups: Cgroups, container_id: str, shares: int, reservation: int = 0
    ) -> None:
        """`shares`: its CPU weight; `reservation`: its reserved memory in bytes."""

        def folder(controller: str) -> str:
            return f"{cgroups.folder(controller, container_id)}/"

        self._v2 = cgroups.hierarchy.mode is CgroupMode.V2
        self._cpu, self._cpuacct = folder("cpu"), folder("cpuacct")
        self._memory, self._block, self._pids = folder("memory"), folder("blkio"), folder("pids")
        self._stalls = self._v2 and bool(read_text(f"{self._memory}cpu.pressure"))
        # Limits of the container at its creation.
        self._fixed: dict[str, float] = {
            "container_spec_cpu_shares": shares,
            "container_spec_memory_reservation_limit_bytes": reservation,
            "container_threads_max": number(read_text(self._pids + "pids.max")),
            **(self._unified_limits() if self._v2 else self._legacy_limits()),
        }

    def read(self) -> dict[str, float]:
        """The present values by metric. A value that cannot be read is 0."""
        values = self._unified() if self._v2 else self._legacy()
        values["container_processes"] = read_text(self._pids + "cgroup.procs").count(b"\n")
        values["container_threads"] = number(read_text(self._pids + "pids.current"))
        if self._stalls:
            values |= self._pressure()
        return values | self._fixed

    def _pressure(self) -> dict[str, float]:
        """Pressure stall information (kernel, accounting/psi)."""
        texts = {name: read_text(self._memory + name) for _, name, _ in PRESSURES.values()}
        return {
            counter: stalled(texts[name], kind) for counter, (_, name, kind) in PRESSURES.items()
        }

    def _legacy_limits(self) -> dict[str, float]:
        memory = number(read_text(self._memory + "memory.limit_in_bytes"))
        return {
            "container_spec_memory_limit_bytes": memory if memory < UNLIMITED else 0,
            # -1, no limit, is not parsed as a number.
            "container_spec_cpu_quota": number(read_text(self._cpu + "cpu.cfs_quota_us")),
            "container_spec_cpu_period": number(read_text(self._cpu + "cpu.cfs_period_us")),
        }

    def _unified_limits(self) -> dict[str, float]:
        quota, _, period = read_text(self._memory + "cpu.max").partition(b" ")
        return {
            "container_spec_memory_limit_bytes": number(read_text(self._memory + "memory.max")),
            "container_spec_cpu_quota": number(quota),
            "container_spec_cpu_period": number(period),
        }

    def _legacy(self) -> dict[str, float]:
        cpu = read_text(self._cpu + "cpu.stat")
        times = read_text(self._cpuacct + "cpuacct.stat")
        memory = read_text(self._memory + "memory.stat")
        usage = number(read_text(self._memory + "memory.usage_in_bytes"))
        oom = read_text(self._memory + "memory.oom_control")
        read, written = io_service(read_text(self._block + "blkio.throttle.io_service_bytes"))
        reads, writes = io_service(read_text(self._block + "blkio.throttle.io_serviced"))
        return {
            "container_cpu_usage_seconds_total": number(read_text(self._cpuacct + "cpuacct.usage"))
            / _NANO,
            "container_cpu_user_seconds_total": keyed(times, "user") / _TICK,
            "container_cpu_system_seconds_total": keyed(times, "system") / _TICK,
            "container_cpu_cfs_periods_total": keyed(cpu, "nr_periods"),
            "container_cpu_cfs_throttled_periods_total": keyed(cpu, "nr_throttled"),
            "container_cpu_cfs_throttled_seconds_total": keyed(cpu, "throttled_time") / _NANO,
            "container_memory_failcnt": number(read_text(self._memory + "memory.failcnt")),
            "container_oom_events_total": keyed(oom, "oom_kill"),
            "container_fs_reads_bytes_total": read,
            "container_fs_writes_bytes_total": written,
            "container_fs_reads_total": reads,
            "container_fs_writes_total": writes,
            "container_memory_usage_bytes": usage,
            "container_memory_working_set_bytes": max(
                usage - keyed(memory, "total_inactive_file"), 0
            ),
            "container_memory_max_usage_bytes": number(
                read_text(self._memory + "memory.max_usage_in_bytes")
            ),
            "container_memory_rss": keyed(memory, "total_rss"),
            "container_memory_mapped_file": keyed(memory, "total_mapped_file"),
            "container_memory_cache": keyed(memory, "total_cache"),
            "container_memory_swap": keyed(memory, "total_swap"),
        }

    def _unified(self) -> dict[str, float]:
        folder = self._memory
        cpu = read_text(folder + "cpu.stat")
        memory = read_text(folder + "memory.stat")
        usage = number(read_text(folder + "memory.current"))
        events = read_text(folder + "memory.events")
        disks = read_text(folder + "io.stat")
        read, written = io_stat(disks)
        reads, writes = io_stat(disks, (b"rios", b"wios"))
        return {
            "container_cpu_usage_seconds_total": keyed(cpu, "usage_usec") / _MICRO,
            "container_cpu_user_seconds_total": keyed(cpu, "user_usec") / _MICRO,
            "container_cpu_system_seconds_total": keyed(cpu, "system_usec") / _MICRO,
            "container_cpu_cfs_periods_total": keyed(cpu, "nr_periods"),
            "container_cpu_cfs_throttled_periods_total": keyed(cpu, "nr_throttled"),
            "container_cpu_cfs_throttled_seconds_total": keyed(cpu, "throttled_usec") / _MICRO,
            "container_memory_failcnt": keyed(events, "max"),
            "container_oom_events_total": keyed(events, "oom_kill"),
            "container_fs_reads_bytes_total": read,
            "container_fs_writes_bytes_total": written,
            "container_fs_reads_total": reads,
            "container_fs_writes_total": writes,
            "container_memory_usage_bytes": usage,
            "container_memory_working_set_bytes": max(usage - keyed(memory, "inactive_file"), 0),
            "container_memory_max_usage_bytes": number(read_text(folder + "memory.peak")),
            "container_memory_rss": keyed(memory, "anon"),
            "container_memory_mapped_file": keyed(memory, "file_mapped"),
            "container_memory_cache": keyed(memory, "file"),
            "container_memory_swap": number(read_text(folder + "memory.swap.current")),
        }


def interfaces(pid: int) -> Iterator[tuple[str, list[int]]]:
    """The interfaces in a process' network namespace except the loopback: name, and the columns of
    /proc/PID/net/dev."""
    for line in read_text(f"/proc/{pid}/net/dev").splitlines()[2:]:
        name, _, rest = line.partition(b":")
        if (word := name.strip()) != b"lo":
            yield word.decode(errors="replace"), [int(field) for field in rest.split()]
