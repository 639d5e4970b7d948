"""The facts of this node that a container's configuration depends on."""

from __future__ import annotations

import ipaddress
import os
import re
import resource
import shutil
from pathlib import Path

from orchestrator.agent.runtime.base import RuntimeFailure
from orchestrator.agent.runtime.capabilities import own_capabilities
from orchestrator.agent.runtime.cgroups import CgroupMode, Hierarchy
from orchestrator.agent.runtime.facts import NodeFacts
from orchestrator.agent.runtime.priority import is_usual
from orchestrator.model.confinement import RUNTIMES, ULIMITS

RESOLVER = Path("/etc/resolv.conf")
_RESOLVERS = (RESOLVER, Path("/run/systemd/resolve/resolv.conf"))
"""The second names the real servers where the first names only systemd's local stub."""


def read_node_facts(hierarchy: Hierarchy) -> NodeFacts:
    """Read them from the kernel and `/etc`."""
    nameservers, search = read_resolver()
    held = frozenset(own_capabilities())
    unbound = "CAP_SYS_RESOURCE" in held
    return NodeFacts(
        swap_accounting=_swap_accounting(hierarchy),
        least_oom_score=-1000 if unbound else _least_oom_score(),
        niced=not is_usual(),
        nameservers=nameservers,
        search=search,
        capabilities=held,
        hard_limits={} if unbound else _hard_limits(),
        cpus=frozenset(os.sched_getaffinity(0)),
    )


def read_resolver() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The node's name servers, but for those on its loopback interface, and its search domains."""
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


def _least_oom_score() -> int:
    """0, or the agent's own if that is lower or cannot be lowered; which is found by trying."""
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
    """The path of the OCI runtime that a container asks for. Raises RuntimeFailure."""
    found = shutil.which(name) if name in RUNTIMES else None
    if found is None:
        there = [known for known in RUNTIMES if shutil.which(known)]
        raise RuntimeFailure(f"this node has no OCI runtime `{name}`; it has {', '.join(there)}")
    return found


def parse_resolver(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Name servers and search domains of a resolv.conf(5); servers that only the host itself
    reaches (loopback) are left out, since a container has a loopback of its own."""
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
    """Whether only the host, or the container, itself reaches a name server."""
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
        raise RuntimeFailure(f"`{name}` is not installed on this node; install it, or say where")
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
            "enter_private_mounts must come first"
        )
