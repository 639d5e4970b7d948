# SPDX-License-Identifier: Apache-2.0
"""Where audit entries are stored: rotated files of JSON lines, and the systemd journal.

Files are bounded in size and number and have mode 0600; one thread writes, any number of threads
read. The journal is used where there is one (systemd.io, "Native Journal Protocol").
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

Record = dict[str, Any]


class RotatedLog:
    """`NAME.log`, the older files `NAME.log.1` (the newest of them), `NAME.log.2` and so on beside
    it."""

    def __init__(self, folder: Path, name: str, most_bytes: int, files: int) -> None:
        """`most_bytes` per file; `files` at most, including the one that is written."""
        self._path = folder / f"{name}.log"
        self._most = most_bytes
        self._files = files
        self._lock = threading.Lock()
        """Held while files are renamed, or opened for reading."""
        self.sequence = 0
        """Number of the newest entry."""

    def open(self) -> None:
        """Create the folder, and continue after the newest entry. Raises OSError."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        newest = next(self.backwards(), None)
        self.sequence = newest["seq"] if newest else 0

    def append(self, lines: Sequence[str]) -> None:
        """Append lines, all or none, and sync them to disk. Raises OSError."""
        data = "".join(f"{line}\n" for line in lines).encode()
        with suppress(FileNotFoundError):
            size = self._path.stat().st_size
            if size and size + len(data) > self._most:
                self._rotate()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            try:
                written = 0
                while written < len(data):
                    written += os.write(descriptor, data[written:])
                os.fdatasync(descriptor)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)

    def _rotate(self) -> None:
        with self._lock:
            if self._files == 1:
                self._path.unlink(missing_ok=True)
            for number in range(self._files - 1, 0, -1):
                with suppress(FileNotFoundError):
                    self._numbered(number - 1).replace(self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path

    def _opened(self, stack: ExitStack) -> list[IO[bytes]]:
        """All files, newest first."""
        found: list[IO[bytes]] = []
        with self._lock:
            for number in range(self._files):
                with suppress(FileNotFoundError):
                    found.append(stack.enter_context(self._numbered(number).open("rb")))
        return found

    def forwards(self, since: float = 0.0) -> Iterator[Record]:
        """The entries, oldest first, without files that were last written before `since`."""
        with ExitStack() as stack:
            for file in reversed(self._opened(stack)):
                if os.fstat(file.fileno()).st_mtime >= since:
                    for line in file:
                        if (found := _parsed(line)) is not None:
                            yield found

    def backwards(self) -> Iterator[Record]:
        """The entries, newest first."""
        with ExitStack() as stack:
            for file in self._opened(stack):
                for line in reversed(file.read().splitlines()):
                    if (found := _parsed(line)) is not None:
                        yield found


def _parsed(line: bytes) -> Record | None:
    """An entry; None for a line that a crash or an editor damaged."""
    try:
        found = json.loads(line)
        return found if isinstance(found["seq"], int) and isinstance(found["at"], float) else None
    except (ValueError, TypeError, KeyError):
        return None


SOCKET = Path("/run/systemd/journal/socket")


class Journal:
    """Sends lines to the systemd journal, if there is one."""

    def __init__(self, path: Path = SOCKET) -> None:
        self._path = str(path)
        self._socket: socket.socket | None = None
        if path.is_socket():
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    def send(self, line: str, identifier: str) -> None:
        """Send one line. If the journal is busy or gone, the line is dropped: the files have the
        entry."""
        if self._socket is None:
            return
        fields = f"MESSAGE={line}\nSYSLOG_IDENTIFIER={identifier}\nPRIORITY=6\n"
        with suppress(OSError):
            self._socket.sendto(fields.encode(), self._path)

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
