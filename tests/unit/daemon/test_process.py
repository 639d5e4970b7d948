# SPDX-License-Identifier: Apache-2.0
"""What daemons have of their own process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PRINT = "import os; print(os.getpriority(os.PRIO_PROCESS, 0))"
RAISE = "from orchestrator.daemon.process import raise_priority; raise_priority(-10); "
INHERIT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {PRINT!r}])"


@pytest.mark.root
def test_priority_is_inherited_by_children() -> None:
    done = subprocess.run([sys.executable, "-c", RAISE + INHERIT], capture_output=True, text=True)
    assert done.stdout == "-10\n", done.stderr


def test_priority_without_permission_is_unchanged() -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    command = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", sys.executable, "-c"]
    if os.geteuid() != 0:
        command = [sys.executable, "-c"]
    done = subprocess.run([*command, RAISE + PRINT], capture_output=True, text=True)
    assert done.stdout == f"{own}\n", done.stderr
