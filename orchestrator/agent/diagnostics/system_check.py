# SPDX-License-Identifier: Apache-2.0
"""`orc system check`: whether this host has what a node needs, each thing tried, not looked up."""

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
"""The first whose bridges lock a port to the hardware address behind it."""
_LEAST_ROOM = 1 << 30
"""Bytes of the data folder's disk below which images will not fit."""

PROGRAMS = (
    ("conmon", "conmon", "keeps containers alive, beside the agent"),
    ("skopeo", "skopeo", "pulls and pushes images"),
    ("buildah", "buildah", "builds images"),
    ("unshare", "util-linux", "confines builds and volumes"),
    ("mkfs.ext4", "e2fsprogs", "makes volumes with a size"),
    ("tini-static", "tini", "is the init of --init"),
    ("ps", "procps", "lists processes for 'orc top'"),
)
"""Program, Debian package, what it is for."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    fine: bool
    text: str
    """What is there, or what is lacking and what mends it."""
    needed: bool = True
    """Whether a host that lacks it cannot be a node."""


@click.command(epilog="\b\nExample:\n  orc system check")
@click.option(
    "--runtime",
    default="crun",
    show_default=True,
    metavar="RUNTIME",
    help="The OCI runtime to look for.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    default=Path("/var/lib/orc"),
    show_default=True,
    help="Where images and volumes are to be.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="How to print it.",
)
def check(runtime: str, data_dir: Path, form: str) -> None:
    """Try whether this host can be a node: programs, kernel, room. Exits with 1 if it cannot."""
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
    yield _program(runtime, runtime, "makes containers")
    for program, package, purpose in PROGRAMS:
        yield _program(program, package, purpose)
    yield _program("etcd", "etcd-server", "is a manager's store", needed=False)
    numbers = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    yield Finding(
        "kernel",
        numbers >= _OLDEST_KERNEL,
        f"{os.uname().release}; {'.'.join(map(str, _OLDEST_KERNEL))} is the oldest that will do",
    )
    yield _cgroups()
    for name, command, mends, needed in _TRIALS:
        yield _tried(name, command, mends, needed)
    yield _overlay(data_dir)
    yield _room(data_dir)


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
"""Check, what is tried in a namespace that ends with it, what mends it, whether it is needed."""


def _tried(name: str, command: str, mends: str, needed: bool) -> Finding:
    try:
        done = subprocess.run(command.split(), capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(name, False, f"{mends} ({error})", needed)
    if done.returncode == 0:
        return Finding(name, True, "", needed)
    said = done.stderr.strip().splitlines()
    return Finding(name, False, f"{mends} ({said[-1] if said else 'it failed'})", needed)


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
        return _tried("overlay", command, f"use a disk for {data_dir} that overlay can be on", True)


def _room(data_dir: Path) -> Finding:
    free = shutil.disk_usage(_existing(data_dir)).free
    text = f"{free >> 30} GiB are free for {data_dir}"
    return Finding("disk", free >= _LEAST_ROOM, text, needed=False)


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(each for each in (path, *path.parents) if each.is_dir())
