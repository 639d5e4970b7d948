# SPDX-License-Identifier: Apache-2.0
"""The cgroup of a build, which limits all of its processes together.

A build's processes end with the agent, also if that is killed, but a cgroup does not: the next
agent removes leftover ones.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.runtime.resources.cgroup_limits import MIN_MEMORY, QUOTA_PERIOD
from orchestrator.agent.runtime.resources.cgroups import BUILDS, CgroupMode, Cgroups
from orchestrator.agent.runtime.spec.node_facts import DEFAULT_PIDS_LIMIT
from orchestrator.model.units import format_memory

log = logging.getLogger(__name__)

_REMOVE_POLL = 0.01
"""Seconds between attempts to remove a cgroup whose last processes are ending."""
_REMOVE_TIMEOUT = 10.0
"""Seconds after which a cgroup is left to the next agent."""
_MIN_SHARES, _MAX_SHARES = 2, 262_144


@dataclass(frozen=True, slots=True)
class BuildLimits:
    """Limits of a build; 0 or empty: the default."""

    memory: int = 0
    """Bytes."""
    memory_swap: int = 0
    """Bytes of memory and swap together; 0: as `memory`; -1: no limit."""
    cpu_shares: int = 0
    """CPU weight; 1024 is the kernel's default."""
    cpu_quota: int = 0
    """Microseconds of CPU time in each `cpu_period`."""
    cpu_period: int = 0
    """Microseconds."""
    cpuset_cpus: str = ""
    """CPUs to run on, such as `0-1,3`."""
    pids: int = 0
    """Processes and threads; -1: no limit."""
    shm_size: int = 0
    """Bytes of /dev/shm in RUN."""
    ulimits: tuple[str, ...] = ()
    """NAME=SOFT:HARD, for RUN."""


@dataclass(frozen=True, slots=True)
class BuildGroup:
    """The cgroup of one build."""

    folders: tuple[Path, ...] = ()
    """One per hierarchy of controllers."""
    memory: int = 0
    """Its limit in bytes; 0: none."""


