"""A blob on its way to this node: hashed as it is written, so that it need not be read again."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Self

from orchestrator.agent.images.disk import compare
from orchestrator.agent.images.errors import ImageError


class Incoming:
    """A file that grows to be the blob `digest`; a context manager that closes it.

    Whoever reads it meanwhile sees the blob's beginning, unless `restarts` has grown since. Its
    writer is one thread at a time.
    """

    def __init__(self, path: Path, digest: str, size: int | None, limit: int) -> None:
        """`path` does not exist yet. `size`: bytes of the blob; None: any, up to `limit`."""
        self.path = path
        self.digest = digest
        self.received = 0
        """Bytes so far."""
        self.restarts = 0
        """How often what had come was thrown away."""
        self.whole = asyncio.Event()
        """Set when all is there, and right."""
        self._size = size
        self._limit = limit if size is None else size
        self._hash = hashlib.sha256()
        self._file = path.open("wb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        """Add to it. Raises ImageError for more than the blob has, OSError of the disk."""
        if self.received + len(data) > self._limit:
            raise ImageError(f"blob {self.digest} is damaged: it has over {self._limit} bytes")
        self._hash.update(data)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) or 0 :]
        self.received += len(data)

    def restart(self) -> None:
        """Throw away what has come."""
        if self.received:
            self._file.seek(0)
            self._file.truncate()
            self._hash = hashlib.sha256()
            self.received = 0
            self.restarts += 1

    def check(self) -> None:
        """Raises ImageError unless it is the blob that it is to be."""
        size = self.received if self._size is None else self._size
        compare(self.digest, f"sha256:{self._hash.hexdigest()}", size, self.received)

    def flush(self) -> None:
        """Make it durable."""
        os.fsync(self._file.fileno())


Fetch = Callable[[Incoming], Awaitable[None]]
"""Brings all of a blob. Raises `ImageError`."""
