# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of this node: its containers, its host, and the agent itself.

Read on each scrape. Metrics of containers have cAdvisor's names, of the host node_exporter's, all
others begin with `orc_`. Only existing objects have series.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator import __version__
from orchestrator.agent.images.store import ImageStore
from orchestrator.agent.logs.shipper import Tally
from orchestrator.agent.network.endpoint_table import EndpointTable
from orchestrator.agent.network.reconciler import NetworkReconciler
from orchestrator.agent.runtime.engine.bundle import ContainerHandle
from orchestrator.agent.runtime.resources import cadvisor
from orchestrator.agent.runtime.resources.cadvisor import CadvisorReader
from orchestrator.agent.settings import Settings
from orchestrator.agent.tasks.runner import TaskRunner
from orchestrator.agent.telemetry.host_metrics import HostCollector
from orchestrator.agent.volumes.volume_store import VolumeStore
from orchestrator.identity.certificates import TlsFiles
from orchestrator.identity.revocation import Revocations
from orchestrator.model.specs import STACK_LABEL
from orchestrator.model.states import TaskState
from orchestrator.web.https import listening
from orchestrator.web.scrape import MetricsApp, process_registry


@dataclass(frozen=True, slots=True)
class Holdings:
    """The numbers of objects on this node."""

    images: int
    image_bytes: int
    volumes: int
    networks: int
    peers: int
    """Other nodes in its networks."""
    endpoints: int
    """Addresses in the endpoint table, of running tasks of the whole cluster."""


def holdings(
    images: ImageStore, volumes: VolumeStore, networks: NetworkReconciler, endpoints: EndpointTable
) -> Holdings:
    """The current numbers."""
    inventory = images.inventory()
    return Holdings(
        images=len(inventory),
        image_bytes=sum(image.size for image in inventory),
        volumes=len(volumes.known()),
        networks=networks.count,
        peers=len(networks.peers()),
        endpoints=endpoints.count,
    )


@dataclass(frozen=True, slots=True)
class MetricSources:
    """The components of an agent that metrics are read from."""

    runners: Mapping[str, TaskRunner]
    access: Callable[[str], ContainerHandle]
    holdings: Callable[[], Holdings]
    connected: Callable[[], bool]
    """Whether it has a session with a manager."""
    runtime: str
    """Name and version of the OCI runtime."""
    dropped: Callable[[], Mapping[str, int]]
    """Packets that source checks dropped, by network."""
    tallies: Mapping[str, Tally] = field(default_factory=dict)
    """Lines that logging drivers have sent and dropped, by driver."""


@asynccontextmanager
async def serving(
    settings: Settings,
    sources: MetricSources,
    token_digest: Callable[[], str],
    revocations: Revocations,
) -> AsyncIterator[int]:
    """Serve `/metrics` during the block; yields the port. Raises CannotListen."""
    identity, data, host = settings.identity, settings.data_dir, os.uname()
    registry = process_registry()
    registry.register(HostCollector(data))
    facts = {
        "node": host.nodename,
        "node_id": identity.node_id,
        "version": __version__,
        "runtime": sources.runtime,
        "kernel": host.release,
    }
    registry.register(AgentCollector(sources, facts))
    containers = ContainerText(sources.runners, sources.access, host.nodename)
    app = MetricsApp(registry, identity.cluster_id, token_digest, containers.render, revocations)
    files = TlsFiles.of(data, "node")
    async with listening(app, identity.address, settings.metrics_port, files) as port:
        yield port


