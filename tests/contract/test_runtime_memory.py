# SPDX-License-Identifier: Apache-2.0
"""Which container the kernel kills when its node runs out of memory."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from runtimehost import CrunWorld, private, remove_leftovers

from orchestrator.agent.runtime.interface import Container
from orchestrator.agent.runtime.resources.cgroups import CgroupMode, Cgroups, detect
from orchestrator.model.specs import Resources

pytestmark = pytest.mark.root

MIB = 1 << 20
HOLD = "x=0123456789abcdef; for _ in $(seq 20); do x=$x$x; done"
"""Holds 16 MiB and more."""
GROW = "trap 'while :; do x=$x$x; done' USR1"


@private
async def test_containers_without_a_reservation_are_killed_first(tmp_path: Path) -> None:
    """The node is the cgroup above its containers, with a limit: the kernel chooses among them as
    it does among those of a node."""
    remove_leftovers()
    world = CrunWorld(tmp_path)
    text = f"{GROW}; {HOLD}; echo ready; while :; do sleep 0.02; done"

    def container(name: str, reserved: int = 0, limit: int = 0) -> Container:
        made = world.container(name, "sh", "-c", text)
        spec = replace(
            made.spec, reservation=Resources(memory=reserved), limit=Resources(memory=limit)
        )
        return replace(made, spec=spec)

    async with world, world.runtime() as runtime:
        for each in (
            container("guaranteed", 512 * MIB, 512 * MIB),
            container("burstable", 64 * MIB),
            container("besteffort", limit=512 * MIB),
        ):
            await runtime.create(each)
            await runtime.start(each.id)
            await world.ready(runtime, each.id)
        node = Cgroups(detect(), world.parent).folder("memory", "besteffort").parent
        v2 = detect().mode is CgroupMode.V2
        used = int((node / ("memory.current" if v2 else "memory.usage_in_bytes")).read_text())
        limit = node / ("memory.max" if v2 else "memory.limit_in_bytes")
        limit.write_text(str(used + 8 * MIB))
        # The guaranteed one takes what there is; the others make room, in this order.
        await runtime.kill("guaranteed", signal.SIGUSR1)
        async with asyncio.TaskGroup() as group:
            ends = {
                name: group.create_task(runtime.wait(name)) for name in ("besteffort", "burstable")
            }
        first, second = (ends[name].result() for name in ("besteffort", "burstable"))
        assert first.oom_killed
        assert second.oom_killed
        assert first.finished_at < second.finished_at
