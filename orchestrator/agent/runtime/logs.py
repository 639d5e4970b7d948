"""The log files of containers: reading, following, rotating.

conmon writes one line for each line of output, in the format of Kubernetes' CRI:

    2025-11-24T12:34:56.123456789+00:00 stdout F the line

with `P` instead of `F` for a part of a line that had no end yet (conmon reads 8 KiB at a time).

Rotation moves `log.1` to `log.2` and so on, gives `log` the second name `log.1`, then asks conmon
to begin a new file. conmon closes the file that it has open and puts a new one in the place of
`log`. So whoever reads to the end of a file, and saw the next newer one exist before, has read all
of it: this is how `read` follows over rotations and loses no line.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from orchestrator.agent.runtime.inotify import (
    CREATED,
    DELETED,
    DELETED_ITSELF,
    MODIFIED,
    MOVED_TO,
    Inotify,
)
from orchestrator.agent.runtime.spawn import readable

_BLOCK = 1 << 16
_EVENTS = MODIFIED | MOVED_TO | CREATED | DELETED | DELETED_ITSELF


@dataclass(frozen=True, slots=True)
class LogLimits:
    """How much of a container's output is kept."""

    size: int = 10 << 20
    """Bytes after which a file is rotated."""
    files: int = 3
    """Files kept, the newest included."""


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One line of a container's output, or a part of a long one."""

    stream: str
    """`stdout` or `stderr`."""
    time: float
    """Seconds of the epoch at which the line came."""
    line: bytes
    """Without its line end; any bytes, as the container wrote them."""
    partial: bool = False
    """Whether the line goes on in the next record of this stream."""


def parse(line: bytes) -> LogRecord | None:
    """One line of a log file, without its end; None for what is no record."""
    parts = line.split(b" ", 3)
    if len(parts) != 4 or parts[2] not in (b"F", b"P"):
        return None
    try:
        # Six of nine digits of the second: datetime has no nanoseconds.
        stamp, zone = parts[0][:26].decode("ascii"), parts[0][29:].decode("ascii")
        moment = datetime.fromisoformat(stamp + zone)
    except ValueError:
        return None
    return LogRecord(
        parts[1].decode(errors="replace"), moment.timestamp(), parts[3], parts[2] == b"P"
    )


def rotated(path: Path, number: int) -> Path:
    """The file that is `number` rotations old; 0: the newest."""
    return path if number == 0 else path.with_name(f"{path.name}.{number}")


class LogRotation:
    """Keeps the logs of one node within their limits."""

    def __init__(self, limits: LogLimits) -> None:
        self.limits = limits
        self._told: dict[Path, int] = {}

    def rotate(self, path: Path, reopen: Callable[[], bool]) -> bool:
        """Begin a new file when `path` has reached its size; whether the writer was told to.

        `reopen` tells the writer, and returns False when there is none any more. It is told once a
        rotation: told twice, it could throw away what it wrote in between. A rotation that was cut
        short by the agent's end is finished by the next call. Raises OSError.
        """
        try:
            newest = path.stat()
        except FileNotFoundError:
            return False
        first = rotated(path, 1)
        if first.exists() and first.stat().st_ino == newest.st_ino:
            if self._told.get(path) == newest.st_ino:
                return False
        elif newest.st_size < self.limits.size:
            self.forget(path)
            return False
        elif self.limits.files > 1:
            for number in range(self.limits.files - 1, 1, -1):
                younger = rotated(path, number - 1)
                if younger.exists():
                    younger.rename(rotated(path, number))
            # A second name, and not another: `path` is there at all times, and is replaced.
            first.hardlink_to(path)
        self._told[path] = newest.st_ino
        return reopen()

    def forget(self, path: Path) -> None:
        """A log is gone, or its rotation is over."""
        self._told.pop(path, None)


