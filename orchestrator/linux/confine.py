"""Confinement of short programs that work on files which containers may change meanwhile.

A container may replace any folder of a volume or of its root by a symbolic link at any moment, so
a path through such a tree may resolve to anything that the process can reach. A confined process
reaches nothing else: its root is a file system of its own, with only the folders that it was given,
in a mount namespace of its own, which ends with it. Standard library only.
"""

from __future__ import annotations

import codecs
import ctypes
import os
import resource
import sys
from collections.abc import Mapping, Sequence

from orchestrator.linux.mounts import NODEV, NOEXEC, NOSUID, RDONLY, attach, check, libc

READ_ONLY = RDONLY | NOSUID | NODEV | NOEXEC
WRITABLE = NOSUID | NODEV | NOEXEC
"""Attributes of the mounts: no device of a tree is ever opened."""

_MEMORY = 1 << 30
"""Bytes of address space; some 100 MiB are in use."""
_CLONE_NEWNS = 0x00020000
_PRIVATE = ctypes.c_ulong(0x4000 | 0x40000)
"""Recursive and private, for mount(2)."""
_PLACE = "/proc"
"""A mount point that every host has; nothing in it is needed after the change of root."""


def limit_memory() -> None:
    """Bound the memory that the process, and those that it starts, can take for whatever others
    have made, and end the protection from the kernel's OOM killer that an agent may have."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    score = "/proc/self/oom_score_adj"
    with open(score, encoding="ascii") as file:
        protected = int(file.read()) < 0
    if protected:
        with open(score, "w", encoding="ascii") as file:
            file.write("0")


def unshare_mounts() -> None:
    """Enter a new mount namespace, in which nothing propagates to or from others. Raises
    OSError."""
    check(libc.unshare(_CLONE_NEWNS), "unshare")
    check(libc.mount(b"none", b"/", None, _PRIVATE, None), "/")


def mount_overlay(layers: Sequence[str], root: str, upper: str = "", work: str = "") -> None:
    """Mount an overlay at `root`, the lowest of `layers` first; read-only without `upper`.

    The folders are named by descriptors, which stay open: there may be more of them than a mount
    call takes as paths. Raises OSError.
    """

    def opened(path: str) -> str:
        return f"/proc/self/fd/{os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)}"

    if len(layers) < 2 and not upper:
        # An overlay without a writable layer has at least two layers.
        layers = (root, *layers)
    data = "lowerdir=" + ":".join(opened(path) for path in reversed(layers))
    if upper:
        data += f",upperdir={opened(upper)},workdir={opened(work)}"
    check(libc.mount(b"overlay", os.fsencode(root), b"overlay", 0, data.encode()), root)


def confine(folders: Mapping[str, int]) -> None:
    """Change the process's root to one that contains only `folders`: detached mounts by the name
    that each has in the new root.

    No module can be imported afterwards. Raises OSError.
    """
    unshare_mounts()
    target = os.fsencode(_PLACE)
    check(libc.mount(b"tmpfs", target, b"tmpfs", 0, b"mode=700,size=1m"), _PLACE)
    for name, mount in folders.items():
        place = f"{_PLACE}/{name}"
        os.makedirs(place, 0o700)
        attach(mount, place)
        os.close(mount)
    change_root(_PLACE)


def change_root(root: str) -> None:
    """Make `root` the process's root; no module is imported from there. Raises OSError."""
    end_imports()
    os.chroot(root)
    os.chdir("/")


def end_imports() -> None:
    """Load what Python loads late, and refuse every import from now on: what is found in a
    container's root is the container's code."""
    for name in ("utf-8", "ascii", "latin-1"):
        codecs.lookup(name)
    sys.meta_path.clear()
