"""What this host is, as the managers see it in `orc node ls`."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

from orchestrator import __version__
from orchestrator.model.objects import NodeDescription
from orchestrator.model.specs import SHARES_PER_CORE, Resources

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MEMINFO = Path("/proc/meminfo")
_OS_RELEASE = Path("/etc/os-release")


def describe(
    *,
    address: str,
    blob_port: int,
    cgroup: str,
    runtime: str,
    labels: Mapping[str, str],
    offered: Resources,
) -> NodeDescription:
    """The node's description. `offered` stands in for what the host has, where it is not 0:
    shares (1024 a core) and bytes of memory."""
    cores = len(os.sched_getaffinity(0))
    return NodeDescription(
        hostname=os.uname().nodename,
        address=address,
        resources=Resources(
            shares=offered.shares or SHARES_PER_CORE * cores,
            memory=offered.memory or total_memory(_MEMINFO.read_text()),
        ),
        kernel=os.uname().release,
        os=os_name(_OS_RELEASE.read_text() if _OS_RELEASE.exists() else ""),
        arch=platform.machine(),
        cgroup=cgroup,
        runtime=runtime,
        version=__version__,
        labels=dict(labels),
        blob_port=blob_port,
    )


def boot_id() -> str:
    """Names this boot of the host (random(4)): no container outlives a change of it."""
    return _BOOT_ID.read_text().strip()


def total_memory(meminfo: str) -> int:
    """Bytes of `MemTotal` in the text of /proc/meminfo, whose `kB` are KiB (proc(5))."""
    match = re.search(r"^MemTotal:\s+(\d+) kB$", meminfo, re.MULTILINE)
    return int(match[1]) << 10 if match else 0


def os_name(os_release: str) -> str:
    """`PRETTY_NAME` in the text of /etc/os-release (os-release(5)); else `Linux`."""
    match = re.search(r"^PRETTY_NAME=(.*)$", os_release, re.MULTILINE)
    return match[1].strip().strip("\"'") if match else "Linux"
