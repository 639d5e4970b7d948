# SPDX-License-Identifier: Apache-2.0
"""Detection of the cgroup version."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.agent.runtime.interface import (
    RuntimeFailure,
)
from orchestrator.agent.runtime.resources.cgroups import CgroupMode, parse_mounts

TMPFS = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755"
V1 = (
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
    "39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
    "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd"
)
UNIFIED = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
V2 = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate"
OTHER = "22 1 254:0 / / rw - ext4 /dev/vda rw"


def test_detecting_the_cgroup_version() -> None:
    v1 = parse_mounts("\n".join((OTHER, TMPFS, V1)))
    assert v1.mode is CgroupMode.V1
    assert v1.memory == Path("/sys/fs/cgroup/memory")
    assert v1.tracking == Path("/sys/fs/cgroup/pids")
    hybrid = parse_mounts("\n".join((OTHER, TMPFS, V1, UNIFIED)))
    assert hybrid.mode is CgroupMode.HYBRID
    assert hybrid.unified == Path("/sys/fs/cgroup/unified")
    v2 = parse_mounts("\n".join((OTHER, V2)))
    assert v2.mode is CgroupMode.V2
    assert v2.roots == (Path("/sys/fs/cgroup"),)


@pytest.mark.parametrize("mounts", [OTHER, f"{OTHER}\n{TMPFS}"])
def test_a_host_without_cgroups(mounts: str) -> None:
    with pytest.raises(RuntimeFailure, match="no cgroup file system is mounted"):
        parse_mounts(mounts)
