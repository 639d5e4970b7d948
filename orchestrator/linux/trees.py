"""Folders whose content others have chosen, and may change meanwhile: their removal and their
size."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: str | os.PathLike[str]) -> None:
    """Remove a file, or a folder with all that is in it, however deep; fine when it is gone.

    No link is followed. It takes neither stack nor descriptors with the depth: a folder within a
    folder is moved up before it is emptied. Blocks. Raises OSError.
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
    """Bytes of the disk that the files in a folder take; each counts once, whatever its number of
    names. Files that go meanwhile do not matter, and no link is followed. Blocks."""
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
    """Empty the folder `name` of `top`; the folders in it become `top`'s, under numbers from
    `serial` on. Returns the next number."""
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
                        continue  # something of that name is there
                    break
    finally:
        os.close(folder)
    return serial
