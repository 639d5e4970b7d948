# SPDX-License-Identifier: Apache-2.0
"""Position in one task's log, from which a broken stream resumes."""

from __future__ import annotations

from typing import Any


class LogPosition:
    """The time of the last line, and the number of lines received with exactly that time.

    It joins two streams: the second begins at `since` or before, and repeated lines are dropped.
    Records are `LogRecord`s.
    """

    def __init__(self, since: float, tail: int) -> None:
        """The start of the first stream, as in a `LogsRequest`."""
        self.since = since
        self.tail = tail
        self._same = self._skip = 0
        self._joins = False

    def begin(self) -> None:
        """Begin another stream, which may repeat known lines."""
        self._joins, self._skip = self.tail < 0, self._same

    def advance(self, records: Any) -> None:
        """Process received records, and drop repeated ones."""
        known = 0
        while self._joins and known < len(records) and not records[known].notice:
            self._joins = self._is_known(records[known].at)
            known += self._joins
        del records[:known]
        last, same = None, 0
        for record in reversed(records):
            if record.notice:
                continue
            if record.at != (last := record.at if last is None else last):
                break
            same += 1
        if last is not None:
            self._same = same + (self._same if last == self.since else 0)
            self.since, self.tail = last, -1

    def _is_known(self, at: float) -> bool:
        if at == self.since and self._skip:
            self._skip -= 1
            return True
        return at < self.since
