# SPDX-License-Identifier: Apache-2.0
"""A short run: faults of every kind on three managers and three nodes, and no rule is broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.root
@pytest.mark.timeout(1200)
def test_three_minutes_of_faults_break_no_rule(tmp_path: Path) -> None:
    run = (sys.executable, "-m", "tests.chaos")
    size = ("--minutes", "3", "--managers", "3", "--nodes", "3")
    done = subprocess.run(
        # It ends, and removes its cluster, also if the tests are killed.
        ["setpriv", "--pdeathsig", "TERM", *run, *size, "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stderr[-6000:]}\n{done.stdout}"
