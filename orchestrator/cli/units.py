"""The daemons' systemd units: where there are some, `orc cluster init` and `join` start them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from orchestrator.cli.groups import CliError

_RUNS = Path("/run/systemd/system")
_FOLDERS = tuple(map(Path, ("/etc/systemd/system", "/usr/lib/systemd/system")))


def started(unit: str) -> bool:
    """Start a unit, now and at each boot; False where systemd does not run or has no such unit.

    Raises CliError with what systemd says."""
    known = any((folder / unit).exists() for folder in _FOLDERS)
    if not _RUNS.is_dir() or not known or os.geteuid() != 0:
        return False
    done = subprocess.run(
        ["systemctl", "enable", "--now", "--quiet", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise CliError(
            f"{unit} did not start: {said[0] if said else 'systemctl failed'}; "
            f"see 'journalctl -u {unit}'"
        )
    return True
