# SPDX-License-Identifier: Apache-2.0
"""The description of this host for managers, as in `orc node ls`."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Network
from pathlib import Path

from orchestrator import __version__
from orchestrator.model.compatibility.agent_features import AGENT_FEATURES
from orchestrator.model.nodes import REGISTRY_CREDENTIALS, NodeDescription
from orchestrator.model.specs import Resources
from orchestrator.model.units import SHARES_PER_CORE
from orchestrator.registries.credsstore import has_credentials

_MEMINFO = Path("/proc/meminfo")
_OS_RELEASE = Path("/etc/os-release")
_ROUTES, _ROUTES6 = Path("/proc/thread-self/net/route"), Path("/proc/thread-self/net/ipv6_route")
_OURS = "orc"
"""Prefixes of Orc's own interfaces."""


def describe(
    *,
    address: str,
    blob_port: int,
    metrics_port: int,
    cgroup: str,
    runtime: str,
    labels: Mapping[str, str],
    offered: Resources,
) -> NodeDescription:
    """The node's description. `offered`, where not 0, replaces the host's capacity: shares (1024 a
    core) and bytes of memory."""
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
        features=AGENT_FEATURES,
        metrics_port=metrics_port,
    )


async def runtime_version(program: str) -> str:
    """Name and version of an OCI runtime, such as `crun 1.21`; only its name if it does not report
    a version."""
    process = await asyncio.create_subprocess_exec(
        program,
        "--version",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    output, _ = await process.communicate()
    first = output.decode(errors="replace").partition("\n")[0]
    return first.replace(" version ", " ").strip() or Path(program).name


def total_memory(meminfo: str) -> int:
    """Bytes of `MemTotal` in the text of /proc/meminfo, whose `kB` are KiB (proc(5))."""
    match = re.search(r"^MemTotal:\s+(\d+) kB$", meminfo, re.MULTILINE)
    return int(match[1]) << 10 if match else 0


def os_name(os_release: str) -> str:
    """`PRETTY_NAME` in the text of /etc/os-release (os-release(5)); else `Linux`."""
    match = re.search(r"^PRETTY_NAME=(.*)$", os_release, re.MULTILINE)
    return match[1].strip().strip("\"'") if match else "Linux"


def registry_features() -> tuple[str, ...]:
    """The registry features of this host."""
    return (REGISTRY_CREDENTIALS,) if has_credentials() else ()


def routes() -> tuple[str, ...]:
    """The subnets that this host has routes to, except those of Orc's own networks."""
    return tuple(sorted({*_parsed(_ROUTES, _route4), *_parsed(_ROUTES6, _route6)}))


def _parsed(path: Path, parse: Callable[[str], str]) -> list[str]:
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    return [route for line in lines if (route := parse(line))]


def _route4(line: str) -> str:
    """The subnet of a line of /proc/net/route (proc(5)); empty if there is none."""
    fields = line.split()
    if len(fields) < 8 or fields[0] == "Iface" or fields[0].startswith(_OURS):
        return ""
    address, mask = (int.from_bytes(bytes.fromhex(fields[n]), sys.byteorder) for n in (1, 7))
    return f"{IPv4Address(address)}/{mask.bit_count()}" if mask else ""


def _route6(line: str) -> str:
    """The subnet of a line of /proc/net/ipv6_route; empty for what is none, or for no host."""
    fields = line.split()
    prefix = int(fields[1], 16)
    network = IPv6Network((int(fields[0], 16), prefix))
    ours = fields[-1].startswith(_OURS) or fields[-1] == "lo"
    local = network.is_link_local or network.is_multicast
    return "" if ours or local or not prefix else str(network)
