# SPDX-License-Identifier: Apache-2.0
"""The log files of containers: reading, following, rotating.

conmon writes one line for each line of output, in the format of Kubernetes' CRI:

    2025-11-24T12:34:56.123456789+00:00 stdout F the line

with `P` instead of `F` for a partial line (conmon reads 8 KiB at a time).

Rotation renames `log.1` to `log.2` and so on, adds the hard link `log.1` to `log`, then requests a
new file from conmon, which closes its open file and replaces `log` by a new one. So a reader that
reaches the end of a file after the next newer one was seen has read all of it: this is how `read`
follows rotations without losing a line.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from orchestrator.linux.inotify import CREATED, DELETED, DELETED_ITSELF, MODIFIED, MOVED_TO, Inotify
from orchestrator.linux.spawn import readable

NOTICE = "notice"
"""The stream of a record about the log itself, which no container wrote."""

_BLOCK = 1 << 16
_MIN_INTERVAL = 0.01
"""Minimum seconds between reads of a log that grows continuously."""
_MAX_OPEN = 16
"""Files that a reader keeps open, including deleted ones."""
_MISSING = b"lines may be missing here: the log was rotated faster than it was read"
_EVENTS = MODIFIED | MOVED_TO | CREATED | DELETED | DELETED_ITSELF


@dataclass(frozen=True, slots=True)
class LogLimits:
    """Limits of a container's log files."""

    size: int = 10 << 20
    """Bytes after which a file is rotated."""
    files: int = 3
    """Files kept, the newest included."""


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One line of a container's output, or part of a long one."""

    stream: str
    """`stdout` or `stderr`, or `NOTICE`."""
    time: float
    """Seconds of the epoch when the line was written."""
    line: bytes
    """Without its newline; any bytes, as the container wrote them."""
    partial: bool = False
    """Whether the line continues in the next record of this stream."""


def parse(line: bytes) -> LogRecord | None:
    """Parse one line of a log file, without its newline; None if it is no record."""
    parts = line.split(b" ", 3)
    if len(parts) != 4 or parts[2] not in (b"F", b"P"):
        return None
    stamp, fraction = parts[0], parts[0][20:29]
    if stamp[19:20] != b"." or not fraction.isdigit():
        return None
    try:
        second = _second(stamp[:19], stamp[29:])
    except ValueError:
        return None
    return LogRecord(
        parts[1].decode(errors="replace"),
        second + int(fraction) / 10 ** len(fraction),
        parts[3],
        parts[2] == b"P",
    )


@lru_cache(maxsize=64)
def _second(stamp: bytes, zone: bytes) -> float:
    """A whole second of the epoch; cached, since many lines have the same."""
    return datetime.fromisoformat(stamp.decode("ascii") + zone.decode("ascii")).timestamp()


def rotated(path: Path, number: int) -> Path:
    """The path of the file that is `number` rotations old; 0: the newest."""
    return path if number == 0 else path.with_name(f"{path.name}.{number}")


class LogRotation:
    """Keeps the logs of one node within their limits."""

    def __init__(self, limits: LogLimits) -> None:
        """`limits` are the default."""
        self.limits = limits
        self._requested: dict[Path, int] = {}

    def rotate(
        self, path: Path, reopen: Callable[[], bool], limits: LogLimits | None = None
    ) -> bool:
        """Rotate when `path` has reached its maximum size; returns whether a new file was requested
        from the writer.

        `reopen` sends the request, and returns False when there is no writer any more. It is sent
        once per rotation: a second one could discard what was written in between. A rotation that
        was interrupted by the agent's end is finished by the next call. Raises OSError.
        """
        limits = limits or self.limits
        try:
            newest = path.stat()
        except FileNotFoundError:
            return False
        first = rotated(path, 1)
        if first.exists() and first.stat().st_ino == newest.st_ino:
            if self._requested.get(path) == newest.st_ino:
                return False
        elif newest.st_size < limits.size:
            self.forget(path)
            return False
        elif limits.files > 1:
            for number in range(limits.files - 1, 1, -1):
                younger = rotated(path, number - 1)
                if younger.exists():
                    younger.rename(rotated(path, number))
            first.unlink(missing_ok=True)
            # A hard link, not a rename: `path` exists at all times, until it is replaced.
            first.hardlink_to(path)
        self._requested[path] = newest.st_ino
        return reopen()

    def forget(self, path: Path) -> None:
        """Forget a log that was removed, or whose rotation is complete."""
        self._requested.pop(path, None)


