"""The mount calls of libc, and the private mount namespace that hybrid cgroup hosts need."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from orchestrator.agent.runtime.base import RuntimeFailure

CLONE_NEWNS = 0x00020000
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 1 << 12
MS_REC = 1 << 14
MS_SLAVE = 1 << 19
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


def mount(source: str, target: Path, kind: str, flags: int, data: str) -> None:
    """mount(2). Raises OSError."""
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode(), flags, os.fsencode(data)
    )
    _check(result, str(target))


def unmount(target: Path) -> None:
    """Detach a mount, though it be in use. Raises OSError; EINVAL when nothing is mounted there."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), str(target))


def is_mounted(target: Path) -> bool:
    """Whether anything is mounted just there, in the agent's mount namespace."""
    return _escaped(os.path.realpath(target)) in _mount_points()


def _mount_points() -> set[str]:
    with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        return {line.split(" ", 5)[4] for line in table}


def _escaped(path: str) -> str:
    """As mountinfo writes it (proc_pid_mountinfo(5))."""
    return "".join(f"\\{ord(each):03o}" if each in " \t\n\\" else each for each in path)


def unshare_mounts() -> None:
    """Give the calling thread, and what it starts, a mount namespace of its own.

    Mounts that the host makes later still arrive (a volume, a network namespace); what is mounted
    or unmounted here stays here. Raises OSError.
    """
    _check(_libc.unshare(CLONE_NEWNS), "unshare")
    _check(_libc.mount(b"none", b"/", None, MS_REC | MS_SLAVE, None), "/")


def enter_private_mounts(conmon_pid: int | None) -> bool:
    """Prepare the mount namespace of the agent; to be called first, while it has one thread.

    On a host with both cgroup versions, make a mount namespace in which the version 2 part is not
    mounted, since crun refuses such hosts. When `conmon_pid`, the monitor of a container of an
    earlier agent, is given, its namespace is joined instead, so that the roots of the containers
    that run are mounted here as well. Elsewhere nothing is done, for there the mounts of an earlier
    agent are in the host's namespace.

    Returns whether the namespace was changed. Raises RuntimeFailure when the host has no cgroups,
    or when the kernel refuses.
    """
    from orchestrator.agent.runtime.cgroups import CgroupMode, detect

    hierarchy = detect()
    if hierarchy.mode is not CgroupMode.HYBRID or hierarchy.unified is None:
        return False
    try:
        if conmon_pid is not None and _join(conmon_pid):
            return True
        unshare_mounts()
        unmount(hierarchy.unified)
        # crun takes the bare folder for a cgroup tree and makes folders in it. Where those are
        # made must go with the namespace, and not lie forever under the host's own mount.
        mount("none", hierarchy.unified, "tmpfs", 0, "mode=755,size=4m")
    except OSError as error:
        raise RuntimeFailure(
            f"the agent cannot make a mount namespace ({error.strerror}); it must run as root"
        ) from error
    return True


def _join(pid: int) -> bool:
    """Enter the mount namespace of a process; False when the process has ended."""
    try:
        fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return False
    try:
        _check(_libc.setns(fd, CLONE_NEWNS), f"/proc/{pid}/ns/mnt")
    finally:
        os.close(fd)
    return True
