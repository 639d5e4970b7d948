# SPDX-License-Identifier: Apache-2.0
"""The last hour of a node and its containers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.agent.runtime.resources.cgroups import CgroupMode, Cgroups, Hierarchy
from orchestrator.agent.telemetry.resource_usage import (
    HISTORY_PERIOD,
    HISTORY_SAMPLES,
    UsageHistory,
)
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import TaskStatus
from orchestrator.pb import dispatch_pb2, system_pb2


class World:
    """One container, whose cgroup is a folder, and a clock."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "orc" / "t1"
        self.folder.mkdir(parents=True)
        self.now = 1000.0
        self.runners: dict[str, Any] = {"t1": None}
        self.run(pid=7)
        cgroups = Cgroups(Hierarchy(CgroupMode.V2, (root,), root, root), "/orc")
        access: Any = SimpleNamespace(cgroups=cgroups)
        self.history = UsageHistory(
            self.runners, lambda task_id: access, lambda: self.now, lambda: self.now
        )

    def run(self, pid: int) -> None:
        status = TaskStatus(TaskState.RUNNING, pid=pid)
        self.runners["t1"] = SimpleNamespace(status=status)

    def sample(self, cpu: float, memory: int) -> None:
        (self.folder / "cpu.stat").write_text(f"usage_usec {cpu * 1e6:.0f}\n")
        (self.folder / "memory.current").write_text(f"{memory}\n")
        self.history.sample()
        self.now += HISTORY_PERIOD

    def told(self, task_id: str = "t1") -> Any:
        order = dispatch_pb2.OpenTunnel(history=system_pb2.HistoryOrder(task_id=task_id))
        group: Any = None
        return asyncio.run(self.history.serve(None, order, group)).history


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_cpu_time_is_reported_in_cores(world: World) -> None:
    world.sample(cpu=10.0, memory=100)
    world.sample(cpu=17.5, memory=200)
    world.sample(cpu=17.5, memory=300)
    told = world.told()
    assert list(told.at) == [1015.0, 1030.0]
    assert list(told.cores) == pytest.approx([0.5, 0.0])
    assert list(told.memory) == [200, 300]


def test_an_hour_is_kept(world: World) -> None:
    for count in range(HISTORY_SAMPLES + 20):
        world.sample(cpu=count, memory=1)
    assert len(world.told().at) == len(world.told("").at) == HISTORY_SAMPLES
    assert world.told().at[-1] == world.now - HISTORY_PERIOD


def test_a_restarted_container_resets_its_counters(world: World) -> None:
    world.sample(cpu=50.0, memory=1)
    world.run(pid=8)
    world.sample(cpu=1.0, memory=1)
    world.sample(cpu=2.5, memory=1)
    assert list(world.told().cores) == pytest.approx([0.1])


def test_removed_containers_are_forgotten_and_unknown_ones_have_no_history(world: World) -> None:
    world.sample(cpu=1.0, memory=1)
    world.sample(cpu=2.0, memory=1)
    del world.runners["t1"]
    world.history.sample()
    assert not world.told().at
    assert not world.told("t9").at


def test_the_node_itself(world: World) -> None:
    world.sample(cpu=1.0, memory=1)
    world.sample(cpu=1.0, memory=1)
    told = world.told("")
    assert len(told.at) == 1
    assert told.memory[0] > 0
