# SPDX-License-Identifier: Apache-2.0
"""What is mounted where, and whether it can be shown with a container's owners."""

from __future__ import annotations

from pathlib import Path

import pytest
from volumekit import private

from orchestrator.agent.volumes import mountpoints
from orchestrator.agent.volumes.mountpoints import Mounted, mount_at, mount_of, parse
from orchestrator.linux.libc import mount
from orchestrator.linux.mounts import unmount
from tests.deadfuse import DeadFileSystem

TABLE = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /mnt/a\040b rw - fuse.rclone remote: rw,user_id=0,group_id=0,allow_other
31 30 0:41 / /mnt/a\040b rw master:2 - tmpfs none rw,size=4k
32 22 254:1 /sub /srv rw,nosuid - nfs4 server:/ rw,vers=4.2
"""


def test_the_newest_mount_at_a_path_counts() -> None:
    table = parse(TABLE)
    assert mount_at(Path("/mnt/a b"), table) == Mounted(
        "/mnt/a b", "0:41", "tmpfs", frozenset({"rw", "size=4k"})
    )
    assert mount_at(Path("/mnt"), table) is None
    assert "allow_other" in table[1].options


def test_a_path_is_in_the_nearest_mount() -> None:
    table = parse(TABLE)
    for path, kind in (("/srv/x/y", "nfs4"), ("/srv", "nfs4"), ("/srvx", "ext4"), ("/", "ext4")):
        found = mount_of(Path(path), table)
        assert found is not None
        assert found.kind == kind


@pytest.mark.root
@private
async def test_kernel_file_systems_have_the_containers_owners(tmp_path: Path) -> None:
    mount("none", tmp_path, "tmpfs", 0, "size=64k")
    try:
        assert await mountpoints.maps_ids(tmp_path)
    finally:
        unmount(tmp_path)


@pytest.mark.root
@private
async def test_a_dead_fuse_file_system_cannot_map_ids(tmp_path: Path) -> None:
    dead = DeadFileSystem(tmp_path)
    try:
        assert not await mountpoints.maps_ids(tmp_path)
        found = mount_of(mountpoints.resolved(tmp_path), mountpoints.mounts())
        assert found is not None
        assert (found.point, found.kind) == (str(tmp_path), "fuse.dead")
    finally:
        dead.unmount()
