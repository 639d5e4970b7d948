# SPDX-License-Identifier: Apache-2.0
"""Writing the history, and the clock of the run."""

from __future__ import annotations

import time
from pathlib import Path

from tests.chaos.history import Record, dump


class Recorder:
    """Appends records to a file. Every line is whole on the disk when `add` returns to a loop that
    may be killed."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", buffering=1)
        self._began = time.monotonic()
        self.count = 0

    def restart(self) -> None:
        """Let the run begin now."""
        self._began = time.monotonic()

    def now(self) -> float:
        """Seconds since the run began."""
        return round(time.monotonic() - self._began, 4)

    def at(self, monotonic: float) -> float:
        """A time of the machine's monotonic clock as a time of the run."""
        return round(monotonic - self._began, 4)

    def add(self, record: Record) -> None:
        self.count += 1
        self._file.write(dump(record) + "\n")

    def close(self) -> None:
        self._file.close()
