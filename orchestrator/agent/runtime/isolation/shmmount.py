"""A program: mount the /dev/shm of a running container at a folder of the host.

Arguments: a descriptor of a process of the container (pidfd), and the folder. It is a program of
its own, as a process with threads cannot enter a mount namespace.
"""

from __future__ import annotations

import os
import sys

from orchestrator.linux.mounts import attach, check, detached, libc

_CLONE_NEWNS = 0x00020000
_SHM = "/dev/shm"


def main(argv: list[str]) -> None:
    """See the page above. Exits with 1 and a line on stderr if the kernel refuses."""
    process, folder = int(argv[0]), argv[1]
    try:
        own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        check(libc.setns(process, _CLONE_NEWNS), "the container's mounts")
        mount = detached(_SHM)
        check(libc.setns(own, _CLONE_NEWNS), "the host's mounts")
        attach(mount, folder)
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")
