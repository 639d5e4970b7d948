# SPDX-License-Identifier: Apache-2.0
"""Atomic, durable replacement of files. Also on clients that do not run Linux."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_NEW |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def write_file(
    path: Path,
    data: bytes | str,
    *,
    mode: int = 0o600,
    owner: tuple[int, int] | None = None,
    temporary: Path | None = None,
) -> None:
    """Replace the content of `path` atomically: a reader, also after a crash or power loss at any
    point, finds the complete old or the complete new content.

    The file has `mode`, independent of the umask, and `owner` (user and group id) before it is
    visible. It is written to `temporary` first, on the same file system; by default a hidden file
    in the same folder, so processes that write the same path concurrently need one each.

    Blocks until the data is on disk. Raises OSError, and then leaves `path` unchanged.
    """
    draft = temporary or path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    try:
        with open(os.open(draft, _NEW, 0o600), "wb") as file:
            if owner is not None:
                os.fchown(file.fileno(), *owner)
            if hasattr(os, "fchmod"):  # not on Windows
                os.fchmod(file.fileno(), mode)
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Make the entries of a folder durable. Blocks until they are on disk. Raises OSError."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows opens no folders
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
