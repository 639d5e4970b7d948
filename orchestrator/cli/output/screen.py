# SPDX-License-Identifier: Apache-2.0
"""The terminal: whether lines can be redrawn, its width, and tables that fit it.

Output to a pipe or a file, or with `--no-trunc`, is never truncated.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Self, TextIO

import click

if TYPE_CHECKING:
    from orchestrator.cli.output.byte_bar import ByteBar

PROGRESS_DELAY = 1.0
"""Seconds after which progress is shown."""
COLUMN_GAP = 3
"""Spaces between two columns."""
MIN_CELL_WIDTH = 8
"""Minimum width of a truncated cell."""

_FIRST_CUT = (
    *("COMMAND", "CREATED BY", "COMMENT", "CHANGES", "ENTRIES", "LABELS", "PORTS", "USED BY"),
    *("NETWORKS", "SERVICES", "ERROR", "REASON", "STATUS", "IMAGE", "REPOSITORY", "NODES"),
    *("MANAGERS", "BLOCK I/O", "NET I/O", "MEM RESERVED"),
)
"""Columns to truncate first, in this order: the least informative for their width. Then the widest
of the others, but never ids."""


def is_live(stream: TextIO) -> bool:
    """Whether lines can be redrawn: a terminal, and not a dumb one."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


class ByteMeter:
    """Counts bytes of a transfer. A long one shows a bar on stderr, if that is a terminal."""

    def __init__(self, what: str, total: int | None = None, *, quiet: bool = False) -> None:
        self._what = what
        self._total = total
        self._waits = is_live(sys.stderr) and not quiet
        self._began = time.monotonic()
        self._bar: ByteBar | None = None
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, size: int) -> None:
        """Count further bytes."""
        self.count += size
        if self._waits and time.monotonic() - self._began > PROGRESS_DELAY:
            from orchestrator.cli.output.byte_bar import ByteBar

            self._waits, self._bar = False, ByteBar(self._what, self._total)
        if self._bar is not None:
            self._bar.show(self.count)


def metered(
    chunks: Iterable[bytes], what: str, total: int | None = None, *, quiet: bool = False
) -> Iterator[bytes]:
    """The same pieces, counted by a Meter."""
    with ByteMeter(what, total, quiet=quiet) as meter:
        for chunk in chunks:
            yield chunk
            meter.add(len(chunk))


def terminal_width() -> int | None:
    """Maximum width of a table on stdout; None: unlimited."""
    context = click.get_current_context(silent=True)
    if not sys.stdout.isatty() or (context and context.params.get("no_trunc")):
        return None
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError):
        return None


def align_columns(lines: Sequence[Sequence[str]], room: int | None = None) -> list[str]:
    """Lines of cells as text, each column as wide as its widest cell; the first line has the
    headings. With `room`, columns stand closer and cells are cut until they fit, if
    that can be."""
    widths, gap = (
        [max(map(display_width, texts)) for texts in zip_longest(*lines, fillvalue="")],
        COLUMN_GAP,
    )
    if room is not None:
        while gap > 1 and sum(widths) + gap * (len(widths) - 1) > room:
            gap -= 1
        widths = fitted(lines[0], widths, room - gap * (len(widths) - 1))
    return [
        (" " * gap)
        .join(pad_cell(text, width) for text, width in zip(line, widths, strict=False))
        .rstrip()
        for line in lines
    ]


def fitted(headings: Sequence[str], widths: Sequence[int], room: int) -> list[int]:
    """Widths that take `room` together, or as near to it as is of use."""
    first = [n for name in _FIRST_CUT for n, heading in enumerate(headings) if heading == name]
    others = [
        n
        for n in sorted(range(len(widths)), key=lambda n: -widths[n])
        if n not in first and not headings[n].endswith("ID")
    ]
    narrow = _truncate(first, headings, widths, room)
    narrower = _truncate(others, headings, narrow, room)
    # If the table cannot fit anyway, truncating the others would not help.
    return narrower if sum(narrower) <= room else narrow


def _truncate(
    which: Sequence[int], headings: Sequence[str], widths: Sequence[int], room: int
) -> list[int]:
    left, over = list(widths), sum(widths) - room
    for n in which:
        less = min(max(over, 0), max(0, left[n] - max(display_width(headings[n]), MIN_CELL_WIDTH)))
        left[n] -= less
        over -= less
    return left


def pad_cell(text: str, width: int) -> str:
    """A cell of exactly this width: padded, or truncated with `…`."""
    size = display_width(text)
    if size <= width:
        return text + " " * (width - size)
    while display_width(text) > width - 1:
        text = text[:-1]
    return f"{text}…" + " " * (width - display_width(text) - 1)


def display_width(text: str) -> int:
    """Columns that a text takes on a terminal: East Asian characters are two wide."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(
        0 if combining(character) else 2 if east_asian_width(character) in "WF" else 1
        for character in text
    )
