# SPDX-License-Identifier: Apache-2.0
"""An agent that is killed at any step of a container's life: see `crashwalk.py`, the test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.enclosure import run_enclosed

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
def test_an_agent_killed_at_any_step_neither_loses_nor_leaks(
    tmp_path: Path, way: str, part: int, parts: int, among: set[str], least: int
) -> None:
    program = Path(__file__).with_name("crashwalk.py")
    done = run_enclosed(program, tmp_path, way, part, parts)
    tried = json.loads(done.stdout.splitlines()[-1])
    # The steps are found, not listed; these must be among them.
    assert among <= set(tried)
    assert len(tried) >= least
