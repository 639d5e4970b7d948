# SPDX-License-Identifier: Apache-2.0
"""Fills a new volume from the image's folder at its mount point.

The program `copyup_program` copies it from the image's layers. Only child processes touch the
volume: a file system of a plugin may hang, and a container may change the volume meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.runtime.isolation.rootfs import mount_layers
from orchestrator.agent.volumes.volume_errors import VolumeError
from orchestrator.daemon import bareprogram
from orchestrator.linux import spawn
from orchestrator.linux.mounts import is_mounted, unmount
from orchestrator.linux.openat import open_in_root

_FILLER = bareprogram.command("orchestrator.agent.volumes.copyup_program", "-X", "utf8")
PROBE_TIMEOUT = 5.0
"""Timeout of reading a volume's folder, in seconds."""


async def is_folder(path: Path) -> bool:
    """Whether a path is a folder. Raises VolumeError if it hangs."""
    return (await _probe(["test", "-d", str(path)], path))[0] == 0


async def is_empty(path: Path) -> bool:
    """Whether a volume is empty. Raises VolumeError."""
    with spawn.descriptors() as owned:
        out = owned.memory_file()
        argv = ["find", str(path), "-mindepth", "1", "-maxdepth", "1", "-print", "-quit"]
        status, stderr = await _probe(argv, path, out)
        if status != 0:
            raise VolumeError(f"{path} cannot be read: {stderr}")
        return not spawn.read_text(out)


async def _probe(argv: Sequence[str], path: Path, stdout: int | None = None) -> tuple[int, str]:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            if stdout is None:
                return await spawn.run(argv)
            with spawn.descriptors() as owned:
                stderr = owned.memory_file()
                status = await spawn.reap(spawn.spawn(argv, stderr=stderr, stdout=stdout))
                return status, spawn.read_text(stderr)
    except TimeoutError:
        raise VolumeError(f"{path} does not answer") from None


async def empty(path: Path) -> None:
    """Remove the contents of a folder. Raises VolumeError."""
    status, stderr = await spawn.run(["find", str(path), "-mindepth", "1", "-delete"])
    if status != 0:
        raise VolumeError(f"{path} cannot be emptied: {stderr}")


async def fill(layers: Sequence[Path], folder: str, volume: Path, scratch: Path) -> None:
    """Copy the image's `folder` into a volume, with the folder's owner and mode.

    Does nothing when the image has no such folder. Raises VolumeError.
    """
    if not layers:
        return
    with _image_root(layers, scratch) as root:
        try:
            root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise VolumeError("a layer of the image is missing on this node") from error
        try:
            source = open_in_root(root_fd, folder.lstrip("/"))
        except OSError:
            return
        finally:
            os.close(root_fd)
        try:
            if stat.S_ISDIR(os.fstat(source).st_mode):
                await _copy(source, volume)
        finally:
            os.close(source)


async def _copy(source: int, volume: Path) -> None:
    with spawn.descriptors() as owned:
        stderr = owned.memory_file()
        argv = [*_FILLER, str(source), str(volume)]
        status = await spawn.reap(spawn.spawn(argv, stderr=stderr, pass_fds=(source,)))
        if status != 0:
            reason = next(iter(spawn.read_text(stderr).splitlines()), f"status {status}")
            raise VolumeError(f"the volume cannot be filled from the image's folder: {reason}")


def clear_scratch(scratch: Path) -> None:
    """Remove the remains of an interrupted copy."""
    for left in sorted(scratch.glob("image-*")):
        if is_mounted(left):
            unmount(left)
        left.rmdir()


@contextmanager
def _image_root(layers: Sequence[Path], scratch: Path) -> Iterator[Path]:
    """The image's files as one folder, read-only."""
    root = Path(tempfile.mkdtemp(prefix="image-", dir=scratch))
    try:
        mount_layers(layers, root)
    except RuntimeFailure as error:
        root.rmdir()
        raise VolumeError(str(error)) from error
    try:
        yield root
    finally:
        unmount(root)
        root.rmdir()
