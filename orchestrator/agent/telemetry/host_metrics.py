# SPDX-License-Identifier: Apache-2.0
"""Metrics of the host's kernel, under the names of node_exporter and cAdvisor.

Devices of containers are left out, so that the number of series is bounded by the host.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator.linux.kernelfiles import keyed, number, read_text, stalled

_CPU_MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
"""Of the columns of /proc/stat, as proc(5) has them."""
_MEMORY = (
    *("MemTotal", "MemFree", "MemAvailable", "Buffers", "Cached", "Slab"),
    *("SwapTotal", "SwapFree"),
)
_TICK = os.sysconf("SC_CLK_TCK")
_PRESSURES = ("cpu", "io", "memory")
_COLUMNS = (
    *(("receive_bytes", 0), ("receive_packets", 1), ("receive_errs", 2), ("receive_drop", 3)),
    *(("transmit_bytes", 8), ("transmit_packets", 9), ("transmit_errs", 10), ("transmit_drop", 11)),
)
"""Of /proc/net/dev, proc(5)."""
_OTHERS = re.compile(r"lo|veth.*|orcv.*|docker.*|br-.*|cali.*|cni.*")
"""Loopback, and network devices of containers."""
_REQUESTS = (
    ("reads_completed", 3, 1.0),
    ("read_bytes", 5, 512.0),
    ("writes_completed", 7, 1.0),
    ("written_bytes", 9, 512.0),
    ("io_time_seconds", 12, 0.001),
)
"""Of /proc/diskstats (kernel, admin-guide/iostats): name, column, and what its unit is in ours."""
_PARTS = re.compile(r"(z?ram|loop|fd|sr|dm-|md)\d+|([hsv]|xv)d[a-z]+\d+|(nvme\d+n|mmcblk)\d+p\d+")
"""Block devices that are partitions or not disks."""


class HostCollector(Collector):
    """Metrics of the host that /proc returns without delay."""

    def __init__(self, disk: Path) -> None:
        """`disk`: a folder on the file system that holds images and containers."""
        self._disk = disk

    def collect(self) -> Iterable[Metric]:
        """All families, except those that this kernel lacks."""
        stat, memory = read_text("/proc/stat"), read_text("/proc/meminfo")
        yield _processors(stat)
        for key in _MEMORY:
            name = f"node_memory_{key}_bytes"
            yield GaugeMetricFamily(name, f"{key} of /proc/meminfo", keyed(memory, f"{key}:") << 10)
        for name, help, value in (
            ("machine_cpu_cores", "Processors", os.cpu_count() or 1),
            ("machine_memory_bytes", "Memory", keyed(memory, "MemTotal:") << 10),
            (
                "node_boot_time_seconds",
                "When the host booted, seconds since 1970",
                keyed(stat, "btime"),
            ),
            ("node_time_seconds", "The host's clock, seconds since 1970", time.time()),
        ):
            yield GaugeMetricFamily(name, help, value)
        yield _kernel()
        load = read_text("/proc/loadavg").split()
        for minutes, text in zip((1, 5, 15), load, strict=False):
            help = f"Processes that run or wait, over {minutes} min"
            yield GaugeMetricFamily(f"node_load{minutes}", help, float(text))
        yield from _pressure()
        yield from _connections()
        yield from _devices(read_text("/proc/net/dev"))
        yield from _disk_requests(read_text("/proc/diskstats"))
        yield from self._disks()

    def _disks(self) -> Iterable[Metric]:
        room = os.statvfs(self._disk)
        for name, help, value in (
            ("node_filesystem_size_bytes", "Size", room.f_blocks * room.f_frsize),
            ("node_filesystem_avail_bytes", "Free for the agent", room.f_bavail * room.f_frsize),
            ("node_filesystem_files", "Inodes", room.f_files),
            ("node_filesystem_files_free", "Free inodes", room.f_ffree),
        ):
            family = GaugeMetricFamily(name, f"{help} of the agent's disk", labels=("mountpoint",))
            family.add_metric([str(self._disk)], value)
            yield family


def _processors(stat: bytes) -> Metric:
    family = CounterMetricFamily(
        "node_cpu_seconds", "Time that each processor spent in each mode", labels=("cpu", "mode")
    )
    for line in stat.splitlines():
        name, *columns = line.split()
        if not name.startswith(b"cpu"):
            break
        if name != b"cpu":
            for mode, ticks in zip(_CPU_MODES, columns, strict=False):
                family.add_metric([name[3:].decode(), mode], int(ticks) / _TICK)
    return family


def _kernel() -> Metric:
    host = os.uname()
    labels = {
        "sysname": host.sysname,
        "release": host.release,
        "version": host.version,
        "machine": host.machine,
        "nodename": host.nodename,
    }
    family = GaugeMetricFamily("node_uname_info", "The host's kernel", labels=tuple(labels))
    family.add_metric(list(labels.values()), 1)
    return family


def _devices(text: bytes) -> Iterator[Metric]:
    families = {
        name: CounterMetricFamily(f"node_network_{name}", f"{name} of a device", labels=("device",))
        for name, _ in _COLUMNS
    }
    for line in text.splitlines()[2:]:
        device, _, rest = line.decode(errors="replace").partition(":")
        fields = rest.split()
        if not _OTHERS.fullmatch(device := device.strip()):
            for name, column in _COLUMNS:
                families[name].add_metric([device], int(fields[column]))
    yield from families.values()


def _disk_requests(text: bytes) -> Iterator[Metric]:
    families = {
        name: CounterMetricFamily(f"node_disk_{name}", f"{name} of a disk", labels=("device",))
        for name, _, _ in _REQUESTS
    }
    for line in text.splitlines():
        fields = line.decode(errors="replace").split()
        if not _PARTS.fullmatch(fields[2]):
            for name, column, unit in _REQUESTS:
                families[name].add_metric([fields[2]], int(fields[column]) * unit)
    yield from families.values()


def _pressure() -> Iterable[Metric]:
    """Pressure stall information (kernel, accounting/psi)."""
    for resource in _PRESSURES:
        text = read_text(f"/proc/pressure/{resource}")
        for word, who, kind in (("waiting", "some", b"some"), ("stalled", "all", b"full")):
            # Of processors the kernel has the second for containers alone.
            if kind in text and (resource, word) != ("cpu", "stalled"):
                yield CounterMetricFamily(
                    f"node_pressure_{resource}_{word}_seconds",
                    f"Time in which {who} processes waited for {resource}",
                    stalled(text, kind),
                )


def _connections() -> Iterable[Metric]:
    folder = "/proc/sys/net/netfilter/nf_conntrack_"
    if not (limit := number(read_text(folder + "max"))):
        return
    yield GaugeMetricFamily(
        "node_nf_conntrack_entries", "Tracked connections", number(read_text(folder + "count"))
    )
    yield GaugeMetricFamily(
        "node_nf_conntrack_entries_limit", "Connection tracking table size", limit
    )
    heading, *rows = read_text("/proc/net/stat/nf_conntrack").splitlines() or [b""]
    if b"drop" in (titles := heading.split()):
        column = titles.index(b"drop")
        yield CounterMetricFamily(
            "node_nf_conntrack_stat_drop",
            "Connections dropped because the connection tracking table was full",
            sum(int(row.split()[column], 16) for row in rows),
        )
