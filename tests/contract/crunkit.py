# SPDX-License-Identifier: Apache-2.0
"""Containers by crun as the kernel shows them."""

from __future__ import annotations

from pathlib import Path

from runtimehost import CrunWorld

from orchestrator.agent.runtime.engine.crun import CrunRuntime
from orchestrator.agent.runtime.interface import Container
from orchestrator.agent.runtime.resources.cgroups import CgroupMode, detect


async def running(runtime: CrunRuntime, world: CrunWorld, container: Container) -> int:
    """Start a container that says `ready`: its pid."""
    await runtime.create(container)
    started = await runtime.start(container.id)
    await world.ready(runtime, container.id)
    return started.pid


def limits(world: CrunWorld, container_id: str) -> dict[str, str]:
    """The cgroup files of a container by what they limit, on either version."""
    v2 = detect().mode is CgroupMode.V2
    names = (
        {
            "weight": "cpu.weight",
            "memory": "memory.max",
            "swap": "memory.swap.max",
            "pids": "pids.max",
            "quota": "cpu.max",
        }
        if v2
        else {
            "weight": "cpu/cpu.shares",
            "memory": "memory/memory.limit_in_bytes",
            "swap": "memory/memory.memsw.limit_in_bytes",
            "pids": "pids/pids.max",
            "quota": "cpu/cpu.cfs_quota_us",
        }
    )
    found = {}
    for key, name in names.items():
        tree, _, file = name.rpartition("/")
        path = Path("/sys/fs/cgroup", tree, world.parent[1:], container_id, file)
        found[key] = path.read_text().strip()
    return found


def cmdline(pid: int) -> bytes:
    """A process' command line; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
