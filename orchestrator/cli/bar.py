"""Bars for uploads and layers on a terminal. Imported only where there is one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TransferSpeedColumn,
)

from orchestrator.model.names import short_id


def with_bar(chunks: Iterable[bytes], size: int, what: str) -> Iterator[bytes]:
    """The same pieces, with a bar on stderr that counts them up to `size` bytes."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(
        *columns, TransferSpeedColumn(), console=Console(stderr=True), transient=True
    ) as progress:
        task = progress.add_task(what, total=size)
        for chunk in chunks:
            yield chunk
            progress.advance(task, len(chunk))


class Bars:
    """A bar a layer, on stderr, for what goes on at once."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
        self._progress = Progress(
            *columns, TransferSpeedColumn(), console=Console(stderr=True), transient=False
        )
        self._bars: dict[str, TaskID] = {}
        self._progress.start()

    def show(self, digest: str, done: int, total: int) -> None:
        """So much of a layer has come."""
        if digest not in self._bars:
            self._bars[digest] = self._progress.add_task(short_id(digest), total=total)
        self._progress.update(self._bars[digest], completed=done)

    def close(self) -> None:
        """Leave the bars as they are."""
        self._progress.stop()
