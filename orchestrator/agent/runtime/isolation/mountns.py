# SPDX-License-Identifier: Apache-2.0
"""The agent's own mount namespace, which hosts with both cgroup versions need."""

from __future__ import annotations

import os

from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.runtime.resources.cgroups import CgroupMode, detect
from orchestrator.linux import libc
from orchestrator.linux.mounts import unmount, unshare_mounts


def enter_private_mounts(conmon_pid: int | None) -> bool:
    """Prepare the mount namespace of the agent; must be called while it has only one thread.

    On a host with both cgroup versions, make a mount namespace in which the version 2 tree is not
    mounted, since crun refuses such hosts. With `conmon_pid`, the monitor of a container of an
    earlier agent process, its namespace is joined instead, in which the roots of running containers
    are mounted. No-op on other hosts, where those mounts are in the host's namespace.

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
        # crun takes the empty folder for a cgroup tree and makes folders in it. They must end with
        # the namespace, and not stay hidden under the host's mount.
        libc.mount("none", hierarchy.unified, "tmpfs", 0, "mode=755,size=4m")
    except OSError as error:
        raise RuntimeFailure(
            f"the agent cannot create a mount namespace ({error.strerror}); it must run as root"
        ) from error
    return True


def _join(pid: int) -> bool:
    """Enter a process's mount namespace; False when the process has ended."""
    try:
        fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return False
    try:
        libc.setns(fd, libc.CLONE_NEWNS)
    finally:
        os.close(fd)
    return True
