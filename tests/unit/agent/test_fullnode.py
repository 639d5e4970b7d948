"""The agent's process on a disk that a container fills: see `fullnode.py`, which is the test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.enclosure import enclosed


@pytest.mark.root
def test_a_full_disk_ends_neither_the_agent_nor_what_runs(tmp_path: Path) -> None:
    program = Path(__file__).with_name("fullnode.py")
    done = subprocess.run(
        enclosed([sys.executable, str(program), str(tmp_path)], "--net"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
