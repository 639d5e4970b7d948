# SPDX-License-Identifier: Apache-2.0
"""A folder with a hard size limit: a separate file system in a sparse file, on a loop device.

It works on any file system of the node, unlike project quotas, for which the file system must have
been created. A write beyond the limit fails with ENOSPC. The file occupies only the used space,
which is freed when files are deleted (`discard`). Its loop device is removed with the mount
(`autoclear`).
"""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.linux import spawn
from orchestrator.linux.mounts import is_mounted, unmount

_FILE, _MOUNT = "disk.img", "disk"
_JOURNALLED = 64 << 20
"""Minimum bytes of a disk with a journal."""


class DiskError(Exception):
    """The file system cannot be created or mounted; the text is one line for the user."""


def mount_point(folder: Path) -> Path:
    """The mount point of a folder's disk."""
    return folder / _MOUNT


def is_disk(folder: Path) -> bool:
    """Whether the folder has a disk."""
    return (folder / _FILE).exists()


def disk_usage(folder: Path) -> int:
    """Bytes that the disk occupies on the node's own disk."""
    return os.stat(folder / _FILE).st_blocks * 512


async def ensure_disk(folder: Path, size: int, *, durable: bool) -> Path:
    """Create a disk of `size` bytes in a folder unless it exists, and mount it; returns the mount
    point.

    A disk that is not `durable` has no journal: it is deleted with its container. Raises DiskError.
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
            raise DiskError(f"a disk of {size} bytes cannot be created: {_last(stderr)}")
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
    """Unmount the disk of a folder, including stacked mounts. Raises OSError."""
    target = mount_point(folder)
    while target.exists() and is_mounted(target):
        unmount(target)


def _make_sparse(path: Path, size: int) -> None:
    path.unlink(missing_ok=True)
    with open(path, "xb") as made:
        made.truncate(size)


def _last(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1] if lines else "no error message"
