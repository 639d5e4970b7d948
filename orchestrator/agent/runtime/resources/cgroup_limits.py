# SPDX-License-Identifier: Apache-2.0
"""Limits of a container as the OCI runtime enforces them: of its cgroup and its process. Pure.

Source: the OCI runtime-spec (config-linux.md, "Control groups"; config.md, "POSIX process").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.runtime.spec.container_devices import DeviceNode
from orchestrator.agent.runtime.spec.node_facts import NodeFacts
from orchestrator.model import qos
from orchestrator.model.specs import ContainerSpec, TaskSpec
from orchestrator.model.units import SHARES_PER_CORE

MIN_MEMORY = 6 << 20
"""Bytes that the OCI runtime itself needs within the container's limit."""
QUOTA_PERIOD = 100_000
"""Period of CPU limits in microseconds."""
_MIN_QUOTA = 1000
_MIN_WEIGHT, _MAX_WEIGHT = 2, 262_144
_UNLIMITED = (1 << 64) - 1
_DEFAULT_LIMITS = {
    "core": (_UNLIMITED, _UNLIMITED),
    "memlock": (8 << 20, 8 << 20),
    "nofile": (1024, 524_288),
    "nproc": (_UNLIMITED, _UNLIMITED),
    "stack": (8 << 20, _UNLIMITED),
}
"""Soft and hard limits, as systemd and Docker set them for a container."""


def resources(spec: TaskSpec, node: NodeFacts, devices: Sequence[DeviceNode]) -> dict[str, Any]:
    """The limits of the cgroup.

    CPU weight is given as version 1 shares, which the OCI runtime converts for version 2.
    Raises RuntimeFailure when the memory limit is too small for anything to start.
    """
    container = spec.container
    cpu: dict[str, Any] = {"shares": min(max(spec.weight, _MIN_WEIGHT), _MAX_WEIGHT)}
    if spec.limit.shares:
        quota = spec.limit.shares * QUOTA_PERIOD // SHARES_PER_CORE
        cpu |= {"quota": max(quota, _MIN_QUOTA), "period": QUOTA_PERIOD}
    if container.cpuset_cpus:
        _check_cpus(container.cpuset_cpus, node.cpus)
        cpu["cpus"] = container.cpuset_cpus
    result: dict[str, Any] = {
        "devices": device_rules(container, devices),
        "cpu": cpu,
        "pids": {"limit": container.pids_limit or node.pids_limit},
    }
    if limit := spec.limit.memory:
        if limit < MIN_MEMORY:
            raise RuntimeFailure(
                f"the memory limit of {limit} bytes is too small to start a container; "
                f"give at least {MIN_MEMORY >> 20} MiB"
            )
        # `swap` counts memory and swap together, so equal values leave no swap.
        swap = {"swap": container.memory_swap or limit} if node.swap_accounting else {}
        result["memory"] = {"limit": limit} | swap
    return result


def changes(
    spec: TaskSpec, node: NodeFacts, before: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The limits of the cgroup for the OCI runtime's `update`: those of `resources` that can change
    while a container runs, with explicit values for no limit. `before` are the present ones; a
    cpuset that is not limited any more becomes all CPUs. Raises RuntimeFailure."""
    found = resources(spec, node, ())
    del found["devices"]
    found["cpu"] = {"quota": -1, "period": QUOTA_PERIOD} | found["cpu"]
    if before is not None and "cpus" in before["cpu"] and node.cpus:
        found["cpu"] = {"cpus": _ranges(node.cpus)} | found["cpu"]
    if "memory" not in found:
        found["memory"] = {"limit": -1} | ({"swap": -1} if node.swap_accounting else {})
    return found


def device_rules(spec: ContainerSpec, devices: Sequence[DeviceNode]) -> list[dict[str, Any]]:
    """Only requested devices and the default ones, which the OCI runtime adds, are allowed: with
    CAP_MKNOD a container could otherwise make a node of the host's disk and read it."""
    if spec.privileged:
        return [{"allow": True, "access": "rwm"}]
    denied: dict[str, Any] = {"allow": False, "access": "rwm"}
    return [denied, *(device.rule for device in devices)]


def _check_cpus(wanted: str, there: frozenset[int]) -> None:
    for part in wanted.split(","):
        first, _, last = part.partition("-")
        missing = set(range(int(first), int(last or first) + 1)) - there
        if there and missing:
            raise RuntimeFailure(
                f"cpuset {wanted} names CPU {min(missing)}, which this node does not have; "
                f"it has {_ranges(there)}"
            )


def _ranges(cpus: frozenset[int]) -> str:
    """CPUs in cpuset notation, such as `0-3,8`."""
    begins = [cpu for cpu in sorted(cpus) if cpu - 1 not in cpus]
    ends = [cpu for cpu in sorted(cpus) if cpu + 1 not in cpus]
    pairs = zip(begins, ends, strict=True)
    return ",".join(f"{begin}-{end}" if end > begin else f"{begin}" for begin, end in pairs)


def process_limits(spec: ContainerSpec, node: NodeFacts) -> list[dict[str, Any]]:
    """The limits of setrlimit(2): the spec's, else a host's defaults instead of the agent's own.
    Raises RuntimeFailure for one that the agent cannot raise."""
    found = {}
    for name, (soft, hard) in _DEFAULT_LIMITS.items():
        most = node.hard_limits.get(name, _UNLIMITED)
        found[name] = min(soft, most), min(hard, most)
    for limit in spec.ulimits:
        hard = _UNLIMITED if limit.hard < 0 else limit.hard
        most = node.hard_limits.get(limit.name, _UNLIMITED)
        if hard > most:
            raise RuntimeFailure(
                f"ulimit {limit.name} cannot be raised above the agent's own, which is {most}"
            )
        found[limit.name] = _UNLIMITED if limit.soft < 0 else limit.soft, hard
    return [
        {"type": f"RLIMIT_{name.upper()}", "soft": soft, "hard": hard}
        for name, (soft, hard) in found.items()
    ]


def oom_score(spec: TaskSpec, node: NodeFacts) -> int:
    """The OOM score adjustment of the process: the spec's, else that of its class; never the
    agent's own. Raises RuntimeFailure when the agent cannot set one that low."""
    wanted = spec.container.oom_score_adj
    if wanted and wanted < node.min_oom_score:
        raise RuntimeFailure(
            f"oom score {wanted} is below {node.min_oom_score}, the lowest that this node's "
            "agent can set"
        )
    by_class = qos.oom_score(spec.reservation.memory, spec.limit.memory, node.memory)
    return wanted or max(by_class, node.min_oom_score)
