# SPDX-License-Identifier: Apache-2.0
"""On what the figures were taken: without this no figure means anything."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orchestrator
from tests.bench.tables import Table

DISK = Path("/var/lib")
"""Where the dev cluster is; Docker's folders are in /var/tmp."""

_TOOLS: dict[str, Sequence[str]] = {
    "crun": ("crun", "--version"),
    "conmon": ("conmon", "--version"),
    "etcd": ("etcd", "--version"),
    "dockerd": ("dockerd", "--version"),
    "runc": ("runc", "--version"),
    "iperf3": ("iperf3", "--version"),
}


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine and what is installed on it."""

    cpu: str
    cores: int
    memory: int
    """Bytes."""
    kernel: str
    disk: str
    """The file system of containers and state."""
    system: str
    python: str
    versions: dict[str, str]
    """Of the tools that are installed."""


def describe() -> Machine:
    """This machine."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    found = {name: _version(argv) for name, argv in _TOOLS.items()}
    return Machine(
        cpu=cpu[1] if cpu else platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        disk=_disk(DISK),
        system=_system(),
        python=platform.python_version(),
        versions={name: version for name, version in found.items() if version},
    )


def load() -> float:
    """The load average of the last minute: how many processes wanted a core."""
    return os.getloadavg()[0]


def _disk(folder: Path) -> str:
    """The kind of file system that a folder is on.

    An ext4 without a journal is told, since it makes files several times slower where many were
    deleted in the last minutes (`recently_deleted` in the kernel's fs/ext4/ialloc.c), which is
    what containers that come and go do.
    """
    device = os.stat(folder).st_dev
    found = re.search(
        rf"^\d+ \d+ {os.major(device)}:{os.minor(device)} .* - (\S+) (\S+) ",
        Path("/proc/self/mountinfo").read_text(),
        re.M,
    )
    if found is None:
        return "unknown"
    kind, source = found[1], Path(found[2]).name
    journal = Path(f"/sys/fs/{kind}/{source}/journal_task")
    if journal.exists() and journal.read_text().strip() == "<none>":
        return f"{kind} without a journal (slow to make files where many were deleted)"
    return kind


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return platform.system()


def _version(argv: Sequence[str]) -> str:
    """The first thing that looks like a version; empty when the tool is not there."""
    if shutil.which(argv[0]) is None:
        return ""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10)
    found = re.search(r"\d+\.\d+[\w.+~-]*", done.stdout + done.stderr)
    return found[0] if found else "?"


def report(machine: Machine, load_before: float, load_after: float) -> Table:
    """The machine as a table; pure."""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return Table(
        "Machine",
        ("what", "value"),
        (
            ("CPU", f"{machine.cpu}, {machine.cores} cores"),
            ("memory", f"{machine.memory / (1 << 30):.1f} GiB"),
            ("kernel", machine.kernel),
            ("file system", machine.disk),
            ("system", machine.system),
            ("Orc", f"{orchestrator.__version__} on Python {machine.python}"),
            ("tools", versions),
            ("load before, after", f"{load_before:.2f}, {load_after:.2f}"),
        ),
    )
