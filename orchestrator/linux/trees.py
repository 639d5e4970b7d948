"""Removal of folders whose content others have chosen."""

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
