# SPDX-License-Identifier: Apache-2.0
"""A process that hangs, as a test wants it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def freeze(pid: int) -> None:
    """Stop a process until SIGCONT, and return when none of its threads runs any more.

    The signal alone is not enough: until the thread that takes it has got a processor, the others
    go on.
    """
    os.kill(pid, signal.SIGSTOP)
    while any(_state(thread) not in "TZ" for thread in Path(f"/proc/{pid}/task").iterdir()):
        time.sleep(0.001)


def _state(thread: Path) -> str:
    """proc_pid_stat(5)."""
    try:
        return (thread / "stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:  # it has ended meanwhile
        return "Z"
