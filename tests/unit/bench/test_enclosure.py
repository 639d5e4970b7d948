# SPDX-License-Identifier: Apache-2.0
"""What is enclosed ends with its parent, and all that it has started does."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from tests.enclosure import enclosed

PARENT = """
import subprocess, sys
from tests.enclosure import enclosed
# What a test runs: it starts a daemon, mounts something, and waits.
inner = f"mount -t tmpfs {sys.argv[1]} /mnt; setsid sleep 1000.{sys.argv[1]} & echo up; wait"
subprocess.run(enclosed(["sh", "-c", inner]))
"""


def daemons(mark: str) -> list[Path]:
    """The processes of that mark, wherever they are."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:2] == [b"sleep", f"1000.{mark}".encode()]:
            found.append(folder)
    return found


@pytest.mark.root
def test_killed_parent_ends_all_children() -> None:
    mark = str(uuid.uuid4().int)[:12]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, mark], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        assert parent.stdout.readline() == "up\n"
        while not daemons(mark):
            time.sleep(0.01)  # its shell has begun it, and goes on
        parent.kill()
        # The pipe is at its end when the last that could write to it has gone.
        assert parent.stdout.read() == ""
    assert daemons(mark) == []
    assert mark not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.root
def test_the_exit_status_of_the_command_is_returned() -> None:
    assert subprocess.run(enclosed(["sh", "-c", "exit 7"], "--net")).returncode == 7
