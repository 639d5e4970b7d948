# SPDX-License-Identifier: Apache-2.0
"""Mounts by path and by descriptor, and mount namespaces.

A mount by descriptor is complete before any process sees it, and is attached in one step.
Sources: mount(2), umount2(2), proc_pid_mountinfo(5); open_tree(2), mount_setattr(2) and
move_mount(2) of Linux 5.12 and later. All functions raise OSError.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

from orchestrator.linux import libc

MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8
MOUNT_ATTR_IDMAP = 0x00100000

_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
"""The same numbers on every architecture."""
_AT_FDCWD = -100
_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_OPEN_TREE_CLONE = 1
_F_EMPTY_PATH, _T_SYMLINKS, _BENEATH = 0x4, 0x10, 0x200


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def unmount(target: str | os.PathLike[str]) -> None:
    """Detach a mount, also while it is in use. Raises OSError; EINVAL when nothing is mounted
    there."""
    libc.umount(target, libc.MNT_DETACH)


def is_mounted(target: str | os.PathLike[str]) -> bool:
    """Whether `target` is a mount point in the caller's mount namespace."""
    return _escaped(os.path.realpath(target)) in _mount_points()


def _mount_points() -> set[str]:
    with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        return {line.split(" ", 5)[4] for line in table}


def _escaped(path: str) -> str:
    """As mountinfo writes it (proc_pid_mountinfo(5))."""
    return "".join(f"\\{ord(each):03o}" if each in " \t\n\\" else each for each in path)


def unshare_mounts(*, receive: bool = True) -> None:
    """Move the calling thread and its future children to a new mount namespace.

    What is mounted or unmounted here stays here. With `receive`, mounts that the host makes later
    (a volume, a network namespace) still propagate into it.
    """
    libc.unshare(libc.CLONE_NEWNS)
    propagation = libc.MS_SLAVE if receive else libc.MS_PRIVATE
    libc.mount("none", "/", flags=libc.MS_REC | propagation)


def mount_overlay(layers: Sequence[str], target: str, upper: str = "", work: str = "") -> None:
    """Mount an overlay, the lowest of `layers` first; read-only without `upper`.

    The folders are named by descriptors, which stay open: a mount call takes fewer paths than an
    image may have layers. For a short process.
    """

    def opened(path: str) -> str:
        return f"/proc/self/fd/{os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)}"

    if len(layers) < 2 and not upper:
        # An overlay without a writable layer has at least two layers.
        layers = (target, *layers)
    data = "lowerdir=" + ":".join(opened(path) for path in reversed(layers))
    if upper:
        data += f",upperdir={opened(upper)},workdir={opened(work)}"
    libc.mount("overlay", target, "overlay", 0, data)


def detached(
    place: str | os.PathLike[str] | int,
    attributes: int = 0,
    *,
    userns: int = 0,
    private: bool = True,
    recursive: bool = False,
) -> int:
    """A descriptor of a new mount of `place`, a path or a descriptor. The mount is removed when
    the descriptor is closed, unless it was attached.

    `attributes` are `MOUNT_ATTR_…`; `userns`: the namespace of MOUNT_ATTR_IDMAP; `private`: later
    mounts below the original do not propagate to it; `recursive`: present mounts below it are
    included.
    """
    folder, path = (place, b"") if isinstance(place, int) else (_AT_FDCWD, os.fsencode(place))
    name = os.fsdecode(path)
    below = _AT_RECURSIVE if recursive else 0
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | below | (0 if path else _AT_EMPTY_PATH)
    found = libc.syscall(_SYS_OPEN_TREE, folder, path, flags, what=name)
    wanted = _MountAttr(attributes, 0, libc.MS_PRIVATE if private else 0, userns)
    reference, size = ctypes.byref(wanted), ctypes.sizeof(wanted)
    flags = _AT_EMPTY_PATH | below
    try:
        libc.syscall(_SYS_MOUNT_SETATTR, found, b"", flags, reference, size, what=name)
    except OSError:
        os.close(found)
        raise
    return found


def attach(
    mount: int, target: str | os.PathLike[str], *, follow: bool = False, beneath: bool = False
) -> None:
    """Put a detached mount at `target`, whose last component may be a symbolic link only with
    `follow`: on top of what is mounted there or, from Linux 6.5 on, `beneath` it."""
    flags = _F_EMPTY_PATH | (_T_SYMLINKS if follow else 0) | (_BENEATH if beneath else 0)
    path = os.fsencode(target)
    libc.syscall(_SYS_MOVE_MOUNT, mount, b"", _AT_FDCWD, path, flags, what=os.fsdecode(path))


def idmapped(path: str | os.PathLike[str] | int, userns: int, *, read_only: bool = False) -> int:
    """A descriptor of a detached mount of `path`, without mounts below it, that maps the ids on
    disk to those of a user namespace. EINVAL where the file system does not support it."""
    read_only_flag = MOUNT_ATTR_RDONLY if read_only else 0
    return detached(path, MOUNT_ATTR_IDMAP | read_only_flag, userns=userns)


def mount_read_only(path: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Mount the file system at `path`, without mounts below it, at `target`: read-only, without
    devices, private."""
    found = detached(path, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV)
    try:
        attach(found, target)
    finally:
        os.close(found)
