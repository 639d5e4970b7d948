# SPDX-License-Identifier: Apache-2.0
"""Reading and parsing small text files of the kernel (procfs, cgroups).

Python's file objects would cost more than the kernel's work, so files are read by descriptor. A
missing file reads as empty and a missing number as 0: a container may end between two reads.
"""

from __future__ import annotations

import os

_MOST = 1 << 16


def read_text(path: str) -> bytes:
    """The content of a small file; empty when it is missing."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, _MOST)
    except OSError:
        return b""
    finally:
        os.close(fd)


def number(text: bytes) -> int:
    """The number in a file with nothing else."""
    return int(text) if text.strip().isdigit() else 0


def keyed(text: bytes, key: str) -> int:
    """The number after a key at the start of a line."""
    word = key.encode()
    at = 0 if text.startswith(word + b" ") else text.find(b"\n" + word + b" ") + 1
    if at == 0 and not text.startswith(word + b" "):
        return 0
    fields = text[at : at + 80].split(None, 2)
    return int(fields[1])


def io_stat(text: bytes, kinds: tuple[bytes, bytes] = (b"rbytes", b"wbytes")) -> tuple[int, int]:
    """Bytes (or, with `rios` and `wios`, requests) read and written of version 2's
    `8:0 rbytes=1 wbytes=2 …`."""
    read = written = 0
    for field in text.split():
        key, _, value = field.partition(b"=")
        if key == kinds[0]:
            read += int(value)
        elif key == kinds[1]:
            written += int(value)
    return read, written


def io_service(text: bytes) -> tuple[int, int]:
    """Bytes or requests read and written of version 1's `8:0 Read 1`, a line a device and kind."""
    read = written = 0
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[1] == b"Read":
            read += int(fields[2])
        elif len(fields) == 3 and fields[1] == b"Write":
            written += int(fields[2])
    return read, written


def stalled(text: bytes, kind: bytes) -> float:
    """Seconds of a pressure file's `some` or `full` line; 0 where it has no such line."""
    for line in text.splitlines():
        if line.startswith(kind):
            return int(line.rpartition(b"=")[2]) / 1e6
    return 0.0
