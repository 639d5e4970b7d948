# SPDX-License-Identifier: Apache-2.0
"""Commands in separate namespaces, of which nothing remains when their parent is killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def enclosed(command: Sequence[str], *namespaces: str) -> list[str]:
    """The command in new PID and mount namespaces, and in further ones such as `--net`.

    When it ends, or its parent ends for any reason, the kernel ends all of its descendants,
    including daemons, and removes their mounts.
    """
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", *namespaces, "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("tini", "-s", "--"),  # process 1, which reaps daemons
        *command,
    ]


def run_enclosed(
    program: Path, *arguments: object, namespaces: Sequence[str] = ("--net",)
) -> subprocess.CompletedProcess[str]:
    """Run a Python program enclosed, to its end. If it fails, so does the test, with its stderr."""
    command = [sys.executable, str(program), *map(str, arguments)]
    done = subprocess.run(
        enclosed(command, *namespaces), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done
