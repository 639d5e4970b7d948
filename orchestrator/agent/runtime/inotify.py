"""What the kernel tells of changes to files (inotify(7)), through libc."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from typing import Self

MODIFIED = 0x2
CLOSED_UNWRITTEN = 0x10
MOVED_TO = 0x80
CREATED = 0x100
DELETED = 0x200
DELETED_ITSELF = 0x400

_MOST_READ = 1 << 16
_libc = ctypes.CDLL(None, use_errno=True)


class Inotify:
    """Watches one file or folder; a context manager. Its descriptor `fd` can be read from once
    something has happened since the last `take`."""

    def __init__(self, path: Path, events: int) -> None:
        """Raises OSError."""
        self.fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            _checked(_libc.inotify_add_watch(self.fd, os.fsencode(path), events))
        except OSError:
            os.close(self.fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def take(self) -> None:
        """Forget what has happened until now."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, _MOST_READ)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "inotify")
    return result
