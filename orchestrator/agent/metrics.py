"""What this node tells Prometheus: its containers, its host, and what the agent holds.

Read when it is asked for, never before. Containers have cAdvisor's names, the host node_exporter's
(as far as Orc looks), all else begins with `orc_`. Labels are of what exists: what has gone is in
no later answer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator.agent.endpoints import Endpoints
from orchestrator.agent.images.store import ImageStore
from orchestrator.agent.networks import Networks
from orchestrator.agent.runner import TaskRunner
from orchestrator.agent.runtime import gauges
from orchestrator.agent.runtime.access import Access
from orchestrator.agent.runtime.gauges import GaugeFiles
from orchestrator.agent.runtime.kernelfiles import keyed, number, read_text
from orchestrator.agent.volumes.store import VolumeStore
from orchestrator.model.specs import STACK_LABEL
from orchestrator.model.states import TaskState

_LABELS = ("id", "name", "image", "service", "task", "slot", "stack", "node")
_CPU_MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
"""Of the columns of /proc/stat, as proc(5) has them."""
_TICK = os.sysconf("SC_CLK_TCK")
_PRESSURES = ("cpu", "io", "memory")


@dataclass(frozen=True, slots=True)
class Holdings:
    """What an agent has in its keeping."""

    images: int
    image_bytes: int
    volumes: int
    networks: int
    peers: int
    """Other nodes that its networks reach."""
    endpoints: int
    """Addresses of running tasks, of the whole cluster, that its names and balance know."""


def holdings(
    images: ImageStore, volumes: VolumeStore, networks: Networks, endpoints: Endpoints
) -> Holdings:
    """What these hold now."""
    inventory = images.inventory()
    return Holdings(
        images=len(inventory),
        image_bytes=sum(image.size for image in inventory),
        volumes=len(volumes.known()),
        networks=networks.count,
        peers=len(networks.peers()),
        endpoints=endpoints.count,
    )


class ContainerCollector(Collector):
    """The containers that run."""

    def __init__(
        self,
        runners: Mapping[str, TaskRunner],
        access: Callable[[str], Access],
        node: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._runners = runners
        self._access = access
        self._node = node
        self._clock = clock
        self._files: dict[str, GaugeFiles] = {}

    def collect(self) -> Iterable[Metric]:
        """Every family, each with a sample a container (and interface)."""
        counters = {
            name: CounterMetricFamily(name, help, labels=_LABELS)
            for name, help in gauges.COUNTERS.items()
        }
        levels = {
            name: GaugeMetricFamily(name, help, labels=_LABELS)
            for name, help in (gauges.LEVELS | _OF_TASKS).items()
        }
        traffic = {
            name: CounterMetricFamily(name, help, labels=(*_LABELS, "interface"))
            for name, (help, _) in gauges.INTERFACES.items()
        }
        families = counters | levels
        restarts = CounterMetricFamily(
            "orc_container_restarts",
            "Runs that a restart policy began, and failures in a row of its slot",
            labels=_LABELS,
        )
        known, self._files = self._files, {}
        for task_id, runner in self._runners.items():
            if runner.status.state is not TaskState.RUNNING:
                continue
            files = known.get(task_id)
            if files is None:
                files = GaugeFiles(self._access(task_id).cgroups, task_id)
            self._files[task_id] = files
            labels = self._labels(runner)
            for name, value in files.read().items():
                families[name].add_metric(labels, value)
            levels["container_spec_cpu_shares"].add_metric(labels, runner.task.spec.weight)
            levels["container_start_time_seconds"].add_metric(labels, runner.status.started_at)
            levels["container_last_seen"].add_metric(labels, self._clock())
            restarts.add_metric(labels, runner.task.restarts + runner.task.attempt)
            for interface, columns in gauges.interfaces(runner.status.pid):
                for name, (_, column) in gauges.INTERFACES.items():
                    traffic[name].add_metric([*labels, interface], columns[column])
        yield from families.values()
        yield from traffic.values()
        yield restarts

    def _labels(self, runner: TaskRunner) -> list[str]:
        task = runner.task
        return [
            self._access(task.id).cgroups.path(task.id),
            task.name,
            task.spec.container.image,
            task.service_name,
            task.id,
            str(task.slot or ""),
            task.spec.container.labels.get(STACK_LABEL, ""),
            self._node,
        ]


_OF_TASKS = {
    "container_spec_cpu_shares": "CPU weight, 1024 a core",
    "container_start_time_seconds": "When it was started, seconds since 1970",
    "container_last_seen": "When it was looked at, seconds since 1970",
}


class HostCollector(Collector):
    """The host, as far as /proc tells at once."""

    def __init__(self, disk: Path) -> None:
        """`disk`: a folder on the file system that holds images and containers."""
        self._disk = disk

    def collect(self) -> Iterable[Metric]:
        """Every family; those that this kernel does not have are left out."""
        yield _processors(read_text("/proc/stat"))
        memory = read_text("/proc/meminfo")
        for key in ("MemTotal", "MemFree", "MemAvailable", "Buffers", "Cached", "SwapTotal"):
            name = f"node_memory_{key}_bytes"
            yield GaugeMetricFamily(name, f"{key} of /proc/meminfo", keyed(memory, f"{key}:") << 10)
        load = read_text("/proc/loadavg").split()
        for minutes, text in zip((1, 5, 15), load, strict=False):
            help = f"Processes that run or wait, over {minutes} min"
            yield GaugeMetricFamily(f"node_load{minutes}", help, float(text))
        yield from _pressure()
        yield from _connections()
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


def _pressure() -> Iterable[Metric]:
    """Pressure stall information (kernel, accounting/psi)."""
    for resource in _PRESSURES:
        for line in read_text(f"/proc/pressure/{resource}").splitlines():
            kind, *fields = line.split()
            word = "waiting" if kind == b"some" else "stalled"
            if resource == "cpu" and word == "stalled":
                continue  # the kernel has it for containers alone
            yield CounterMetricFamily(
                f"node_pressure_{resource}_{word}_seconds",
                f"Time in which {'some' if word == 'waiting' else 'all'} processes waited "
                f"for {resource}",
                int(fields[-1].partition(b"=")[2]) / 1e6,
            )


def _connections() -> Iterable[Metric]:
    folder = "/proc/sys/net/netfilter/nf_conntrack_"
    if not (limit := number(read_text(folder + "max"))):
        return
    yield GaugeMetricFamily(
        "node_nf_conntrack_entries", "Connections tracked", number(read_text(folder + "count"))
    )
    yield GaugeMetricFamily("node_nf_conntrack_entries_limit", "The most that fit", limit)
    heading, *rows = read_text("/proc/net/stat/nf_conntrack").splitlines() or [b""]
    if b"drop" in (titles := heading.split()):
        column = titles.index(b"drop")
        yield CounterMetricFamily(
            "node_nf_conntrack_stat_drop",
            "Connections refused for want of room",
            sum(int(row.split()[column], 16) for row in rows),
        )


class AgentCollector(Collector):
    """The agent's own: what it holds, and whether a manager hears it."""

    def __init__(
        self,
        holdings: Callable[[], Holdings],
        runners: Mapping[str, TaskRunner],
        connected: Callable[[], bool],
        facts: Mapping[str, str],
    ) -> None:
        """`facts` are labels of the node: hostname, version, …"""
        self._holdings = holdings
        self._runners = runners
        self._connected = connected
        self._facts = dict(facts)

    def collect(self) -> Iterable[Metric]:
        """Every family."""
        held = self._holdings()
        info = GaugeMetricFamily("orc_agent_info", "This node", labels=tuple(self._facts))
        info.add_metric(list(self._facts.values()), 1)
        yield info
        yield GaugeMetricFamily(
            "orc_agent_connected", "Whether a manager hears this agent", self._connected()
        )
        for name, help, value in (
            ("images", "Images on this node", held.images),
            ("image_bytes", "Size of the images, compressed as stored", held.image_bytes),
            ("volumes", "Volumes on this node", held.volumes),
            ("networks", "Networks on this node", held.networks),
            ("peers", "Other nodes that its networks reach", held.peers),
            ("endpoints", "Addresses that its names and balance know", held.endpoints),
        ):
            yield GaugeMetricFamily(f"orc_agent_{name}", help, value)
        states = GaugeMetricFamily("orc_agent_tasks", "Tasks of this node", labels=("state",))
        count = dict.fromkeys(TaskState, 0)
        for runner in self._runners.values():
            count[runner.status.state] += 1
        for state in TaskState:
            if TaskState.ASSIGNED <= state <= TaskState.ORPHANED:
                states.add_metric([state.name.lower()], count[state])
        yield states
