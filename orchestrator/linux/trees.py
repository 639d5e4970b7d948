# SPDX-License-Identifier: Apache-2.0
"""Directory trees: removal, disk usage, and placement of inodes.

Other processes may have chosen the content of a tree, and may change it concurrently.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: str | os.PathLike[str]) -> None:
    """Remove a file, or a folder with its content at any depth. Succeeds if there is none.

    No link is followed. Stack and descriptors do not grow with the depth: a nested folder is moved
    up before it is emptied. Blocks. Raises OSError.
    """
    try:
        top = os.open(path, _FOLDER)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        Path(path).unlink(missing_ok=True)
        return
    try:
        serial = 0
        while entries := _entries(top):
            for name, is_folder in entries:
                if is_folder:
                    serial = _lift(top, name, serial)
                    with suppress(FileNotFoundError):
                        os.rmdir(name, dir_fd=top)
                else:
                    with suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=top)
    finally:
        os.close(top)
    with suppress(FileNotFoundError):
        os.rmdir(path)


def tree_usage(root: str | os.PathLike[str]) -> int:
    """Disk usage in bytes of the files in a folder. A file with several hard links counts once,
    files that disappear concurrently are skipped, and no link is followed. Blocks."""
    total, seen = 0, set()
    folders = [os.fspath(root)]
    while folders:
        path = folders.pop()
        try:
            folder = os.open(path, _FOLDER)
        except OSError:
            continue
        try:
            with os.scandir(folder) as entries:
                for each in entries:
                    with suppress(OSError):
                        status = each.stat(follow_symlinks=False)
                        if each.is_dir(follow_symlinks=False):
                            folders.append(f"{path}/{each.name}")
                        elif status.st_nlink == 1 or status.st_ino not in seen:
                            total += status.st_blocks * 512
                            seen.add(status.st_ino)
        finally:
            os.close(folder)
    return total


def _entries(folder: int) -> list[tuple[str, bool]]:
    with os.scandir(folder) as entries:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]


def _lift(top: int, name: str, serial: int) -> int:
    """Empty the folder `name` of `top`; its subfolders move to `top`, numbered from `serial` on.
    Returns the last number."""
    try:
        folder = os.open(name, _FOLDER, dir_fd=top)
    except FileNotFoundError:
        return serial
    try:
        for inner, is_folder in _entries(folder):
            with suppress(FileNotFoundError):
                if not is_folder:
                    os.unlink(inner, dir_fd=folder)
                    continue
                while True:
                    serial += 1
                    try:
                        os.rename(inner, f".removed-{serial}", src_dir_fd=folder, dst_dir_fd=top)
                    except OSError as error:
                        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                            raise
                        continue  # the name exists
                    break
    finally:
        os.close(folder)
    return serial


# linux/fs.h
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_TOPDIR_FL = 0x00020000


def spread_inodes(folder: Path) -> None:
    """Have ext4 place the subfolders of `folder` in separate block groups (`chattr +T`).

    ext4 allocates an inode near the parent folder. Where containers come and go, that area is full
    of recently freed inodes, which ext4 without a journal must not reuse for some seconds and scans
    one by one: a fifth to a half of the time of starting many containers. Other file systems refuse
    the flag and do not need it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            answer = fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, struct.pack("l", 0))
            (flags,) = struct.unpack("l", answer)
            fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, struct.pack("l", flags | _FS_TOPDIR_FL))
    finally:
        os.close(descriptor)
