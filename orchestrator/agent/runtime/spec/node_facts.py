# SPDX-License-Identifier: Apache-2.0
"""The facts of this node that a container's configuration depends on, and how they are read."""

from __future__ import annotations

import ipaddress
import os
import re
import resource
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.runtime.resources.cgroups import CgroupMode, Hierarchy
from orchestrator.agent.runtime.resources.stats import node_memory
from orchestrator.linux.priority import is_default
from orchestrator.model.validation.confinement import CAPABILITIES, RUNTIMES, ULIMITS

DEFAULT_PIDS_LIMIT = 4096
"""Default limit of processes in a container."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """Facts of the kernel, the agent's process and `/etc`; see `read_node_facts`."""

    swap_accounting: bool = True
    """Whether the kernel can limit swap; without, memory alone is limited."""
    min_oom_score: int = -1000
    """The lowest OOM score adjustment that the agent can set; above 0 on a host that raised the
    agent's own and does not allow it to be lowered."""
    custom_priority: bool = False
    """Whether the agent's CPU or I/O priority or scheduling policy is not the default."""
    apparmor: str | None = None
    """The default AppArmor profile of containers; empty: unconfined; None: the kernel has no
    AppArmor."""
    pids_limit: int = DEFAULT_PIDS_LIMIT
    nameservers: tuple[str, ...] = ()
    """The host's, the default of containers."""
    search: tuple[str, ...] = ()
    """The host's DNS search domains, used with its nameservers."""
    capabilities: frozenset[str] = frozenset(CAPABILITIES)
    """Capabilities of the agent, which it can grant to a container with the host's users."""
    hard_limits: Mapping[str, int] = field(default_factory=dict)
    """The agent's own hard limits, by Docker's names, where it cannot raise them."""
    cpus: frozenset[int] = frozenset()
    """The CPUs of the node; empty: unknown."""
    memory: int = 0
    """Bytes of the node's memory; 0: unknown."""
    init: Path = Path("/usr/bin/tini-static")
    """The program for `--init`."""


def own_capabilities() -> tuple[str, ...]:
    """The capabilities that this process may pass on, its bounding set: on a host that is itself a
    container, not all of the kernel's."""
    status = Path("/proc/self/status").read_text()
    held = int(re.search(r"^CapBnd:\s*([0-9a-f]+)", status, re.MULTILINE)[1], 16)  # type: ignore[index]
    return tuple(name for number, name in enumerate(CAPABILITIES) if held >> number & 1)


RESOLVER = Path("/etc/resolv.conf")
_RESOLVERS = (RESOLVER, Path("/run/systemd/resolve/resolv.conf"))
"""The second has the real servers where the first has only systemd's local stub."""


def read_node_facts(hierarchy: Hierarchy) -> NodeFacts:
    """Read the facts from the kernel and `/etc`."""
    nameservers, search = read_resolver()
    held = frozenset(own_capabilities())
    unbound = "CAP_SYS_RESOURCE" in held
    return NodeFacts(
        swap_accounting=_swap_accounting(hierarchy),
        min_oom_score=-1000 if unbound else _min_oom_score(),
        custom_priority=not is_default(),
        nameservers=nameservers,
        search=search,
        capabilities=held,
        hard_limits={} if unbound else _hard_limits(),
        cpus=frozenset(os.sched_getaffinity(0)),
        memory=node_memory(),
    )


def read_resolver() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The node's name servers, without those on its loopback interface, and its search domains."""
    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    for path in _RESOLVERS:
        try:
            nameservers, search = parse_resolver(path.read_text())
        except OSError:
            continue
        if nameservers:
            break
    return nameservers, search


def _min_oom_score() -> int:
    """0, or the agent's own if that is lower or cannot be lowered, as an attempt shows."""
    path = Path("/proc/self/oom_score_adj")
    own = int(path.read_text())
    if own > 0:
        try:
            path.write_text("0")
        except PermissionError:
            return own
        path.write_text(str(own))
    return min(own, 0)


def _hard_limits() -> dict[str, int]:
    found = {}
    for name in ULIMITS:
        number = getattr(resource, f"RLIMIT_{name.upper()}", None)
        if number is not None and (hard := resource.getrlimit(number)[1]) != resource.RLIM_INFINITY:
            found[name] = hard
    return found


def find_runtime(name: str) -> str:
    """The path of the OCI runtime that a container requests. Raises RuntimeFailure."""
    found = shutil.which(name) if name in RUNTIMES else None
    if found is None:
        there = [known for known in RUNTIMES if shutil.which(known)]
        raise RuntimeFailure(f"this node has no OCI runtime `{name}`; it has {', '.join(there)}")
    return found


def parse_resolver(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Name servers and search domains of a resolv.conf(5), without servers on the loopback
    interface, which a container cannot reach."""
    nameservers: list[str] = []
    search: tuple[str, ...] = ()
    for line in text.splitlines():
        keyword, *values = line.split()[:7] or [""]
        if keyword == "nameserver" and values and not is_loopback(values[0]):
            nameservers.append(values[0])
        elif keyword in ("search", "domain"):
            search = tuple(values)
    return tuple(nameservers), search


def is_loopback(address: str) -> bool:
    """Whether a name server is on the loopback interface (or its address is invalid)."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return True


def _swap_accounting(hierarchy: Hierarchy) -> bool:
    if hierarchy.mode is CgroupMode.V2:
        return True
    return (
        hierarchy.memory is not None and (hierarchy.memory / "memory.memsw.limit_in_bytes").exists()
    )


def find_program(name: str) -> str:
    """The absolute path of a program. Raises RuntimeFailure when it is not installed."""
    found = shutil.which(name)
    if found is None:
        raise RuntimeFailure(f"`{name}` is not installed on this node; install it or give its path")
    return os.path.abspath(found)


def kernel_version() -> tuple[int, int]:
    """The running kernel's major and minor number."""
    numbers = re.findall(r"\d+", os.uname().release)
    return int(numbers[0]), int(numbers[1])


def check_mode(hierarchy: Hierarchy) -> None:
    """Raise RuntimeFailure on a host with both cgroup versions, which crun refuses."""
    if hierarchy.mode is CgroupMode.HYBRID:
        raise RuntimeFailure(
            "this host mounts both cgroup versions, and the agent has not hidden one from itself; "
            "enter_private_mounts must be called first"
        )
