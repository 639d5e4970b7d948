# SPDX-License-Identifier: Apache-2.0
"""A container that races with the copy of an image's files into a volume that it has mounted."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

import pytest
from symlinkrace import swapping
from volumekit import private

from orchestrator.agent.volumes import copyup
from orchestrator.agent.volumes.volume_errors import VolumeError

pytestmark = pytest.mark.root

ROUNDS = 40
FILES = 100


@private
async def test_a_swapped_folder_leads_no_write_to_the_host(tmp_path: Path) -> None:
    layer, volume, host, scratch = (
        tmp_path / name for name in ("layer", "volume", "host", "scratch")
    )
    for folder in (layer / "data/sub", volume, host, scratch):
        folder.mkdir(parents=True)
    for number in range(FILES):
        (layer / f"data/sub/{number}").write_text("from the image")
    (host / "7").write_text("the host's own")
    mode = stat.S_IMODE(host.stat().st_mode)
    (layer / "data/sub").chmod(0o1777)
    filled = 0
    for _ in range(ROUNDS):
        with swapping(volume / "sub", host), suppress(VolumeError):
            await copyup.fill([layer], "/data", volume, scratch)
            filled += 1
        for left in volume.iterdir():
            if left.is_symlink():
                left.unlink()
            else:
                shutil.rmtree(left)
        assert os.listdir(host) == ["7"]
        assert (host / "7").read_text() == "the host's own"
        assert stat.S_IMODE(host.stat().st_mode) == mode
    assert os.listdir(scratch) == []
    # Without the attacker, all of it is there.
    await copyup.fill([layer], "/data", volume, scratch)
    assert len(os.listdir(volume / "sub")) == FILES


@private
async def test_a_link_in_the_volume_is_not_followed_out_of_it(tmp_path: Path) -> None:
    layer, volume, host, scratch = (
        tmp_path / name for name in ("layer", "volume", "host", "scratch")
    )
    for folder in (layer / "data/sub", volume, host, scratch):
        folder.mkdir(parents=True)
    (layer / "data/sub/file").write_text("from the image")
    (layer / "data/name").write_text("from the image")
    (volume / "sub").symlink_to(host)
    (volume / "name").symlink_to(host / "name")
    await copyup.fill([layer], "/data", volume, scratch)
    assert os.listdir(host) == []
    assert (volume / "sub/file").read_text() == "from the image"
    assert (volume / "name").read_text() == "from the image"
    assert not (volume / "sub").is_symlink()


@private
async def test_emptying_a_volume_removes_nothing_of_the_host(tmp_path: Path) -> None:
    volume, host = tmp_path / "volume", tmp_path / "host"
    host.mkdir()
    for number in range(FILES):
        (host / str(number)).write_text("the host's own")
    for _ in range(ROUNDS // 4):
        (volume / "sub").mkdir(parents=True)
        for number in range(FILES):
            (volume / f"sub/{number}").write_text("the container's")
        with swapping(volume / "sub", host), suppress(VolumeError):
            await copyup.empty(volume)
        assert len(os.listdir(host)) == FILES
        shutil.rmtree(volume)
