# SPDX-License-Identifier: Apache-2.0
"""What users see of a failure: commands say it in one line, and followed logs have no gap."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.chaos.history import History, Line, Violation

_NUMBERED = re.compile(r"(?P<task>\S+)\s+\|\s(?P<number>\d+)")
"""A line of the service that counts, with the task that wrote it."""

_LATE = 5.0
"""Seconds within which a line is read that was written."""


def check(history: History) -> Iterator[Violation]:
    """All of this module's rules."""
    yield from _words(history)
    yield from _streams(history)


def _words(history: History) -> Iterator[Violation]:
    """A command that failed says why in one line."""
    for call in history.calls:
        if call.manager or call.outcome == "ok":
            continue
        lines = call.error.splitlines()
        if "Traceback" in call.error:
            text = f"{call.method} ended with a traceback: {lines[-1]}"
            yield Violation("commands", text, (call.line,))
        elif call.method.startswith("Run exec") and not lines:
            continue  # the status of the program in the container
        elif not lines:
            yield Violation("commands", f"{call.method} failed without a word", (call.line,))


def _streams(history: History) -> Iterator[Violation]:
    """A followed log has each line of a task once, in order, whichever manager relays it. What a
    container writes while the disk of its node is full is lost."""
    full = [fault for fault in history.faults if fault.name == "disk"]
    last: dict[tuple[str, str], tuple[int, Line]] = {}
    for line in history.lines:
        found = _NUMBERED.fullmatch(line.text)
        if found is None:
            continue
        key, number = (line.reading, found["task"]), int(found["number"])
        before = last.get(key)
        last[key] = (number, line)
        if before is None or number == before[0] + 1 or number == 0:
            continue
        what = "repeats" if number <= before[0] else "lacks"
        node = found["task"].partition("@")[2]
        if what == "lacks" and any(
            node in fault.targets and fault.began < line.at and before[1].at < fault.ended + _LATE
            for fault in full
        ):
            continue
        text = f"the log of {found['task']} {what} lines: {number} follows {before[0]}"
        yield Violation("logs", text, (before[1].line, line.line))
