# SPDX-License-Identifier: Apache-2.0
"""What Orc itself takes: an idle node, an idle manager, and each container besides its process."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tests.bench import processes
from tests.bench.cluster import NODES, Cluster, Control
from tests.bench.processes import Memory, Process
from tests.bench.tables import MIB, Table, at_most, mebibytes

CONTAINERS = 60
IDLE = 20.0
"""Seconds over which the CPU time of idle daemons is counted."""
_WITHIN = 60.0


@dataclass(frozen=True, slots=True)
class Idle:
    """A cluster with nothing to do; means over the nodes."""

    agent: Memory
    helper: Memory
    manager: Memory
    etcd: Memory
    node_cpu: float
    """Fraction of a core that agent and helper of a node take."""
    manager_cpu: float
    etcd_cpu: float


@dataclass(frozen=True, slots=True)
class Containers:
    """Bytes for each of `CONTAINERS` containers, besides their own processes."""

    conmon: Memory
    agent: float
    """Growth of agents and helpers, PSS."""
    manager: float
    """Growth of the manager and etcd, PSS."""
    kernel: float
    """Growth of the kernel's own memory on this machine, for the process too."""


@dataclass(frozen=True, slots=True)
class Groups:
    """The processes of a cluster by what they are."""

    agents: Sequence[Process]
    helpers: Sequence[Process]
    managers: Sequence[Process]
    etcd: Sequence[Process]
    conmons: Sequence[Process]


def sort(hosts: Mapping[str, Iterable[Process]]) -> Groups:
    """Tell processes apart by their command lines; pure."""
    everyone = [process for found in hosts.values() for process in found]
    return Groups(
        agents=[p for p in everyone if "agent" in p.argv[1:3]],
        helpers=[p for p in everyone if "orchestrator.cni.helper" in p.argv],
        managers=[p for p in everyone if "manager" in p.argv[1:3]],
        etcd=[p for p in everyone if p.program == "etcd"],
        conmons=[p for p in everyone if p.program == "conmon"],
    )


def measure_idle(cluster: Cluster) -> Idle:
    """Watch a cluster that has nothing to do."""
    groups = sort(cluster.hosts())
    parts = ((*groups.agents, *groups.helpers), groups.managers, groups.etcd)
    began, before = time.monotonic(), [processes.cpu_seconds(part) for part in parts]
    time.sleep(IDLE)
    after, took = [processes.cpu_seconds(part) for part in parts], time.monotonic() - began
    node, manager, etcd = ((b - a) / took for a, b in zip(before, after, strict=True))
    return Idle(
        agent=_mean(groups.agents),
        helper=_mean(groups.helpers),
        manager=_mean(groups.managers),
        etcd=_mean(groups.etcd),
        node_cpu=node / NODES,
        manager_cpu=manager,
        etcd_cpu=etcd,
    )


async def measure_containers(cluster: Cluster) -> Containers:
    """Compare a cluster with containers with the same one a moment before. It should have run as
    many before, so that what is kept for reuse is not counted."""
    before = sort(cluster.hosts())
    held = _held(before)
    async with Control() as control:
        kernel = processes.kernel_memory()
        async with control.service("memory", CONTAINERS, _WITHIN):
            kernel = processes.kernel_memory() - kernel
            after = sort(cluster.hosts())
            grown = [b - a for a, b in zip(held, _held(after), strict=True)]
            return Containers(
                conmon=_mean(after.conmons),
                agent=grown[0] / CONTAINERS,
                manager=grown[1] / CONTAINERS,
                kernel=kernel / CONTAINERS,
            )


def _held(groups: Groups) -> tuple[int, int]:
    nodes = processes.memory((*groups.agents, *groups.helpers))
    return nodes.pss, processes.memory((*groups.managers, *groups.etcd)).pss


def _mean(group: Sequence[Process]) -> Memory:
    total = processes.memory(group)
    return Memory(total.rss // len(group), total.pss // len(group))


def report(idle: Idle, containers: Containers) -> Table:
    """Pure."""
    node = idle.agent + idle.helper
    each = containers.conmon.pss + containers.agent
    return Table(
        "Memory and idle CPU",
        ("what", "PSS", "RSS", "of a core", "target"),
        (
            ("idle agent", *_sizes(idle.agent), "", ""),
            ("idle network helper", *_sizes(idle.helper), "", ""),
            (
                "idle node: both",
                *_sizes(node),
                _percent(idle.node_cpu),
                f"{at_most(node.pss, 80 * MIB, '80 MiB')}, {at_most(idle.node_cpu, 0.01, '1%')}",
            ),
            (
                "idle manager",
                *_sizes(idle.manager),
                _percent(idle.manager_cpu),
                at_most(idle.manager.pss, 120 * MIB, "120 MiB"),
            ),
            ("its etcd", *_sizes(idle.etcd), _percent(idle.etcd_cpu), ""),
            (
                "a container: conmon and growth of the agent",
                mebibytes(each),
                mebibytes(containers.conmon.rss + containers.agent),
                "",
                at_most(each, 1.5 * MIB, "1.5 MiB"),
            ),
            ("of that, conmon", *_sizes(containers.conmon), "", ""),
            ("a container: growth of manager and etcd", mebibytes(containers.manager), "", "", ""),
            ("a container: growth of the kernel", mebibytes(containers.kernel), "", "", ""),
        ),
        (
            "PSS counts a page that n processes share as a n-th for each; all nodes are on one "
            "machine and share the pages of the interpreter.",
            "The kernel's growth is that of the whole machine, and is what any process costs, too.",
            f"CPU over {IDLE:.0f} s; a container's figures are means over {CONTAINERS}.",
        ),
    )


def _sizes(memory: Memory) -> tuple[str, str]:
    return mebibytes(memory.pss), mebibytes(memory.rss)


def _percent(fraction: float) -> str:
    return f"{fraction * 100:.2f}%"
