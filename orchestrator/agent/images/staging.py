# SPDX-License-Identifier: Apache-2.0
"""Staging of blobs and folders: complete and verified, or not visible at all.

A blob is hashed while it is written, so that it need not be read again.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Self

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.linux.atomicfile import flush_folder
from orchestrator.linux.trees import remove_tree

_CHUNK = 1 << 20
_UNPACKER_EXIT = 10.0
"""Seconds until an unpacker has noticed that its agent was killed: after at most one chunk."""


class Scratch:
    """A folder of temporary files and folders, on the file system of their destinations."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def used(self) -> bool:
        """Whether the folder has any content."""
        return self._root.is_dir() and any(self._root.iterdir())

    def clear(self) -> None:
        """Remove leftovers of an earlier run, and create the folder. Blocks until processes that
        still write to it have ended."""
        self._root.mkdir(parents=True, exist_ok=True)
        for left in self._root.iterdir():
            deadline = time.monotonic() + _UNPACKER_EXIT
            while True:
                try:
                    remove_tree(left)
                    break
                except OSError as error:
                    if error.errno != errno.ENOTEMPTY or time.monotonic() > deadline:
                        raise

    def path(self) -> Path:
        """A new, unused path."""
        return self._root / uuid.uuid4().hex

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A new folder of mode 0755, removed at the end of the block if it still exists."""
        path = self.path()
        path.mkdir()
        path.chmod(0o755)
        try:
            yield path
        finally:
            remove_tree(path)


def publish(made: Path, final: Path) -> None:
    """Rename a complete, flushed file or folder to its final name, durably."""
    made.rename(final)
    flush_folder(final.parent)


def write_verified(source: IO[bytes], target: Path, digest: str, size: int) -> None:
    """Copy and flush a blob. Raises `ImageError` when its size or digest does not match."""
    found = hashlib.sha256()
    count = 0
    with target.open("wb") as out:
        while chunk := source.read(_CHUNK):
            found.update(chunk)
            count += len(chunk)
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    compare(digest, f"sha256:{found.hexdigest()}", size, count)


def verify(path: Path, digest: str, size: int | None) -> None:
    """Raises `ImageError` when the file is not the blob `digest` of `size` bytes (None: any)."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256")
        count = file.tell()
    compare(digest, f"sha256:{found.hexdigest()}", count if size is None else size, count)


def compare(digest: str, found: str, size: int, count: int) -> None:
    """Raises ImageError unless digest and size of a blob are as expected."""
    if count != size:
        raise ImageError(f"blob {digest} is damaged: it has {count} bytes instead of {size}")
    if found != digest:
        raise ImageError(f"blob {digest} is damaged: its digest is {found}")


class IncomingBlob:
    """A file to which the blob `digest` is written; a context manager that closes it.

    A concurrent reader sees the beginning of the blob, unless `restarts` has increased since. Only
    one thread may write at a time.
    """

    def __init__(self, path: Path, digest: str, size: int | None, limit: int) -> None:
        """`path` must not exist. `size`: bytes of the blob; None: any, up to `limit`."""
        self.path = path
        self.digest = digest
        self.received = 0
        """Bytes written."""
        self.restarts = 0
        """How often the content was discarded."""
        self.complete = asyncio.Event()
        """Set when the blob is complete and verified."""
        self._size = size
        self._limit = limit if size is None else size
        self._hash = hashlib.sha256()
        self._file = path.open("wb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        """Append data. Raises ImageError if it exceeds the blob's size, OSError of the disk."""
        if self.received + len(data) > self._limit:
            raise ImageError(f"blob {self.digest} is damaged: it has over {self._limit} bytes")
        self._hash.update(data)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) or 0 :]
        self.received += len(data)

    def restart(self) -> None:
        """Discard the content."""
        if self.received:
            self._file.seek(0)
            self._file.truncate()
            self._hash = hashlib.sha256()
            self.received = 0
            self.restarts += 1

    def check(self) -> None:
        """Raises ImageError unless size and digest are as expected."""
        size = self.received if self._size is None else self._size
        compare(self.digest, f"sha256:{self._hash.hexdigest()}", size, self.received)

    def flush(self) -> None:
        """Make it durable."""
        os.fsync(self._file.fileno())


FetchBlob = Callable[[IncomingBlob], Awaitable[None]]
"""Fetches a complete blob. Raises `ImageError`."""
