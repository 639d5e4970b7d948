# SPDX-License-Identifier: Apache-2.0
"""Files are replaced whole, with mode and owner, or stay as they were."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.linux.atomicfile import write_file


def test_content_and_mode_are_independent_of_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    before = os.umask(0o077)
    try:
        write_file(path, "one", mode=0o644)
        assert (path.read_text(), path.stat().st_mode & 0o7777) == ("one", 0o644)
        write_file(path, b"two")
    finally:
        os.umask(before)
    assert (path.read_bytes(), path.stat().st_mode & 0o7777) == (b"two", 0o600)
    assert os.listdir(tmp_path) == ["record.json"]


@pytest.mark.root
def test_owner(tmp_path: Path) -> None:
    write_file(tmp_path / "secret", "text", owner=(1000, 1001), mode=0o440)
    status = (tmp_path / "secret").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (1000, 1001, 0o440)


def test_a_link_left_as_the_draft_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / ".record.new").symlink_to(victim)
    write_file(tmp_path / "record", "text")
    assert (victim.read_text(), (tmp_path / "record").read_text()) == ("untouched", "text")


def test_a_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    """A real error of the kernel: no file may be longer than a page."""
    path = tmp_path / "record"
    write_file(path, "old")
    program = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from orchestrator.linux.atomicfile import write_file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: write_file(Path(sys.argv[1]), bytes(10_000))\n"
        "except OSError as error: sys.exit(error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode == errno.EFBIG
    assert (path.read_text(), os.listdir(tmp_path)) == ("old", ["record"])


def test_file_and_folder_are_flushed_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a loss of power may find: the content is on the disk before the name, and the name
    before this returns."""
    calls = []
    fsync = os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (calls.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))[1],
    )
    original = Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (calls.append("rename"), original(self, to))[1]
    )
    write_file(tmp_path / "record", "text")
    assert calls == [f"{tmp_path}/.record.new", "rename", str(tmp_path)]
