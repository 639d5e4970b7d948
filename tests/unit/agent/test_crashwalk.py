"""An agent that is killed at any step of a container's life: see `crashwalk.py`, the test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.enclosure import enclosed

PARTS = 4
"""Of a container's life, which has many steps: each part is a test of its own."""
LIFE = {"exec conmon", "exec crun start", "exec crun delete", "put_released 1"}


@pytest.mark.root
@pytest.mark.parametrize(
    ("way", "part", "parts", "among", "least"),
    [
        *(("container", part, PARTS, LIFE, 41) for part in range(PARTS)),
        ("restarted", 0, 1, {"put_renewed 1", "put_released 1"}, 5),
        ("replica", 0, 1, {"put_status 1", "put_released 1"}, 5),
    ],
)
def test_an_agent_killed_at_any_step_loses_and_leaves_nothing(
    tmp_path: Path, way: str, part: int, parts: int, among: set[str], least: int
) -> None:
    program = Path(__file__).with_name("crashwalk.py")
    done = subprocess.run(
        enclosed(
            [sys.executable, str(program), str(tmp_path), way, str(part), str(parts)], "--net"
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tried = json.loads(done.stdout.splitlines()[-1])
    # The steps are found, not listed; these must be among them.
    assert among <= set(tried)
    assert len(tried) >= least
