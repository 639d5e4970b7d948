# SPDX-License-Identifier: Apache-2.0
"""The writer of a container's log, as conmon writes it."""

from __future__ import annotations

from pathlib import Path


class LogWriter:
    """Appends lines in conmon's format, and reopens its file when it is rotated."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.file = open(path, "ab", buffering=0)  # noqa: SIM115
        self.count = 0

    def write(self, text: str, *, tag: str = "F", stream: str = "stdout", second: int = 7) -> None:
        time = f"2026-11-24T12:00:{second:02d}.123456789+00:00"
        self.file.write(f"{time} {stream} {tag} {text}\n".encode())

    def lines(self, count: int) -> None:
        for _ in range(count):
            self.write(f"line {self.count}")
            self.count += 1

    def reopen(self) -> bool:
        self.file.close()
        temporary = self.path.with_name("log.tmp")
        self.file = open(temporary, "wb", buffering=0)  # noqa: SIM115
        temporary.rename(self.path)
        return True

    def close(self) -> None:
        self.file.close()
