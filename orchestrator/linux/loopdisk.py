"""A folder with a hard limit: a file system of its own in a sparse file.

Works on whatever the node's disk has, where project quotas need a file system made for them. Who
writes beyond the limit gets ENOSPC. The file takes only the room that is used, and gives it back
when something is deleted (`discard`). Its loop device goes with the mount (`autoclear`).
"""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.linux import spawn
from orchestrator.linux.mounts import is_mounted, unmount

_FILE, _MOUNT = "disk.img", "disk"
_JOURNALLED = 64 << 20
"""Bytes from which there is room for a journal."""


class DiskError(Exception):
    """The file system cannot be made or mounted; one line for the user."""


def mount_point(folder: Path) -> Path:
    """Where the disk of a folder is mounted."""
    return folder / _MOUNT


def is_disk(folder: Path) -> bool:
    """Whether the folder holds a disk."""
    return (folder / _FILE).exists()


def disk_usage(folder: Path) -> int:
    """Bytes that the disk takes of the node's own disk."""
    return os.stat(folder / _FILE).st_blocks * 512


async def ensure_disk(folder: Path, size: int, *, durable: bool) -> Path:
    """Make a disk of `size` bytes in a folder unless it is there, and mount it; the mount point.

    One that is not `durable` does without a journal: it is lost with the container it belongs to.
    Raises DiskError.
    """
    file, target = folder / _FILE, mount_point(folder)
    if not file.exists():
        draft = folder / f".{_FILE}"
        _make_sparse(draft, size)
        features = "has_journal" if durable and size >= _JOURNALLED else "^has_journal"
        status, stderr = await spawn.run(
            ["mkfs.ext4", "-q", "-F", "-m", "0", "-O", features, "-E", "nodiscard", str(draft)]
        )
        if status != 0:
            raise DiskError(f"a disk of {size} bytes cannot be made: {_last(stderr)}")
        draft.rename(file)
    target.mkdir(exist_ok=True)
    if not is_mounted(target):
        status, stderr = await spawn.run(
            ["mount", "-t", "ext4", "-o", "loop,discard", str(file), str(target)]
        )
        if status != 0:
            raise DiskError(f"the disk {file} cannot be mounted: {_last(stderr)}")
    return target


def ensure_unmounted_disk(folder: Path) -> None:
    """Unmount the disk of a folder, however often it is mounted. Raises OSError."""
    target = mount_point(folder)
    while target.exists() and is_mounted(target):
        unmount(target)


def _make_sparse(path: Path, size: int) -> None:
    path.unlink(missing_ok=True)
    with open(path, "xb") as made:
        made.truncate(size)


def _last(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason is given"
