"""Mounts a folder that lies beneath another whose content is not to be trusted: a short process.

Run as a file (`python -I -S beneath.py ROOT PATH TARGET`) with the standard library alone. It is a
process of its own because a look into a dead file server hangs for good, and a process can be
killed. It ends with 0, or with 1 and the number of the kernel's error (errno(3)) on stderr.

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

_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442
"""The same numbers on every architecture."""
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_CLONE = _AT_EMPTY_PATH | _AT_RECURSIVE | _OPEN_TREE_CLONE | os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MS_PRIVATE = 1 << 18
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08
_ATTEMPTS = 128
"""Lookups that are disturbed by a rename on this node, as openat2(2) tells of, before it is given
up."""

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _call(number: int, *arguments: object) -> int:
    found: int = _libc.syscall(number, *arguments)
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return found


def open_beneath(root: int, path: str) -> int:
    """A descriptor (O_PATH) of the folder at `path` below the folder `root`.

    Links are followed as long as they stay below it. Raises OSError; EXDEV for a path that leads
    out, ENOENT or ENOTDIR when there is no such folder.
    """
    how = _OpenHow(
        os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS
    )
    for _ in range(_ATTEMPTS):
        try:
            return _call(
                _SYS_OPENAT2, root, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)
            )
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
        tree = _call(_SYS_OPEN_TREE, folder, b"", _CLONE)
        opened.callback(os.close, tree)
        # Apart from what is mounted in the volume later, which may be another container's doing.
        private = _MountAttr(0, 0, _MS_PRIVATE, 0)
        _call(
            _SYS_MOUNT_SETATTR,
            tree,
            b"",
            _AT_EMPTY_PATH | _AT_RECURSIVE,
            ctypes.byref(private),
            ctypes.sizeof(private),
        )
        _call(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)


def main() -> None:
    """Mount what the command line names."""
    root, path, target = sys.argv[1:]
    try:
        mount_beneath(root, path, target)
    except OSError as error:
        sys.exit(str(error.errno))


if __name__ == "__main__":
    main()
