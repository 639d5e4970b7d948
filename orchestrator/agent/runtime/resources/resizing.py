# SPDX-License-Identifier: Apache-2.0
"""Changing the limits of a running container, all of them or none.

The OCI runtime writes the cgroup's files one by one and stops at the first that the kernel refuses.
Then the previous limits are written again. The limits in force are recorded in the bundle; the
record is removed while they change, so that an agent that is killed in between applies them again.

Source: kernel, admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst. Version 1 refuses a memory limit
below the usage (EBUSY); version 2 accepts it and kills processes, so the usage is checked first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from orchestrator.agent.runtime.engine.bundle import ContainerHandle
from orchestrator.agent.runtime.engine.program_errors import NO_MESSAGE
from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.runtime.resources import cgroup_limits
from orchestrator.agent.runtime.resources.cgroups import CgroupMode, Cgroups
from orchestrator.agent.runtime.spec.node_facts import NodeFacts
from orchestrator.linux import spawn
from orchestrator.model.specs import TaskSpec
from orchestrator.model.units import format_memory

_RECLAIMABLE = ("inactive_file", "active_file", "slab_reclaimable")
"""Of `memory.stat` (version 2): memory that the kernel reclaims before it kills a process."""


async def resize(access: ContainerHandle, spec: TaskSpec, node: NodeFacts) -> None:
    """Apply the limits of `spec` to a running container. Raises RuntimeFailure, and then the limits
    are unchanged."""
    access.running()
    before = access.bundle.limits()
    wanted = cgroup_limits.changes(spec, node, before)
    if wanted == before:
        return
    memory = spec.limit.memory
    if access.cgroups.hierarchy.mode is CgroupMode.V2:
        _check_memory(access.cgroups, access.container_id, memory)
    access.bundle.forget_limits()
    try:
        await _update(access, wanted)
    except RuntimeFailure:
        if before is not None:
            with suppress(RuntimeFailure):
                await _update(access, before)
                access.bundle.write_limits(before)
        _check_memory(access.cgroups, access.container_id, memory)
        raise
    access.bundle.write_limits(wanted)


async def _update(access: ContainerHandle, wanted: Mapping[str, Any]) -> None:
    with spawn.descriptors() as owned:
        file = owned.memory_file()
        os.write(file, json.dumps(wanted).encode())
        argv: Sequence[str] = (
            *(*access.runtime, "update", "--resources", f"/proc/self/fd/{file}"),
            access.container_id,
        )
        status, stderr = await spawn.run(argv, pass_fds=(file,))
    if status != 0:
        lines = [line.strip() for line in stderr.splitlines() if line.strip()]
        raise RuntimeFailure(f"the kernel refuses the limits ({(lines or [NO_MESSAGE])[0]})")


def _check_memory(cgroups: Cgroups, container_id: str, limit: int) -> None:
    if not limit:
        return
    used = _memory_in_use(cgroups, container_id)
    if used > limit:
        raise RuntimeFailure(
            f"it uses {format_memory(used)} of memory, so its limit cannot be "
            f"{format_memory(limit)}; give more, or stop it first"
        )


def _memory_in_use(cgroups: Cgroups, container_id: str) -> int:
    """Bytes that the kernel cannot reclaim without killing (version 2); on version 1, which has
    tried to reclaim, the usage. 0: unknown."""
    folder = cgroups.folder("memory", container_id)
    try:
        if cgroups.hierarchy.mode is not CgroupMode.V2:
            return int((folder / "memory.usage_in_bytes").read_text())
        used = int((folder / "memory.current").read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    stat = dict(line.split(" ", 1) for line in lines)
    return used - sum(int(stat.get(key, 0)) for key in _RECLAIMABLE)
