# SPDX-License-Identifier: Apache-2.0
"""The initramfs: an archive in the `newc` format (Linux, Documentation/driver-api/early-userspace/
buffer-format.rst), which the kernel unpacks into its first root folder."""

from __future__ import annotations

import stat
from collections.abc import Mapping

FOLDER = stat.S_IFDIR | 0o755
PROGRAM = stat.S_IFREG | 0o755
CONSOLE = (stat.S_IFCHR | 0o600, (5, 1))


def archive(files: Mapping[str, bytes]) -> bytes:
    """Files by their path without leading slash; all are executable. Their folders are made, and
    `dev/console`, without which process 1 has no output."""
    folders = {"dev", "proc"}
    for path in files:
        parts = path.split("/")[:-1]
        folders.update("/".join(parts[: depth + 1]) for depth in range(len(parts)))
    # A folder comes before what is in it.
    entries = [_entry(path, FOLDER) for path in sorted(folders)]
    entries.append(_entry("dev/console", CONSOLE[0], device=CONSOLE[1]))
    entries += [_entry(path, PROGRAM, content) for path, content in files.items()]
    return b"".join([*entries, _entry("TRAILER!!!", 0)])


def _entry(path: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    name = path.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device major and minor, special device's, length
    # of the name, checksum (not in this format).
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % number for number in numbers)
    return _padded(header + name) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
