# SPDX-License-Identifier: Apache-2.0
"""The local volume driver: a folder of the node, a mount, or a loop disk with a hard limit."""

from __future__ import annotations

import asyncio
from pathlib import Path

from orchestrator.agent.volumes.volume_errors import VolumeError
from orchestrator.agent.volumes.volume_records import VolumeRecord
from orchestrator.linux import spawn
from orchestrator.linux.loopdisk import (
    DiskError,
    disk_usage,
    ensure_disk,
    ensure_unmounted_disk,
    is_disk,
    mount_point,
)
from orchestrator.linux.mounts import is_mounted, unmount
from orchestrator.linux.trees import tree_usage
from orchestrator.model.units import parse_memory

MOUNT_TIMEOUT = 30.0
"""Seconds of a mount(8), whose file server may not answer."""


def limit_of(record: VolumeRecord) -> int:
    """The limit of the volume in bytes; 0: none."""
    size = record.options.get("size")
    return parse_memory(size) if size else 0


async def ensure_mounted(record: VolumeRecord, folder: Path) -> Path:
    """Mount the volume if necessary; return the path of its data. Raises VolumeError."""
    if size := limit_of(record):
        try:
            data = await ensure_disk(folder, size, durable=True) / "_data"
        except DiskError as error:
            raise VolumeError(f"volume {record.name}: {error}") from error
        # Not the root of the disk, where ext4 has its `lost+found`.
        data.mkdir(exist_ok=True, mode=0o755)
        return data
    data = folder / "_data"
    device = record.options.get("device")
    if device and not is_mounted(data):
        await _mount(record, device, data)
    return data


async def _mount(record: VolumeRecord, device: str, target: Path) -> None:
    argv = ["mount"]
    if kind := record.options.get("type"):
        argv += ["-t", kind]
    if flags := record.options.get("o"):
        argv += ["-o", flags]
    argv += ["--", device, str(target)]
    try:
        async with asyncio.timeout(MOUNT_TIMEOUT):
            status, stderr = await spawn.run(argv)
    except TimeoutError:
        raise VolumeError(
            f"volume {record.name} cannot be mounted: {device} did not answer within "
            f"{MOUNT_TIMEOUT:.0f} s"
        ) from None
    if status != 0:
        reason = " ".join(stderr.splitlines()[0].split()) if stderr else f"status {status}"
        raise VolumeError(f"volume {record.name} cannot be mounted: {reason}")


def ensure_unmounted(record: VolumeRecord, folder: Path) -> None:
    """Unmount the volume. Raises VolumeError."""
    try:
        if is_disk(folder):
            ensure_unmounted_disk(folder)
        data = folder / "_data"
        while record.options.get("device") and data.exists() and is_mounted(data):
            unmount(data)
    except OSError as error:
        raise VolumeError(
            f"volume {record.name} cannot be unmounted: {(error.strerror or '').lower()}"
        ) from error


def data_path(record: VolumeRecord, folder: Path) -> Path:
    """The path of the data, mounted or not."""
    return (mount_point(folder) if limit_of(record) else folder) / "_data"


def usage(record: VolumeRecord, folder: Path) -> int:
    """The size of the volume on this node's disk in bytes; -1 for a file system of its own.

    Takes time in proportion to the number of files.
    """
    if record.options.get("device"):
        return -1
    if limit_of(record):
        return disk_usage(folder) if is_disk(folder) else 0
    return tree_usage(folder / "_data")
