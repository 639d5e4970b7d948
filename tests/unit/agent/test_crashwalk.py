"""An agent that is killed at any step of a container's life: see `crashwalk.py`, the test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.root
def test_an_agent_killed_at_any_step_loses_and_leaves_nothing(tmp_path: Path) -> None:
    program = Path(__file__).with_name("crashwalk.py")
    done = subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, str(program), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tried = json.loads(done.stdout.splitlines()[-1])
    # The steps are found, not listed; these must be among them.
    for step in ("exec conmon", "exec crun start", "exec crun delete", "put_released 1"):
        assert step in tried["container"]
    assert len(tried["container"]) > 40