class BuildGroups:
    """Manages the cgroups of builds."""

    def __init__(self, cgroups: Cgroups, memory: int = 0) -> None:
        """`cgroups`: those of the containers, whose parent builds share. `memory`: the default
        limit in bytes; 0: no limit."""
        self._cgroups = replace(cgroups, parent=f"{cgroups.parent}/{BUILDS}")
        self._memory = memory

    @asynccontextmanager
    async def group(self, limits: BuildLimits) -> AsyncIterator[BuildGroup]:
        """A cgroup with these limits, whose processes are killed, and which is removed, at the end
        of the block. Raises ImageError."""
        limits = replace(
            limits,
            memory=limits.memory or self._memory,
            pids=limits.pids or DEFAULT_PIDS_LIMIT,
        )
        if 0 < limits.memory < MIN_MEMORY:
            raise ImageError(
                f"the memory limit of {limits.memory} bytes is too small for a build; "
                f"give at least {MIN_MEMORY >> 20} MiB"
            )
        name = uuid.uuid4().hex[:12]
        try:
            folders = self._make(name, limits)
            yield BuildGroup(folders, limits.memory)
        finally:
            await asyncio.shield(self._remove(name))

    def out_of_memory(self, group: BuildGroup) -> bool:
        """Whether the OOM killer has killed a process of the build."""
        return bool(group.folders) and self._cgroups.oom_kills(group.folders[0].name) > 0

    async def recover(self) -> None:
        """Remove cgroups left by an earlier agent."""
        for name in self._cgroups.ids():
            await self._remove(name)

    def _make(self, name: str, limits: BuildLimits) -> tuple[Path, ...]:
        v2 = self._cgroups.hierarchy.mode is CgroupMode.V2
        found: dict[Path, None] = {}
        for controller, files in (_v2 if v2 else _v1)(limits).items():
            if not v2 and controller not in self._cgroups.hierarchy.controllers:
                continue
            folder = self._cgroups.folder(controller, name)
            try:
                self._make_folder(controller, folder, v2=v2)
                for file, text in files:
                    # The files for swap exist only with swap accounting.
                    if ("swap" not in file and "memsw" not in file) or (folder / file).exists():
                        (folder / file).write_text(text)
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise ImageError(
                    f"this build's {controller} limit cannot be set on this node: {reason}"
                ) from error
            found[folder] = None
        return tuple(found)

    def _make_folder(self, controller: str, folder: Path, *, v2: bool) -> None:
        """Make a folder and its parents, with the controller enabled."""
        root = self._cgroups.hierarchy.controllers.get(controller, self._cgroups.hierarchy.tracking)
        folder.mkdir(parents=True, exist_ok=True)
        above = [each for each in reversed(folder.parents) if each.is_relative_to(root)]
        if v2:
            for each in above:
                (each / "cgroup.subtree_control").write_text(f"+{controller}")
        elif controller == "cpuset":
            for parent, child in zip(above, (*above[1:], folder), strict=True):
                for file in ("cpuset.cpus", "cpuset.mems"):
                    if not (child / file).read_text().strip():
                        (child / file).write_text((parent / file).read_text())

    async def _remove(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + _REMOVE_TIMEOUT
        self._cgroups.kill(name)
        while not self._cgroups.remove(name):
            if loop.time() > until:
                log.warning("the cgroup of a build is still in use", extra={"group": name})
                return
            await asyncio.sleep(_REMOVE_POLL)
            self._cgroups.kill(name)
        self._cgroups.remove_empty()


_Files = list[tuple[str, str]]


def _shares(limits: BuildLimits) -> int:
    return min(max(limits.cpu_shares, _MIN_SHARES), _MAX_SHARES)


def _v1(limits: BuildLimits) -> dict[str, _Files]:
    """Files and values for each controller on version 1."""
    memory: _Files = []
    if limits.memory:
        swap = limits.memory_swap or limits.memory
        memory = [
            ("memory.limit_in_bytes", str(limits.memory)),
            ("memory.memsw.limit_in_bytes", str(swap)),
        ]
    cpu: _Files = []
    if limits.cpu_shares:
        cpu.append(("cpu.shares", str(_shares(limits))))
    if limits.cpu_quota:
        cpu.append(("cpu.cfs_period_us", str(limits.cpu_period or QUOTA_PERIOD)))
        cpu.append(("cpu.cfs_quota_us", str(limits.cpu_quota)))
    found = {"memory": memory, "cpu": cpu, "pids": [("pids.max", _maximum(limits.pids))]}
    if limits.cpuset_cpus:
        found["cpuset"] = [("cpuset.cpus", limits.cpuset_cpus)]
    return found


def _v2(limits: BuildLimits) -> dict[str, _Files]:
    """Files and values for each controller on version 2."""
    memory: _Files = []
    if limits.memory:
        swap = limits.memory_swap or limits.memory
        memory = [
            ("memory.max", str(limits.memory)),
            ("memory.swap.max", "max" if swap < 0 else str(max(0, swap - limits.memory))),
        ]
    cpu: _Files = []
    if limits.cpu_shares:
        # As OCI runtimes convert it: from 2…262144 to 1…10000.
        cpu.append(("cpu.weight", str(1 + (_shares(limits) - 2) * 9999 // 262_142)))
    if limits.cpu_quota:
        cpu.append(("cpu.max", f"{limits.cpu_quota} {limits.cpu_period or QUOTA_PERIOD}"))
    found = {"memory": memory, "cpu": cpu, "pids": [("pids.max", _maximum(limits.pids))]}
    if limits.cpuset_cpus:
        found["cpuset"] = [("cpuset.cpus", limits.cpuset_cpus)]
    return found


def _maximum(number: int) -> str:
    return "max" if number < 0 else str(number)


def out_of_memory(group: BuildGroup) -> str:
    """The error of a build that exceeded its memory limit."""
    limit = f" (limit {format_memory(group.memory)})" if group.memory else ""
    return f"the build ran out of memory{limit}; give more with --memory"