class ContainerText:
    """Running containers in Prometheus' text format (prometheus.io, "Exposition formats").

    It is formatted here because, with hundreds of containers, the library's object per sample
    costs more than reading the values from the kernel.
    """

    def __init__(
        self,
        runners: Mapping[str, TaskRunner],
        access: Callable[[str], ContainerHandle],
        node: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._runners = runners
        self._access = access
        self._node = node
        self._clock = clock
        self._known: dict[tuple[str, int], tuple[CadvisorReader, str]] = {}
        """Task and process → its cgroup files and labels."""

    def render(self) -> str:
        """All families, with a sample per container (and interface)."""
        lines: dict[str, list[str]] = {name: [] for name in _FAMILIES}
        known, self._known = self._known, {}
        for task_id, runner in self._runners.items():
            if runner.status.state is not TaskState.RUNNING:
                continue
            pid = runner.status.pid
            found = known.get((task_id, pid)) or self._found(runner)
            self._known[task_id, pid] = files, labels = found
            figures = files.read()
            figures["container_start_time_seconds"] = runner.status.started_at
            figures["container_last_seen"] = self._clock()
            figures["orc_container_restarts_total"] = runner.task.restarts + runner.task.attempt
            for name, value in figures.items():
                lines[name].append(f"{name}{{{labels}}} {value}")
            for interface, columns in cadvisor.interfaces(pid):
                more = f'{{{labels},interface="{_escaped(interface)}"}}'
                for name, column in _COLUMNS:
                    lines[name].append(f"{name}{more} {columns[column]}")
        text = (
            f"# HELP {name} {help}\n# TYPE {name} {kind}\n" + "\n".join([*lines[name], ""])
            for name, (kind, help) in _FAMILIES.items()
            if lines[name]
        )
        return "".join(text)

    def _found(self, runner: TaskRunner) -> tuple[CadvisorReader, str]:
        task = runner.task
        cgroups = self._access(task.id).cgroups
        labels = {
            "id": cgroups.path(task.id),
            "name": task.name,
            "image": task.spec.container.image,
            "service": task.service_name,
            "task": task.id,
            "slot": str(task.slot or ""),
            "stack": task.spec.container.labels.get(STACK_LABEL, ""),
            "node": self._node,
        }
        text = ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items())
        spec = task.spec
        return CadvisorReader(cgroups, task.id, spec.weight, spec.reservation.memory), text


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


_FAMILIES: dict[str, tuple[str, str]] = {
    **{name: ("counter", help) for name, help in cadvisor.COUNTERS.items()},
    **{name: ("gauge", help) for name, help in cadvisor.LEVELS.items()},
    **{name: ("counter", help) for name, (help, _, _) in cadvisor.PRESSURES.items()},
    **{name: ("counter", help) for name, (help, _) in cadvisor.INTERFACES.items()},
    "container_start_time_seconds": ("gauge", "Start time of the container, Unix time"),
    "container_last_seen": ("gauge", "Time of this sample, Unix time"),
    "orc_container_restarts_total": (
        "counter",
        "Restarts by a restart policy, and consecutive failures of its slot",
    ),
}
_COLUMNS = [(name, column) for name, (_, column) in cadvisor.INTERFACES.items()]


class AgentCollector(Collector):
    """Metrics of the agent itself."""

    def __init__(self, sources: MetricSources, facts: Mapping[str, str]) -> None:
        """`facts` are labels of the node: hostname, version, …"""
        self._sources = sources
        self._facts = dict(facts)

    def collect(self) -> Iterable[Metric]:
        """Every family."""
        held = self._sources.holdings()
        info = GaugeMetricFamily("orc_agent_info", "This node", labels=tuple(self._facts))
        info.add_metric(list(self._facts.values()), 1)
        yield info
        yield GaugeMetricFamily(
            "orc_agent_connected",
            "Whether this agent has a session with a manager",
            self._sources.connected(),
        )
        for name, help, value in (
            ("images", "Images on this node", held.images),
            ("image_bytes", "Size of the images, compressed as stored", held.image_bytes),
            ("volumes", "Volumes on this node", held.volumes),
            ("networks", "Networks on this node", held.networks),
            ("peers", "Other nodes in this node's networks", held.peers),
            ("endpoints", "Addresses in this node's endpoint table", held.endpoints),
        ):
            yield GaugeMetricFamily(f"orc_agent_{name}", help, value)
        sent = CounterMetricFamily(
            "orc_agent_log_lines_sent", "Lines that logging drivers have sent", labels=("driver",)
        )
        dropped = CounterMetricFamily(
            "orc_agent_log_lines_dropped",
            "Lines that logging drivers have dropped because their target did not accept them",
            labels=("driver",),
        )
        for driver, tally in self._sources.tallies.items():
            sent.add_metric([driver], tally.sent)
            dropped.add_metric([driver], tally.dropped)
        yield sent
        yield dropped
        forged = CounterMetricFamily(
            "orc_agent_source_check_dropped_packets",
            "Packets of containers dropped because of a forged source address",
            labels=("network",),
        )
        for network, packets in self._sources.dropped().items():
            forged.add_metric([network], packets)
        yield forged
        states = GaugeMetricFamily("orc_agent_tasks", "Tasks of this node", labels=("state",))
        count = dict.fromkeys(TaskState, 0)
        for runner in self._sources.runners.values():
            count[runner.status.state] += 1
        for state in TaskState:
            if TaskState.ASSIGNED <= state <= TaskState.ORPHANED:
                states.add_metric([state.name.lower()], count[state])
        yield states
