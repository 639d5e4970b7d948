"""A bar for an upload on a terminal. Imported only where there is one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn


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
