# SPDX-License-Identifier: Apache-2.0
"""A program that copies a folder of an image into a volume, which containers may change meanwhile.

Arguments: SOURCE VOLUME; SOURCE is the descriptor of the image's folder. The program is confined to
the two (`linux.confine`), so that a symbolic link that a container puts into the volume cannot
redirect its writes. Owners, modes, times, extended attributes, hard links and holes are preserved.
On failure it prints one line and exits with status 1.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable

from orchestrator.linux.confine import READ_ONLY, WRITABLE, confine, limit_memory
from orchestrator.linux.mounts import detached

_CHUNK = 1 << 24
_IGNORED = (errno.ENOTSUP, errno.EPERM, errno.EINVAL)
"""Refusals of an extended attribute by file systems that do not have them."""


def main(argv: list[str]) -> None:
    """Copy the folder that the arguments name."""
    source, volume = int(argv[0]), argv[1]
    limit_memory()
    try:
        folders = {
            "image": detached(source, READ_ONLY),
            "volume": detached(volume, WRITABLE, recursive=True),
        }
        os.close(source)
        confine(folders)
        os.umask(0)
        copy_tree("/image", "/volume")
    except OSError as error:
        sys.exit((error.strerror or str(error)).lower())
    except MemoryError:
        sys.exit("the folder has too many files for the memory limit")


def copy_tree(source: str, target: str) -> None:
    """Copy the content of the folder `source` to the folder `target`, and its owner, mode and
    times. Existing files are replaced. Raises OSError."""
    links: dict[tuple[int, int], str] = {}
    folders = [(source, target, os.lstat(source))]
    for folder, copy, _ in folders:  # grows meanwhile
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:
            place = f"{copy}/{entry.name}"
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                _replace(place, lambda place=place: _make_folder(place))  # type: ignore[misc]
                folders.append((entry.path, place, status))
                continue
            inode = (status.st_dev, status.st_ino)
            if status.st_nlink > 1 and (first := links.get(inode)) is not None:
                _replace(
                    place,
                    lambda first=first, place=place: os.link(  # type: ignore[misc]
                        first, place, follow_symlinks=False
                    ),
                )
                continue
            links[inode] = place
            _copy_file(entry.path, place, status)
    # The innermost first: changing the content of a folder changes its times.
    for folder, copy, status in reversed(folders):
        _set_attributes(folder, copy, status)


def _make_folder(place: str) -> None:
    try:
        os.mkdir(place, 0o700)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(place).st_mode):
            raise


def _replace(place: str, make: Callable[[], object]) -> None:
    """Make a file, replacing an existing one."""
    try:
        make()
    except FileExistsError:
        os.unlink(place)
        make()


def _copy_file(source: str, place: str, status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        with open(source, "rb", buffering=0) as file:
            copy = -1

            def make() -> None:
                nonlocal copy
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                copy = os.open(place, flags, 0o600)

            _replace(place, make)
            try:
                _copy_content(file.fileno(), copy, status)
            finally:
                os.close(copy)
    elif stat.S_ISLNK(status.st_mode):
        _replace(place, lambda: os.symlink(os.readlink(source), place))
    else:
        kind = stat.S_IFMT(status.st_mode) | 0o600
        _replace(place, lambda: os.mknod(place, kind, status.st_rdev))
    _set_attributes(source, place, status)


def _copy_content(source: int, copy: int, status: os.stat_result) -> None:
    size = status.st_size
    sparse = status.st_blocks * 512 < size
    at = 0
    while at < size:
        end = size
        if sparse:
            try:
                at = os.lseek(source, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break  # a hole until the end
            end = os.lseek(source, at, os.SEEK_HOLE)
            os.lseek(copy, at, os.SEEK_SET)
        while at < end:
            sent = os.sendfile(copy, source, at, min(_CHUNK, end - at))
            if not sent:
                return
            at += sent
    if sparse:
        os.ftruncate(copy, size)


def _set_attributes(source: str, copy: str, status: os.stat_result) -> None:
    is_link = stat.S_ISLNK(status.st_mode)
    os.chown(copy, status.st_uid, status.st_gid, follow_symlinks=False)
    # After the owner, whose change drops capabilities; before the mode, which may forbid it.
    for key in os.listxattr(source, follow_symlinks=False):
        if key.startswith("trusted.overlay."):
            continue
        value = os.getxattr(source, key, follow_symlinks=False)
        try:
            os.setxattr(copy, key, value, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _IGNORED:
                raise
    if not is_link:
        os.chmod(copy, stat.S_IMODE(status.st_mode))
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(copy, ns=times, follow_symlinks=False)
