# SPDX-License-Identifier: Apache-2.0
"""Mount points of volumes, in the mount namespaces of this agent and of plugins.

Nothing here accesses the file systems themselves, which may hang.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.runtime.isolation.idranges import FIRST, IdRange
from orchestrator.agent.runtime.isolation.userns import NamespaceMaker
from orchestrator.linux.mounts import idmapped

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mounted:
    """A mount; source: proc_pid_mountinfo(5)."""

    point: str
    device: str
    """`MAJOR:MINOR` of the file system."""
    kind: str
    """Such as `ext4` or `fuse.sshfs`."""
    options: frozenset[str]
    """Options of the file system, not of this mount."""


def mounts(process: int | str = "thread-self") -> list[Mounted]:
    """The mounts of a process's namespace, in the order of their creation. Raises OSError."""
    table = Path(f"/proc/{process}/mountinfo").read_text(errors="surrogateescape")
    return parse(table)


def parse(table: str) -> list[Mounted]:
    """The mounts of the text of a `mountinfo`."""
    found = []
    for line in table.splitlines():
        mount, _, system = line.partition(" - ")
        fields, (kind, *rest) = mount.split(" "), system.split(" ")
        point = _OCTAL.sub(lambda octal: chr(int(octal[1], 8)), fields[4])
        options = frozenset(rest[-1].split(",")) if rest else frozenset()
        found.append(Mounted(point, fields[2], kind, options))
    return found


def mount_at(path: Path, table: Sequence[Mounted]) -> Mounted | None:
    """The mount at exactly this path: the newest, which covers earlier ones."""
    return next((each for each in reversed(table) if each.point == str(path)), None)


def mount_of(path: Path, table: Sequence[Mounted]) -> Mounted | None:
    """The mount that contains a path."""
    for each in (path, *path.parents):
        if (found := mount_at(each, table)) is not None:
            return found
    return None


def resolved(path: Path) -> Path:
    """A path with symbolic links resolved, except its last component, which may be a dead mount."""
    return Path(os.path.realpath(path.parent)) / path.name


async def maps_ids(path: Path) -> bool:
    """Whether the file system at a path supports idmapped mounts, as most of the kernel's own file
    systems do; FUSE and NFS do not."""
    try:
        async with NamespaceMaker() as maker:
            userns, netns = await maker.make(IdRange(FIRST))
    except RuntimeFailure:
        return True  # no container here has users of its own
    os.close(netns)
    try:
        os.close(await asyncio.to_thread(idmapped, path, userns))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    finally:
        os.close(userns)
    return True
