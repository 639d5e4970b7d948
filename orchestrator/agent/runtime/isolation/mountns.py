"""The agent's own mount namespace, which hosts with both cgroup versions need."""

from __future__ import annotations

import os

from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.runtime.resources.cgroups import CgroupMode, detect
from orchestrator.linux import libc
from orchestrator.linux.mounts import unmount, unshare_mounts


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
        libc.mount("none", hierarchy.unified, "tmpfs", 0, "mode=755,size=4m")
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
        libc.setns(fd, libc.CLONE_NEWNS)
    finally:
        os.close(fd)
    return True
