# SPDX-License-Identifier: Apache-2.0
"""The agent's process on a real kernel: see `realnode.py`, which is the test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from nodeworld import START

from tests.enclosure import run_enclosed


@pytest.mark.root
def test_a_node_through_its_whole_life(tmp_path: Path) -> None:
    done = run_enclosed(Path(__file__).with_name("realnode.py"), tmp_path)
    memory = json.loads(done.stdout.splitlines()[-1])
    assert memory["agent"] + memory["helper"] < 93, "MiB: an idle agent and its helper are small"


@pytest.mark.root
def test_a_removed_node_stops_its_tasks_and_leaves_the_cluster(tmp_path: Path) -> None:
    done = run_enclosed(Path(__file__).with_name("removednode.py"), tmp_path)
    assert "this node has left the cluster, its volumes are kept" in done.stderr
    again = subprocess.run(
        [sys.executable, "-c", START, f"--data-dir={tmp_path}/a"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 1
    assert "was removed from its cluster" in again.stderr
    assert "run 'orc cluster join" in again.stderr
