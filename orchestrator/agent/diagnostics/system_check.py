# SPDX-License-Identifier: Apache-2.0
"""`orc system check`: whether this host can be a node. Each requirement is tried, not looked up."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

_OLDEST_KERNEL = (5, 18)
"""The first whose bridges can lock a port to a MAC address."""
_LEAST_SPACE = 1 << 30
"""Minimum free bytes on the data folder's disk."""

PROGRAMS = (
    ("conmon", "conmon", "monitors containers"),
    ("skopeo", "skopeo", "pulls and pushes images"),
    ("buildah", "buildah", "builds images"),
    ("unshare", "util-linux", "isolates builds and volumes"),
    ("mkfs.ext4", "e2fsprogs", "creates volumes with a size limit"),
    ("tini-static", "tini", "is the init process of --init"),
    ("ps", "procps", "lists processes for 'orc top'"),
)
"""Program, Debian package, purpose."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    check: str
    fine: bool
    text: str
    """What was found, or the remedy."""
    needed: bool = True
    """Whether a node requires it."""


@click.command(epilog="\b\nExample:\n  orc system check")
@click.option(
    "--runtime",
    default="crun",
    show_default=True,
    metavar="RUNTIME",
    help="OCI runtime to check.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    default=Path("/var/lib/orc"),
    show_default=True,
    help="Folder of images and volumes.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Output format.",
)
def check(runtime: str, data_dir: Path, form: str) -> None:
    """Check whether this host can be a node: programs, kernel, disk. Exits with 1 if it cannot."""
    findings = list(_findings(runtime, data_dir))
    if form == "json":
        rows = [
            {"check": f.check, "ok": f.fine, "needed": f.needed, "text": f.text} for f in findings
        ]
        click.echo(json.dumps(rows, indent=2))
    else:
        for finding in findings:
            verdict = "ok" if finding.fine else "LACKS" if finding.needed else "lacks"
            click.echo(f"{verdict:6} {finding.check:18} {finding.text}".rstrip())
    lacking = [f.check for f in findings if f.needed and not f.fine]
    if lacking:
        if form == "table":
            click.echo(f"orc: this host cannot be a node yet: {', '.join(lacking)}", err=True)
        sys.exit(1)


def _findings(runtime: str, data_dir: Path) -> Iterator[Finding]:
    root = os.geteuid() == 0
    yield Finding("root", root, "" if root else "run this, and the agent, with sudo")
    yield _program(runtime, runtime, "creates containers")
    for program, package, purpose in PROGRAMS:
        yield _program(program, package, purpose)
    yield _program("etcd", "etcd-server", "stores a manager's state", needed=False)
    numbers = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    yield Finding(
        "kernel",
        numbers >= _OLDEST_KERNEL,
        f"{os.uname().release}; at least {'.'.join(map(str, _OLDEST_KERNEL))} is required",
    )
    yield _cgroups()
    for name, command, remedy, needed in _TRIALS:
        yield _tried(name, command, remedy, needed)
    yield _overlay(data_dir)
    yield _disk_space(data_dir)


def _program(name: str, package: str, purpose: str, needed: bool = True) -> Finding:
    path = shutil.which(name)
    return Finding(name, path is not None, path or f"{purpose}: install {package}", needed)


def _cgroups() -> Finding:
    from orchestrator.agent.runtime.interface import RuntimeFailure
    from orchestrator.agent.runtime.resources.cgroups import detect

    try:
        return Finding("cgroups", True, f"version {detect().mode.value.removeprefix('v')}")
    except RuntimeFailure as failure:
        return Finding("cgroups", False, str(failure))


_TRIALS: tuple[tuple[str, str, str, bool], ...] = (
    ("user namespaces", "unshare --user true", "set user.max_user_namespaces by sysctl", True),
    (
        "vxlan",
        "unshare --net ip link add orccheck type vxlan id 1 dstport 0 local 127.0.0.1",
        "load the module vxlan, or use a kernel built with CONFIG_VXLAN",
        True,
    ),
    (
        "bridge",
        "unshare --net ip link add orccheck type bridge",
        "load the module bridge, or use a kernel built with CONFIG_BRIDGE",
        True,
    ),
    (
        "nftables",
        "unshare --net nft add table inet orccheck",
        "install nftables, and load the module nf_tables",
        True,
    ),
    (
        "published ports",
        "unshare --net nft add table inet orccheck ; add chain inet orccheck zones ; "
        "add rule inet orccheck zones ct original zone set 1 ; "
        "add table netdev orccheck ; add chain netdev orccheck back "
        "{ type filter hook egress device lo priority 0 ; }",
        "use a kernel built with CONFIG_NF_CONNTRACK_ZONES and CONFIG_NETFILTER_EGRESS",
        True,
    ),
    (
        "wireguard",
        "unshare --net ip link add orccheck type wireguard",
        "encrypted networks need the module wireguard",
        False,
    ),
)
"""Check, command (in a namespace of its own, which ends with it), remedy, whether it is needed."""


def _tried(name: str, command: str, remedy: str, needed: bool) -> Finding:
    try:
        done = subprocess.run(command.split(), capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(name, False, f"{remedy} ({error})", needed)
    if done.returncode == 0:
        return Finding(name, True, "", needed)
    lines = done.stderr.strip().splitlines()
    reason = lines[-1] if lines else f"exit status {done.returncode}"
    return Finding(name, False, f"{remedy} ({reason})", needed)


def _overlay(data_dir: Path) -> Finding:
    """Whether a container's root can be mounted over the data folder's file system."""
    with tempfile.TemporaryDirectory(dir=_existing(data_dir), prefix=".orc-check-") as folder:
        for name in ("lower", "upper", "work", "merged"):
            Path(folder, name).mkdir()
        options = ",".join(
            f"{key}={folder}/{name}"
            for key, name in (("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work"))
        )
        command = f"unshare --mount mount -t overlay overlay -o {options} {folder}/merged"
        remedy = f"put {data_dir} on a file system that supports overlay, such as ext4 or xfs"
        return _tried("overlay", command, remedy, True)


def _disk_space(data_dir: Path) -> Finding:
    free = shutil.disk_usage(_existing(data_dir)).free
    text = f"{free >> 30} GiB free for {data_dir}"
    return Finding("disk", free >= _LEAST_SPACE, text, needed=False)


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest parent that exists."""
    return next(each for each in (path, *path.parents) if each.is_dir())
