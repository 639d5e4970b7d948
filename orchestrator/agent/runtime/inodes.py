"""Where ext4 puts the inodes of containers' folders."""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path

# linux/fs.h
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_TOPDIR_FL = 0x00020000


def spread_inodes(folder: Path) -> None:
    """Have the folders in `folder` put into block groups of their own (`chattr +T`).

    ext4 looks for a free inode near the parent folder. Containers come and go, so that near is
    full of inodes just freed, which ext4 without a journal must not reuse for some seconds and
    looks at one by one: a fifth to a half of the time of starting many containers. Other file
    systems refuse the flag, and need it not.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            answer = fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, struct.pack("l", 0))
            (flags,) = struct.unpack("l", answer)
            fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, struct.pack("l", flags | _FS_TOPDIR_FL))
    finally:
        os.close(descriptor)
