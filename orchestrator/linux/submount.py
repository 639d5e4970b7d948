"""Mounts a folder that lies beneath another whose content is not to be trusted: a short process.

Arguments: ROOT PATH TARGET. It is a process of its own because a look into a dead file server hangs
for good, and a process can be killed. It ends with 0, or with 1 and the number of the kernel's
error (errno(3)) on stderr.

Whoever may write beneath ROOT may put a symbolic link in the place of a folder at any moment. So
the path is looked up once, by a call that refuses to leave ROOT, and what was found is mounted from
its descriptor: no path is read a second time. Source: openat2(2), open_tree(2), move_mount(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from contextlib import ExitStack

from orchestrator.linux.mounts import attach, check, detached, libc

_SYS_OPENAT2 = 437
"""The same number on every architecture."""
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08
_ATTEMPTS = 128
"""Lookups that are disturbed by a rename on this node, as openat2(2) tells of, before it is given
up."""


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def open_beneath(root: int, path: str) -> int:
    """A descriptor (O_PATH) of the folder at `path` below the folder `root`.

    Links are followed as long as they stay below it. Raises OSError; EXDEV for a path that leads
    out, ENOENT or ENOTDIR when there is no such folder.
    """
    how = _OpenHow(
        os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS
    )
    arguments = ctypes.byref(how), ctypes.sizeof(how)
    for _ in range(_ATTEMPTS):
        try:
            return check(libc.syscall(_SYS_OPENAT2, root, os.fsencode(path), *arguments), path)
        except BlockingIOError:
            continue
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)


def mount_beneath(root: str, path: str, target: str) -> None:
    """Mount the folder at `path` below `root`, with what is mounted below it, at `target`.

    Raises OSError as `open_beneath` does, or as the kernel refuses the mount.
    """
    with ExitStack() as opened:
        above = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, above)
        folder = open_beneath(above, path)
        opened.callback(os.close, folder)
        # Private: apart from what is mounted in the volume later, which may be another container's
        # doing.
        tree = detached(folder, recursive=True)
        opened.callback(os.close, tree)
        attach(tree, target)


def main(argv: list[str]) -> None:
    """Mount what the arguments name."""
    root, path, target = argv
    try:
        mount_beneath(root, path, target)
    except OSError as error:
        sys.exit(str(error.errno))
