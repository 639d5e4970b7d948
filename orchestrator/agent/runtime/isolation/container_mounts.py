# SPDX-License-Identifier: Apache-2.0
"""A program that works in the mount namespace of a running container.

`replace PIDFD FILE PATH…` mounts files of the host over files that the container has mounted, each
in one step. A process that opens the path finds the old file or the new one, never none: the new
mount goes beneath the old one, which is then detached (move_mount(2), MOVE_MOUNT_BENEATH, Linux
6.5); on older kernels it goes on top, and the old one stays hidden.

`shm PIDFD FOLDER` mounts the container's /dev/shm at a folder of the host.

PIDFD is a descriptor of a process of the container. It is a separate program since a process with
threads cannot enter a mount namespace.
"""

from __future__ import annotations

import os
import sys

from orchestrator.linux import libc
from orchestrator.linux.confine import READ_ONLY
from orchestrator.linux.mounts import attach, detached, unmount

_SHM = "/dev/shm"


def _replace_files(process: int, files: list[str]) -> None:
    mounts = [
        (detached(file, READ_ONLY), target)
        for file, target in zip(files[::2], files[1::2], strict=True)
    ]
    libc.setns(process, libc.CLONE_NEWNS, "the container's mounts")
    for mount, target in mounts:
        try:
            attach(mount, target, follow=True, beneath=True)
        except OSError:
            attach(mount, target, follow=True)
        else:
            unmount(target)


def _mount_shm(process: int, folder: str) -> None:
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    libc.setns(process, libc.CLONE_NEWNS, "the container's mounts")
    mount = detached(_SHM)
    libc.setns(own, libc.CLONE_NEWNS, "the host's mounts")
    attach(mount, folder)


def main(argv: list[str]) -> None:
    """Perform the request in the arguments. Exits with 1 and a line on stderr on failure."""
    verb, process, *rest = argv
    try:
        match verb:
            case "replace":
                _replace_files(int(process), rest)
            case "shm":
                _mount_shm(int(process), *rest)
            case _:
                sys.exit(f"unknown request {verb}")
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")
