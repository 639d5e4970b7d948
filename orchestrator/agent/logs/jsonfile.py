# SPDX-License-Identifier: Apache-2.0
"""The json-file driver: files in Docker's format, which log shippers tail.

A line of a file is a JSON object with `log`, `stream` and `time`, and `attrs` if the options name
a tag, labels or variables. `log` ends with a line feed, but for a part of a longer line. Source:
moby's daemon/logger/jsonfilelog and jsonlog.

Each line is written once, also if the agent is killed: the lines written since the last recorded
position are counted, and that number of lines of the log is skipped.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.agent.logs.log_reader import Line
from orchestrator.agent.logs.log_target import Container, TargetError
from orchestrator.agent.runtime.io.logfiles import LogLimits, rotated

_MODE = 0o640
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class JsonFile:
    """Writes the lines of one container, and rotates the files."""

    def __init__(
        self, path: Path, limits: LogLimits, container: Container, record: Mapping[str, Any]
    ) -> None:
        """`record`: the result of `record` at the position from which lines are sent now. Waits
        for the disk. Raises TargetError."""
        self._path = path
        self._limits = limits
        details = dict(container.details)
        if container.tagged:
            details["tag"] = container.tag
        self._attrs = f',"attrs":{_encode(details)}' if details else ""
        self._fd = -1
        self._size = 0
        self._lock = threading.RLock()
        """Held while a thread writes: it continues when its caller is cancelled."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            self._repeated = self._written_since(record)
        except OSError as error:
            raise _failed(path, error) from error

    def _written_since(self, record: Mapping[str, Any]) -> int:
        """The number of lines written after `record`; an incomplete last line is removed."""
        _cut(self._path)
        since, size = record.get("inode", 0), record.get("size", 0)
        count = number = 0
        while True:
            try:
                with open(rotated(self._path, number), "rb") as file:
                    found = os.fstat(file.fileno()).st_ino == since
                    file.seek(size if found else 0)
                    lines = sum(
                        block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b"")
                    )
            except FileNotFoundError:
                # The recorded file is gone, so the number is unknown.
                return 0 if since else count
            count += lines
            if found:
                return count
            number += 1

    async def send(self, lines: Sequence[Line]) -> int:
        """See `Target.send`."""
        passed = min(self._repeated, len(lines))
        rows = [_row(line, self._attrs) for line in lines[passed:]]
        try:
            written = await asyncio.to_thread(self._write_all, rows)
        except OSError as error:
            self.close()
            raise _failed(self._path, error) from error
        self._repeated -= passed
        return passed + written

    def _write_all(self, rows: list[bytes]) -> int:
        with self._lock:
            return self._write(rows)

    def _write(self, rows: list[bytes]) -> int:
        at = 0
        while at < len(rows):
            if self._fd < 0:
                self._fd = os.open(
                    self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE
                )
                self._size = os.fstat(self._fd).st_size
            end, room = at, self._limits.size - self._size
            while end < len(rows) and (room >= len(rows[end]) or (self._size == 0 and end == at)):
                room -= len(rows[end])
                end += 1
            if end == at:
                self._rotate()
                continue
            try:
                self._append(b"".join(rows[at:end]))
            except OSError:
                if at:
                    return at
                raise
            at = end
        return at

    def _append(self, data: bytes) -> None:
        """Append all of `data` or, on an error such as a full disk, none of it. Raises OSError."""
        try:
            written = os.write(self._fd, data)
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)

    def _rotate(self) -> None:
        self.close()
        for number in range(self._limits.files - 1, 0, -1):
            younger = rotated(self._path, number - 1)
            if younger.exists():
                younger.rename(rotated(self._path, number))
        if self._limits.files == 1:
            self._path.unlink(missing_ok=True)

    def record(self) -> dict[str, Any]:
        """See `Target.record`."""
        with self._lock:
            try:
                found = os.fstat(self._fd) if self._fd >= 0 else self._path.stat()
            except FileNotFoundError:
                return {}
        return {"inode": found.st_ino, "size": found.st_size}

    def close(self) -> None:
        """See `Target.close`."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


def _row(line: Line, attrs: str) -> bytes:
    text = line.text.decode("utf-8", "replace")
    log = _encode(text if line.partial else text + "\n")
    return f'{{"log":{log},"stream":"{line.stream}"{attrs},"time":"{line.time}"}}\n'.encode()


def _cut(path: Path) -> None:
    """Remove an incomplete last line of a file."""
    try:
        file = open(path, "r+b")  # noqa: SIM115
    except FileNotFoundError:
        return
    with file:
        size = file.seek(0, os.SEEK_END)
        end = size
        while end > 0:
            begin = max(0, end - (1 << 16))
            found = os.pread(file.fileno(), end - begin, begin).rfind(b"\n")
            if found >= 0:
                end = begin + found + 1
                break
            end = begin
        if end < size:
            file.truncate(end)


def _failed(path: Path, error: OSError) -> TargetError:
    return TargetError(f"logging driver json-file: cannot write {path} ({error.strerror})")
