"""A program: put other files where a running container has files mounted, each at once.

Arguments: a descriptor of a process of the container (pidfd), then pairs of a file of the host and
the path that it has in the container. Whoever opens the path finds the old file or the new one, and
never none: the new mount goes beneath the old one, which is then taken away (move_mount(2),
MOVE_MOUNT_BENEATH, Linux 6.5); on older kernels it goes on top, and the old one stays hidden.

It is a program of its own, as a process with threads cannot enter a mount namespace.
"""

from __future__ import annotations

import os
import sys

from orchestrator.linux.mounts import NODEV, NOEXEC, NOSUID, RDONLY, attach, check, detached, libc

_CLONE_NEWNS = 0x00020000
_MNT_DETACH = 2


def _put(mount: int, target: str) -> None:
    try:
        attach(mount, target, follow=True, beneath=True)
    except OSError:
        attach(mount, target, follow=True)
    else:
        check(libc.umount2(os.fsencode(target), _MNT_DETACH), target)


def main(argv: list[str]) -> None:
    """See the page above. Exits with 1 and a line on stderr if the kernel refuses."""
    process, files = int(argv[0]), argv[1:]
    try:
        mounts = [
            (detached(file, RDONLY | NOSUID | NODEV | NOEXEC), target)
            for file, target in zip(files[::2], files[1::2], strict=True)
        ]
        check(libc.setns(process, _CLONE_NEWNS), "the container's mounts")
        for mount, target in mounts:
            _put(mount, target)
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")
