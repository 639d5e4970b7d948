# SPDX-License-Identifier: Apache-2.0
"""Progress bars of uploads, layers and build steps. Imported only on a terminal."""

from __future__ import annotations

import re
import time
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TransferSpeedColumn,
)
from rich.spinner import Spinner
from rich.text import Text

from orchestrator.model.names import short_id
from orchestrator.model.units import format_size

_STEP = re.compile(r"(?:\[\d+/\d+\] )?(?:STEP \d+/\d+:|COMMIT\b)")


class ByteBar:
    """A bar on stderr that counts bytes, up to `total` if known; removed at the end."""

    def __init__(self, what: str, total: int | None) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
        self._progress = Progress(
            *columns, TransferSpeedColumn(), console=Console(stderr=True), transient=True
        )
        self._bar = self._progress.add_task(what, total=total)
        self._progress.start()

    def show(self, done: int) -> None:
        """Set the number of bytes so far."""
        self._progress.update(self._bar, completed=done)

    def close(self) -> None:
        """Remove it."""
        self._progress.stop()


class Bars:
    """A bar per layer, on stderr, for concurrent transfers."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
        self._progress = Progress(
            *columns, TransferSpeedColumn(), console=Console(stderr=True), transient=False
        )
        self._bars: dict[str, TaskID] = {}
        self._progress.start()

    def show(self, digest: str, done: int, total: int) -> None:
        """Set the progress of a layer."""
        if digest not in self._bars:
            self._bars[digest] = self._progress.add_task(short_id(digest), total=total)
        self._progress.update(self._bars[digest], completed=done)

    def close(self) -> None:
        """Stop drawing, and leave the bars."""
        self._progress.stop()


class BuildSteps:
    """A build as a line per step, with the latest output of the current one; after a failure its
    whole output stays."""

    _SHOWN = 6

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, refresh_per_second=12, transient=True)
        self._spinner = Spinner("dots")
        self._step = "sending the context"
        self._output: list[str] = []
        self._sent = 0
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        self._live.__enter__()
        self._draw()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        self._live.__exit__(kind, *error)
        if kind is None:
            self._end_step()
            return
        self._console.print(Text(f"✗ {self._step}", style="red"))
        for line in self._output:
            self._console.print(Text(line))

    def line(self, text: str) -> None:
        """Add a line of the build's output; a pattern recognises those that begin a step."""
        if _STEP.match(text):
            self._end_step()
            self._step, self._output, self._since = text, [], time.monotonic()
        else:
            self._output.append(text)
        self._draw()

    def sent(self, size: int) -> None:
        """Count sent bytes of the context."""
        self._sent += size
        self._draw()

    def _end_step(self) -> None:
        seconds = time.monotonic() - self._since
        cached = any("Using cache" in line for line in self._output)
        took = "cached" if cached else f"{seconds:.1f} s"
        if not self._sent or _STEP.match(self._step):
            self._console.print(Text(f"✓ {self._step}").append(f"  {took}", style="dim"))
        else:
            size = format_size(self._sent)
            self._console.print(Text("✓ context").append(f"  {size}, {took}", style="dim"))

    def _draw(self) -> None:
        head = self._step
        if self._sent and not _STEP.match(head):
            head = f"{head}  {format_size(self._sent)}"
        self._spinner.update(text=Text(head, no_wrap=True, overflow="ellipsis"))
        below = [
            Text(f"  {line}", style="dim", no_wrap=True, overflow="ellipsis")
            for line in self._output[-self._SHOWN :]
        ]
        self._live.update(Group(self._spinner, *below))
