"""A program: put other files where a running container has files mounted, each at once.

Arguments: a descriptor of a process of the container (pidfd), then pairs of a file of the host and
the path that it has in the container. Whoever opens the path finds the old file or the new one, and
never none: the new mount goes beneath the old one, which is then taken away (move_mount(2),
MOVE_MOUNT_BENEATH, Linux 6.5); on older kernels it goes on top, and the old one stays hidden.

It is a program of its own, as a process with threads cannot enter a mount namespace.
"""

from __future__ import annotations

import ctypes
import os
import sys

_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_F_EMPTY_PATH, _T_SYMLINKS, _BENEATH = 0x4, 0x10, 0x200
_RDONLY, _NOSUID, _NODEV, _NOEXEC = 0x1, 0x2, 0x4, 0x8
_MS_PRIVATE = 1 << 18
_CLONE_NEWNS = 0x00020000
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result


def _mount_of(file: str) -> int:
    """A detached, read-only mount of a file."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    found: int = _check(_libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(file), flags), file)
    attributes = _MountAttr(_RDONLY | _NOSUID | _NODEV | _NOEXEC, 0, _MS_PRIVATE, 0)
    size = ctypes.sizeof(attributes)
    reference = ctypes.byref(attributes)
    _check(_libc.syscall(_SYS_MOUNT_SETATTR, found, b"", _AT_EMPTY_PATH, reference, size), file)
    return found


def _put(mount: int, target: str) -> None:
    path = os.fsencode(target)
    flags = _F_EMPTY_PATH | _T_SYMLINKS
    moved = _libc.syscall(_SYS_MOVE_MOUNT, mount, b"", _AT_FDCWD, path, flags | _BENEATH)
    if moved == 0:
        _check(_libc.umount2(path, _MNT_DETACH), target)
        return
    _check(_libc.syscall(_SYS_MOVE_MOUNT, mount, b"", _AT_FDCWD, path, flags), target)


def main(argv: list[str]) -> None:
    """See the page above. Exits with 1 and a line on stderr if the kernel refuses."""
    process, files = int(argv[0]), argv[1:]
    try:
        mounts = [
            (_mount_of(file), target) for file, target in zip(files[::2], files[1::2], strict=True)
        ]
        _check(_libc.setns(process, _CLONE_NEWNS), "the container's mounts")
        for mount, target in mounts:
            _put(mount, target)
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