def last_line(path: Path) -> str:
    """The text of the last record in a file; empty when there is none."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _BLOCK))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return ""
    record = parse(lines[-1]) if lines else None
    return record.line.decode(errors="replace") if record else ""


async def read(
    *places: Path,
    tail: int | None = None,
    since: float | None = None,
    follow: bool = False,
    ended: asyncio.Event | None = None,
) -> AsyncGenerator[list[LogRecord], None]:
    """The records of a log in batches, oldest first, across all rotated files.

    `places`: the path of its newest file, then the path to which it is moved when its container is
    removed. `tail`: the number of last lines; `since`: only those from this time on (seconds of the
    epoch); `follow`: wait for new ones, until `ended` is set (then to the end of the log) or
    the log is removed.

    A reader keeps the files that it has not read open, so a rotation removes nothing from it. A
    reader that is too slow gets a record of the stream `notice` where lines are missing.
    """
    folder = next((path.parent for path in places if path.parent.exists()), None)
    watched = follow and folder is not None
    with Inotify(folder, _EVENTS) if watched and folder else contextlib.nullcontext() as changes:
        files = await asyncio.to_thread(_Files.begin, places, tail, since)
        try:
            while True:
                # Checked before reading: later records belong to the next round.
                last_round = changes is None or (ended is not None and ended.is_set())
                began = asyncio.get_running_loop().time()
                for records in files.records():
                    if since is not None:
                        records = [record for record in records if record.time >= since]
                    if records:
                        yield records
                    # Let other tasks of the event loop run between two blocks.
                    await asyncio.sleep(0)
                # The newest file may be replaced, but is missing only once the log is removed. The
                # folder is checked, too: the kernel reports its removal only once no file in it is
                # open any more.
                if last_round or changes is None or files.removed():
                    return
                await _changed(changes, ended)
                # Batch the lines of a busy writer; the first line of a quiet one is read at once.
                await asyncio.sleep(began + _MIN_INTERVAL - asyncio.get_running_loop().time())
        finally:
            files.close()


class _Files:
    """The open files of a log that a reader has not read to the end."""

    def __init__(self, places: Sequence[Path], files: Sequence[BinaryIO]) -> None:
        """`files`: oldest first."""
        self._places = places
        self._files = deque(files)
        self._rest = b""
        self._missing = False

    @classmethod
    def begin(cls, places: Sequence[Path], tail: int | None, since: float | None) -> _Files:
        """Open a log at its oldest record, or `tail` lines before the end."""
        files = cls(places, opened(places))
        if tail is not None:
            files._seek_tail(tail)
        if since is not None:
            while len(files._files) > 1 and os.fstat(files._files[0].fileno()).st_mtime < since:
                files._files.popleft().close()
        return files

    def _seek_tail(self, tail: int) -> None:
        for index in range(len(self._files) - 1, -1, -1):
            found, offset = _lines_back(self._files[index], tail)
            self._files[index].seek(offset)
            tail -= found
            if tail <= 0:
                for _ in range(index):
                    self._files.popleft().close()
                return

    def records(self) -> Iterator[list[LogRecord]]:
        """All complete records up to the present end of the newest file."""
        while True:
            # Checked before reading: once there is a newer file, the older one is complete.
            self._open_new()
            newer = len(self._files) > 1
            block = self._files[0].read(_BLOCK) if self._files else b""
            if self._missing:
                self._missing = False
                yield [LogRecord(NOTICE, 0.0, _MISSING)]
            if block:
                *lines, self._rest = (self._rest + block).split(b"\n")
                yield [record for line in lines if (record := parse(line)) is not None]
            elif newer:
                self._files.popleft().close()
                self._rest = b""
            else:
                return

    def _open_new(self) -> None:
        """Open files that were started since the last call."""
        last = inode(self._files[-1]) if self._files else 0
        if len(self._files) >= _MAX_OPEN or last == self._newest():
            return
        found = opened(self._places)
        inodes = [inode(file) for file in found]
        known = inodes.index(last) + 1 if last in inodes else 0
        # The last known file is missing: others were written and removed unseen.
        self._missing |= bool(last and found and not known)
        self._files.extend(found[known:])
        for file in found[:known]:
            file.close()

    def _newest(self) -> int:
        for path in self._places:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                return path.stat().st_ino
        return 0

    def removed(self) -> bool:
        """Whether the log was removed."""
        return not any((path if self._files else path.parent).exists() for path in self._places)

    def close(self) -> None:
        """Close all files."""
        while self._files:
            self._files.pop().close()


def inode(file: BinaryIO) -> int:
    """Of an open file."""
    return os.fstat(file.fileno()).st_ino


def opened(places: Sequence[Path]) -> list[BinaryIO]:
    """All files of a log, opened, oldest first.

    They are opened from the newest on, so that a concurrent rotation, or a move from the first
    place to the second, shows a file twice and never skips one.
    """
    files: list[BinaryIO] = []
    seen: set[int] = set()
    number = missing = 0
    # One number is missing for a short time during a rotation.
    while missing < 2:
        found = False
        for path in places:
            try:
                file = open(rotated(path, number), "rb", buffering=0)  # noqa: SIM115
            except (FileNotFoundError, NotADirectoryError):
                continue
            found = True
            if inode(file) in seen:
                file.close()
            else:
                seen.add(inode(file))
                files.append(file)
        missing = 0 if found else missing + 1
        number += 1
    return files[::-1]


def _lines_back(file: BinaryIO, wanted: int) -> tuple[int, int]:
    """How many of the last `wanted` lines a file has, and the offset at which they begin."""
    size = os.fstat(file.fileno()).st_size
    if wanted <= 0:
        return 0, size
    span = _BLOCK
    while True:
        begin = max(0, size - span)
        starts: list[int] = [0] if begin == 0 else []
        at = begin
        for line in os.pread(file.fileno(), size - begin, begin).splitlines(keepends=True):
            at += len(line)
            # A long line has several records; the next line begins after its last one.
            if line.split(b" ", 3)[2:3] == [b"F"]:
                starts.append(at)
        ends_whole = bool(starts) and starts[-1] == size
        lines = starts[:-1] if ends_whole else starts
        if len(lines) >= wanted or begin == 0:
            kept = lines[-wanted:]
            return len(kept), kept[0] if kept else size
        span *= 4


async def _changed(changes: Inotify, ended: asyncio.Event | None) -> None:
    """Wait until the log has changed since the last call, or `ended` is set."""
    if ended is None:
        await readable(changes.fd)
    else:
        async with asyncio.TaskGroup() as group:
            waits: tuple[asyncio.Task[Any], ...] = (
                group.create_task(readable(changes.fd)),
                group.create_task(ended.wait()),
            )
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
    changes.take()