def last_line(path: Path) -> str:
    """The text of the last record in a file, empty when there is none."""
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
    path: Path,
    *,
    tail: int | None = None,
    since: float | None = None,
    follow: bool = False,
    ended: asyncio.Event | None = None,
) -> AsyncIterator[LogRecord]:
    """The records of a log, the oldest first, over all rotated files.

    `tail`: only the last so many lines; `since`: only those from this time on (seconds of the
    epoch); `follow`: go on as new ones come, until `ended` is set (then to the end of what is
    there) or the log is removed.
    """
    with Inotify(path.parent, _EVENTS) if follow else contextlib.nullcontext() as news:
        cursor = await asyncio.to_thread(_start, path, tail)
        if cursor is None:
            cursor = _Cursor.at(path)
        try:
            while True:
                # Asked before reading: what is written later belongs to the next round.
                last_round = not follow or (ended is not None and ended.is_set())
                while cursor is not None:
                    newer = cursor.newer(path)
                    for count, record in enumerate(cursor.records(), 1):
                        if since is None or record.time >= since:
                            yield record
                        if count % 1000 == 0:
                            await asyncio.sleep(0)
                    if newer is None:
                        break
                    cursor.close()
                    cursor = newer
                # Once there, the newest file is replaced at most; the folder is asked for too since
                # the kernel tells of its end only when no file of it is open any more.
                if last_round or news is None or not (path if cursor else path.parent).exists():
                    return
                await _changed(news, ended)
                if cursor is None:
                    cursor = _Cursor.at(path)
        finally:
            if cursor is not None:
                cursor.close()


class _Cursor:
    """A place in one file of a log."""

    def __init__(self, file: BinaryIO, offset: int = 0) -> None:
        self._file = file
        self._file.seek(offset)
        self._inode = os.fstat(file.fileno()).st_ino
        self._rest = b""

    @classmethod
    def at(cls, path: Path) -> _Cursor | None:
        """The beginning of the oldest file; None when there is none yet."""
        files = _files(path)
        for file in files[1:]:
            file.close()
        return cls(files[0]) if files else None

    def newer(self, path: Path) -> _Cursor | None:
        """The beginning of the file that was begun after this one, None when this is the newest.

        One that was rotated away altogether is followed by the oldest there is.
        """
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == self._inode:
                return None
        files = _files(path)
        inodes = [os.fstat(file.fileno()).st_ino for file in files]
        position = inodes.index(self._inode) + 1 if self._inode in inodes else 0
        for index, file in enumerate(files):
            if index != position:
                file.close()
        return _Cursor(files[position]) if position < len(files) else None

    def records(self) -> Iterator[LogRecord]:
        """All whole records from here to the end of the file as it is now."""
        while block := self._file.read(_BLOCK):
            *lines, self._rest = (self._rest + block).split(b"\n")
            for line in lines:
                if (record := parse(line)) is not None:
                    yield record

    def close(self) -> None:
        """Let the file go."""
        self._file.close()


def _files(path: Path) -> list[BinaryIO]:
    """All files of a log, the oldest first, opened.

    They are opened from the newest on: a rotation meanwhile then shows a file twice and not never.
    """
    opened: list[BinaryIO] = []
    seen: set[int] = set()
    number = missing = 0
    while True:
        try:
            file = open(rotated(path, number), "rb", buffering=0)  # noqa: SIM115
        except (FileNotFoundError, NotADirectoryError):
            # One number is missing for a moment while the log is rotated.
            missing += 1
            if missing > 1:
                break
            number += 1
            continue
        inode = os.fstat(file.fileno()).st_ino
        if inode in seen:
            file.close()
        else:
            seen.add(inode)
            opened.append(file)
        number += 1
    return opened[::-1]


def _start(path: Path, tail: int | None) -> _Cursor | None:
    """Where reading begins: at the oldest record, or so many lines before the end."""
    files = _files(path)
    if not files:
        return None
    chosen, offset = files[0], 0
    if tail is not None:
        for file in reversed(files):
            found, offset = _lines_back(file, tail)
            chosen, tail = file, tail - found
            if tail <= 0:
                break
    for file in files:
        if file is not chosen:
            file.close()
    return _Cursor(chosen, offset)


def _lines_back(file: BinaryIO, wanted: int) -> tuple[int, int]:
    """How many of the `wanted` last lines a file has, and the offset at which they begin."""
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
            # A long line is several records; the next line begins after the last of them.
            if line.split(b" ", 3)[2:3] == [b"F"]:
                starts.append(at)
        ends_whole = bool(starts) and starts[-1] == size
        lines = starts[:-1] if ends_whole else starts
        if len(lines) >= wanted or begin == 0:
            kept = lines[-wanted:]
            return len(kept), kept[0] if kept else size
        span *= 4


async def _changed(news: Inotify, ended: asyncio.Event | None) -> None:
    """Until there is news since the last call, or `ended` is set."""
    if ended is None:
        await readable(news.fd)
    else:
        async with asyncio.TaskGroup() as group:
            waits: tuple[asyncio.Task[Any], ...] = (
                group.create_task(readable(news.fd)),
                group.create_task(ended.wait()),
            )
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
    news.take()
