# SPDX-License-Identifier: Apache-2.0
"""What the limits of a build are in the files of both versions of control groups."""

from __future__ import annotations

from orchestrator.agent.builds.build_cgroup import BuildLimits, _v1, _v2

SOME = BuildLimits(
    memory=1 << 30,
    cpu_shares=1024,
    cpu_quota=150_000,
    cpuset_cpus="0-1",
    pids=4096,
)


def test_limits_on_cgroup_version_2() -> None:
    assert _v2(SOME) == {
        "memory": [("memory.max", "1073741824"), ("memory.swap.max", "0")],
        "cpu": [("cpu.weight", "39"), ("cpu.max", "150000 100000")],
        "pids": [("pids.max", "4096")],
        "cpuset": [("cpuset.cpus", "0-1")],
    }
    swapping = _v2(
        BuildLimits(memory=1 << 20, memory_swap=3 << 20, cpu_quota=5000, cpu_period=8000)
    )
    assert swapping["memory"][1] == ("memory.swap.max", str(2 << 20))
    assert swapping["cpu"] == [("cpu.max", "5000 8000")]
    assert _v2(BuildLimits(memory=1, memory_swap=-1, pids=-1)) == {
        "memory": [("memory.max", "1"), ("memory.swap.max", "max")],
        "cpu": [],
        "pids": [("pids.max", "max")],
    }


def test_limits_on_cgroup_version_1() -> None:
    assert _v1(SOME) == {
        "memory": [
            ("memory.limit_in_bytes", "1073741824"),
            ("memory.memsw.limit_in_bytes", "1073741824"),
        ],
        "cpu": [
            ("cpu.shares", "1024"),
            ("cpu.cfs_period_us", "100000"),
            ("cpu.cfs_quota_us", "150000"),
        ],
        "pids": [("pids.max", "4096")],
        "cpuset": [("cpuset.cpus", "0-1")],
    }
    assert _v1(BuildLimits(memory=1, memory_swap=-1))["memory"][1][1] == "-1"
