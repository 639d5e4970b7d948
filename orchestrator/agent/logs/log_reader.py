# SPDX-License-Identifier: Apache-2.0
"""Reads the log files of a container from the position of an earlier reader.

A position is a file and an offset in it. A file keeps its inode when it is rotated or moved; since
inodes are reused, its first bytes, which contain the time of its first line, are compared as well.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

from orchestrator.agent.runtime.io.logfiles import inode, opened

_BLOCK = 1 << 16
_HEAD = 64
_HELD = 64
"""Maximum number of open files."""
LONGEST_LINE = 1 << 14
"""Maximum bytes of a line that is joined from its parts, as in Docker."""


@dataclass(frozen=True, slots=True)
class Place:
    """A position in a log."""

    inode: int = 0
    head: str = ""
    """The first bytes of the file, in hexadecimal digits; fewer than `_HEAD` of a short file."""
    offset: int = 0
    parts: tuple[tuple[str, bytes], ...] = ()
    """The incomplete lines, by stream."""


@dataclass(slots=True)
class _File:
    file: BinaryIO
    number: int
    head: str = ""
    offset: int = 0

    @property
    def left(self) -> int:
        return max(0, os.fstat(self.file.fileno()).st_size - self.offset)


BEGINNING = Place()


class Line(NamedTuple):
    """One line of output, or a part of a long one."""

    stream: str
    """`stdout` or `stderr`."""
    time: str
    """RFC 3339 with nanoseconds, in UTC."""
    text: bytes
    """Without the line feed."""
    partial: bool
    """Whether the line continues in the next one of this stream."""
    file: _File
    offset: int
    parts: tuple[tuple[str, bytes], ...] = ()

    @property
    def place(self) -> Place:
        """The position after it."""
        return Place(self.file.number, self.file.head, self.offset, self.parts)


@dataclass(slots=True)
class LogReader:
    """The files of one log from a position on, kept open: rotation removes none that is not read
    yet."""

    places: Sequence[Path]
    """See `logfiles.read`."""
    place: Place = BEGINNING
    """Set the position; if its file is gone, begin with its successors."""
    missed: bool = False
    """Whether files were removed unread since this was last set to false."""
    _files: deque[_File] = field(default_factory=deque)
    _parts: dict[str, bytes] = field(default_factory=dict)
    _begun: bool = False
    _unfinished: int = 0

    def refresh(self) -> None:
        """Open new files."""
        newest = self._newest()
        if self._files and self._files[-1].number == newest:
            return
        found = [_File(file, inode(file)) for file in opened(self.places)]
        if not self._begun and found:
            self._begin(found)
            return
        last = self._files[-1].number if self._files else self.place.inode
        numbers = [each.number for each in found]
        known = numbers.index(last) + 1 if last in numbers else 0
        self.missed |= bool(last and found and not known)
        for each in found[:known]:
            each.file.close()
        self._files.extend(found[known:])

    def _begin(self, found: list[_File]) -> None:
        self._begun = True
        self._parts = dict(self.place.parts)
        head = bytes.fromhex(self.place.head)
        for index, each in enumerate(found):
            start = os.pread(each.file.fileno(), _HEAD, 0)
            if each.number == self.place.inode and start.startswith(head):
                each.offset = self.place.offset
                for older in found[:index]:
                    older.file.close()
                self._files.extend(found[index:])
                return
        self.missed |= bool(self.place.inode)
        self._parts.clear()
        self._files.extend(found)

    def _newest(self) -> int:
        for path in self.places:
            try:
                return path.stat().st_ino
            except (FileNotFoundError, NotADirectoryError):
                continue
        return 0

    @property
    def here(self) -> Place:
        """The current position."""
        if not self._files:
            return self.place
        file = self._files[0]
        return Place(file.number, file.head, file.offset, tuple(self._parts.items()))

    def over(self, most: int) -> bool:
        """Whether more than that many bytes, or than the maximum of files, are unread."""
        return self.left > most or len(self._files) > _HELD

    @property
    def left(self) -> int:
        """Bytes that are not read yet."""
        return sum(each.left for each in self._files)

    def read(self) -> list[Line]:
        """The next lines; none if there are none yet."""
        while True:
            self.refresh()
            if not self._files:
                return []
            # Before reading: once there is a newer file, the older one is complete.
            newer = len(self._files) > 1
            file = self._files[0]
            block = os.pread(file.file.fileno(), _BLOCK, file.offset)
            end = block.rfind(b"\n") + 1
            self._unfinished = 0
            if end:
                lines = self._lines(file, block[:end])
                if lines:
                    return lines
            elif newer:
                self._files.popleft().file.close()
            elif len(block) == _BLOCK:
                file.offset += _BLOCK  # conmon writes no line of this length
            else:
                self._unfinished = len(block)
                return []

    def _lines(self, file: _File, block: bytes) -> list[Line]:
        if not file.head:
            file.head = os.pread(file.file.fileno(), _HEAD, 0).hex()
        lines: list[Line] = []
        offset = file.offset
        pending = self._parts
        for row in block[:-1].split(b"\n"):
            offset += len(row) + 1
            words = row.split(b" ", 3)
            if len(words) != 4 or words[2] not in (b"F", b"P"):
                continue
            stream, text = words[1].decode("ascii", "replace"), words[3]
            if pending:
                text = pending.pop(stream, b"") + text
            partial = words[2] == b"P"
            if partial and len(text) < LONGEST_LINE:
                pending[stream] = text
                continue
            parts = tuple(pending.items()) if pending else ()
            lines.append(Line(stream, _time(words[0]), text, partial, file, offset, parts))
        file.offset = offset
        return lines

    @property
    def fresh(self) -> bool:
        """Whether there is unread output, beyond an incomplete line of the last `read`."""
        if len(self._files) > 1:
            return True
        return bool(self._files) and self._files[0].left > self._unfinished

    @property
    def pending(self) -> bool:
        """Whether there are incomplete lines."""
        return bool(self._parts)

    def flush(self) -> list[Line]:
        """The incomplete lines, once no more output follows."""
        if not self._files or not self._parts:
            return []
        parts, self._parts = self._parts, {}
        file, now = self._files[0], _time(datetime.now(UTC).isoformat().encode())
        return [Line(stream, now, text, False, file, file.offset) for stream, text in parts.items()]

    def skip(self, most: int) -> int:
        """Drop the oldest lines until at most `most` bytes are left. Returns the lines dropped."""
        dropped = 0
        while self.over(most):
            lines = self.read()
            if not lines:
                break  # only an incomplete line is left
            dropped += len(lines)
        return dropped

    def close(self) -> None:
        """Close the files."""
        while self._files:
            self._files.pop().file.close()


def _time(stamp: bytes) -> str:
    text = stamp.decode("ascii", "replace")
    return text[:-6] + "Z" if text.endswith("+00:00") else text
