# SPDX-License-Identifier: Apache-2.0
"""Notifications of changes to files (inotify(7))."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from pathlib import Path
from typing import Self

from orchestrator.linux import libc

MODIFIED = 0x2
CLOSED_UNWRITTEN = 0x10
MOVED_TO = 0x80
CREATED = 0x100
DELETED = 0x200
DELETED_ITSELF = 0x400
_ONCE = 0x80000000

_MOST_READ = 1 << 16
_EVENT = struct.Struct("iIII")


class Inotify:
    """Watches one file or folder; a context manager. Its descriptor `fd` is readable when an event
    came since the last `take`."""

    def __init__(self, path: Path, events: int) -> None:
        """Raises OSError."""
        self.fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            libc.inotify_add_watch(self.fd, path, events)
        except OSError:
            os.close(self.fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def take(self) -> None:
        """Discard the events until now."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, _MOST_READ)


class Watches:
    """Waits for changes of many files or folders with one descriptor, since their number per user
    is limited; a context manager. A watch reports one change: add it again for the next."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._waiting: dict[int, asyncio.Event] = {}

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self._fd, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def once(self, path: Path, events: int) -> asyncio.Event:
        """An event that the next change sets. Raises OSError when `path` is missing."""
        watch = libc.inotify_add_watch(self._fd, path, events | _ONCE)
        return self._waiting.setdefault(watch, asyncio.Event())

    def _take(self) -> None:
        try:
            data = os.read(self._fd, _MOST_READ)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            watch, _, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size + length
            if watch < 0:
                # The queue overflowed: any path may have changed.
                for event in self._waiting.values():
                    event.set()
                self._waiting.clear()
            elif (waiting := self._waiting.pop(watch, None)) is not None:
                waiting.set()
