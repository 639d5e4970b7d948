# SPDX-License-Identifier: Apache-2.0
"""Identity of processes, and paths in trees that are not trusted."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from orchestrator.linux.openat import read_in_root
from orchestrator.linux.processes import ProcessIdentity, identify


def test_a_process_is_identified_by_its_start_time() -> None:
    child = subprocess.Popen(["sleep", "60"])
    found = identify(child.pid)
    assert found is not None
    assert found.alive()
    reused = ProcessIdentity(child.pid, found.start - 1)
    assert not reused.alive()
    assert reused.open() is None
    reused.send(signal.SIGKILL)
    assert found.alive()
    found.send(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    # It is a zombie now: its pid is there, and it has ended.
    assert identify(child.pid) is None
    child.wait()
    assert found.open() is None
    found.send(signal.SIGKILL)


def test_links_in_an_image_cannot_leave_it(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("secret")
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "real").write_text("inside")
    (root / "etc/absolute").symlink_to("/real")
    (root / "etc/escape").symlink_to("../../outside")
    (root / "etc/host").symlink_to(tmp_path / "outside")
    os.mkfifo(root / "etc/fifo")
    fd = os.open(root, os.O_PATH)
    try:
        assert read_in_root(fd, "/etc/absolute") == b"inside"
        for path in ("etc/escape", "etc/host", "../outside", "etc/fifo", "etc", "none"):
            assert read_in_root(fd, path) is None
        assert read_in_root(fd, "real", 3) == b"ins"
    finally:
        os.close(fd)
