# SPDX-License-Identifier: Apache-2.0
"""What a copy of an image's folder keeps of its files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from orchestrator.agent.volumes.copyup_program import copy_tree

pytestmark = pytest.mark.root


def test_files_of_every_kind_are_copied_as_they_are(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "folder").mkdir(parents=True)
    target.mkdir()
    (source / "folder/setuid").write_text("program")
    os.chown(source / "folder/setuid", 7, 8)
    (source / "folder/setuid").chmod(0o4711)
    os.link(source / "folder/setuid", source / "again")
    (source / "link").symlink_to("/no/where")
    os.chown(source / "link", 7, 8, follow_symlinks=False)
    os.mkfifo(source / "fifo", 0o640)
    os.mknod(source / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    with (source / "sparse").open("wb") as file:
        file.seek(64 << 20)
        file.write(b"in the middle")
        file.truncate(128 << 20)
    for name in ("folder/setuid", "folder", "link", "fifo", "null", "sparse"):
        os.utime(source / name, ns=(1_234_567_890, 1_234_567_891), follow_symlinks=False)
    copy_tree(str(source), str(target))
    for name in ("folder/setuid", "again", "folder", "link", "fifo", "null", "sparse"):
        old, new = (os.lstat(place / name) for place in (source, target))
        for field in ("st_mode", "st_uid", "st_gid", "st_nlink", "st_rdev", "st_mtime_ns"):
            assert getattr(new, field) == getattr(old, field), (name, field)
    assert os.readlink(target / "link") == "/no/where"
    assert os.path.samefile(target / "again", target / "folder/setuid")
    assert (target / "again").read_text() == "program"
    sparse = target / "sparse"
    assert sparse.stat().st_size == 128 << 20
    assert sparse.stat().st_blocks * 512 < 1 << 20
    with sparse.open("rb") as file:
        file.seek(64 << 20)
        assert file.read(13) == b"in the middle"
