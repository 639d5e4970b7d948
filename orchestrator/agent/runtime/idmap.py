"""Mounts with other owners, or read-only, and files that belong to a container's root.

An idmapped mount shows each file with the owner that a user namespace's mapping makes of the one on
disk, so that shared layers, with root's files in them, belong to the root of each container; what
the container writes has, on disk, the owner that the container sees. Source: mount_setattr(2).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.agent.runtime.idranges import IdRange
from orchestrator.agent.runtime.mountcalls import (
    IDMAP,
    NODEV,
    RDONLY,
    attach,
    check,
    detached,
    libc,
)

_PR_SET_SECUREBITS, _PR_GET_SECUREBITS = 28, 27
_SECBIT_NO_SETUID_FIXUP = 1 << 2


def idmapped(path: Path, userns: int, *, read_only: bool = False) -> int:
    """A descriptor of a detached mount of `path`, and none below it, in which a user namespace's
    ids are those on disk; `read_only`: nothing is written through it. Raises OSError; EINVAL where
    the file system cannot do it."""
    return detached(path, IDMAP | (RDONLY if read_only else 0), userns=userns)


def mount_read_only(path: Path, target: Path) -> None:
    """Mount the file system at `path`, and none below it, at `target`: read-only, without devices,
    and apart from what happens to the first. Raises OSError."""
    found = detached(path, RDONLY | NODEV)
    try:
        attach(found, target)
    finally:
        os.close(found)


@contextmanager
def as_root_of(ids: IdRange) -> Iterator[None]:
    """Make files as a container's root, for the calling thread, which keeps its capabilities.

    The host's root has no id in a mount that is mapped to a container's, and so can make nothing
    there. Overlay's own work is done as whoever mounted it.
    """
    bits = check(libc.prctl(_PR_GET_SECUREBITS, 0, 0, 0, 0), "securebits")
    check(libc.prctl(_PR_SET_SECUREBITS, bits | _SECBIT_NO_SETUID_FIXUP, 0, 0, 0), "securebits")
    try:
        user = libc.setfsuid(ids.first)
        group = libc.setfsgid(ids.first)
        try:
            yield
        finally:
            libc.setfsuid(user)
            libc.setfsgid(group)
    finally:
        check(libc.prctl(_PR_SET_SECUREBITS, bits, 0, 0, 0), "securebits")
