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
        system=_system(),
        python=platform.python_version(),
        versions={name: version for name, version in found.items() if version},
    )


def load() -> float:
    """The load average of the last minute: how many processes wanted a core."""
    return os.getloadavg()[0]


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
            ("system", machine.system),
            ("Orc", f"{orchestrator.__version__} on Python {machine.python}"),
            ("tools", versions),
            ("load before, after", f"{load_before:.2f}, {load_after:.2f}"),
        ),
    )
