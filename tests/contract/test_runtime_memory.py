# SPDX-License-Identifier: Apache-2.0
"""Which container the kernel kills when its node runs out of memory."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
from runtimehost import CrunWorld, private, remove_leftovers

from orchestrator.agent.runtime.interface import Container, Started
from orchestrator.agent.runtime.resources.cgroups import CgroupMode, Cgroups, detect
from orchestrator.model.specs import Resources

pytestmark = pytest.mark.root

MIB = 1 << 20
GROWS = "trap 'x=$x$x; echo grown' USR1; x=0123456789abcdef"
"""Doubles what it holds at a signal."""
HOLDS = "for _ in $(seq %d); do x=$x$x; done"


@private
async def test_containers_without_a_reservation_are_killed_first(tmp_path: Path) -> None:
    """The node is the cgroup above its containers, with a limit: the kernel chooses among them as
    it does among those of a node."""
    remove_leftovers()
    world = CrunWorld(tmp_path)

    def container(name: str, doublings: int, reserved: int = 0, limit: int = 0) -> Container:
        text = f"{GROWS}; {HOLDS % doublings}; echo ready; while :; do sleep 0.02; done"
        made = world.container(name, "sh", "-c", text)
        spec = replace(
            made.spec, reservation=Resources(memory=reserved), limit=Resources(memory=limit)
        )
        return replace(made, spec=spec)

    async with world, world.runtime() as runtime:
        for each in (
            container("guaranteed", 20, 512 * MIB, 512 * MIB),
            container("burstable", 22, 64 * MIB),
            container("besteffort", 22, limit=512 * MIB),
        ):
            await runtime.create(each)
            await runtime.start(each.id)
            await world.ready(runtime, each.id)
        node = Cgroups(detect(), world.parent).folder("memory", "besteffort").parent
        v2 = detect().mode is CgroupMode.V2
        used = int((node / ("memory.current" if v2 else "memory.usage_in_bytes")).read_text())
        limit = node / ("memory.max" if v2 else "memory.limit_in_bytes")
        limit.write_text(str(used + 24 * MIB))
        # The guaranteed one needs more than there is: the others make room, in this order.
        for turn, loser in enumerate(("besteffort", "burstable"), start=1):
            await runtime.kill("guaranteed", signal.SIGUSR1)
            await world.ready(runtime, "guaranteed", b"grown", times=turn)
            ended = await runtime.wait(loser)
            assert ended.oom_killed
            assert "its node ran out of memory" in ended.message
            assert isinstance(await runtime.adopt("guaranteed"), Started)
            if loser == "besteffort":
                assert isinstance(await runtime.adopt("burstable"), Started)
