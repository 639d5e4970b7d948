# SPDX-License-Identifier: Apache-2.0
"""Decompression of a layer's blob while it arrives.

Standard library only, and `isal` if it is installed, since the program `untar` uses it. The text of
an error is one line for the user.
"""

from __future__ import annotations

import os
import select
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

CHUNK = 1 << 20
_POLL = 0.02
"""Seconds between reads of a blob that is still growing."""


class BadLayer(Exception):
    """The layer cannot be unpacked; the text is for the user."""


class Blob:
    """The compressed bytes of a layer, an open file that may still grow."""

    def __init__(self, file: int, whole: int | None = None) -> None:
        """`whole`: a pipe that gets a byte when the blob is complete; None if it is."""
        self._file = file
        self._whole = whole

    def magic(self) -> bytes:
        """The first four bytes, fewer of a shorter blob; `read` returns them, too."""
        while len(data := os.pread(self._file, 4, 0)) < 4:
            if self._complete():
                return os.pread(self._file, 4, 0)  # written since the first read
        return data

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, waiting for the first; empty at the end."""
        while not (data := os.read(self._file, size)):
            if self._complete():
                return os.read(self._file, size)
        return data

    def _complete(self) -> bool:
        """Whether the blob is complete; waits at most for a short time."""
        if self._whole is None:
            return True
        if not select.select([self._whole], [], [], _POLL)[0]:
            return False
        if not os.read(self._whole, 1):
            raise BadLayer("the agent is gone")
        self._whole = None
        return True


def content(blob: Blob) -> Iterator[bytes]:
    """The uncompressed content of a blob, in pieces of at most `CHUNK`. Modules are imported by
    this call, before the first piece."""
    magic = blob.magic()
    if magic[:2] == b"\x1f\x8b":
        return _gunzip(blob, _inflate())
    if magic == b"\x28\xb5\x2f\xfd":
        import subprocess  # late: it costs 10 ms, and few layers need it

        return _unzstd(blob, subprocess)
    if magic[:3] == b"BZh" or magic == b"\xfd7zX":
        raise BadLayer("the layer is compressed by bzip2 or xz; use gzip, zstd or none")
    return iter(lambda: blob.read(CHUNK), b"")


def _inflate() -> Any:
    """The fastest installed module with zlib's interface."""
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib
    return isal_zlib


def _gunzip(blob: Blob, library: Any) -> Iterator[bytes]:
    inflate = library.decompressobj(31)
    data = b""
    try:
        while data or (data := blob.read(CHUNK // 4)):
            if inflate.eof:
                # Another gzip member follows, or padding.
                data = data.lstrip(b"\0")
                if not data:
                    continue
                inflate = library.decompressobj(31)
            piece = inflate.decompress(data, CHUNK)
            data = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
            if piece:
                yield piece
    except library.error as error:
        raise BadLayer(f"the layer's gzip data is broken: {error}") from error
    if not inflate.eof:
        raise BadLayer("the layer's gzip data ends too early")


def _unzstd(blob: Blob, subprocess: Any) -> Iterator[bytes]:
    try:
        child = subprocess.Popen(
            ["zstd", "-dcq"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise BadLayer("the layer is compressed by zstd: install the package zstd") from error
    with child:
        feeder = os.fork()
        if feeder == 0:
            os._exit(attempt(lambda: _copy(blob, child.stdin.fileno())))
        child.stdin.close()
        yield from iter(lambda: child.stdout.read(CHUNK), b"")
    fed = os.waitstatus_to_exitcode(os.waitpid(feeder, 0)[1])
    if child.returncode or fed:
        raise BadLayer("the layer's zstd data is broken")


def _copy(blob: Blob, pipe: int) -> None:
    while piece := blob.read(CHUNK):
        write_all(pipe, piece)


def write_all(pipe: int, piece: bytes) -> None:
    """Write a piece, in as many calls as it takes."""
    view = memoryview(piece)
    while view:
        view = view[os.write(pipe, view) :]


def attempt(step: Callable[[], None]) -> int:
    """Run a step of the program; on failure print one line. Returns the exit status."""
    try:
        step()
    except BadLayer as error:
        print(error, file=sys.stderr, flush=True)
    except BrokenPipeError:
        pass  # the other process has failed and reports why
    except OSError as error:
        print(f"cannot unpack: {error.strerror}", file=sys.stderr, flush=True)
    except MemoryError:
        print("unpacking the layer exceeds the memory limit", file=sys.stderr, flush=True)
    else:
        return 0
    return 1
