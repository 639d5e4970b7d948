# SPDX-License-Identifier: Apache-2.0
"""Confinement of short programs to the files that they work on.

A container may replace any folder of a volume or of its root by a symbolic link at any moment, so
a path through such a tree may resolve to anything that the process can reach. The root of a
confined process is a file system of its own, with only the folders that it was given, in a mount
namespace of its own, which ends with it.
"""

from __future__ import annotations

import codecs
import os
import resource
import sys
from collections.abc import Mapping

from orchestrator.linux import libc
from orchestrator.linux.mounts import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    attach,
    unshare_mounts,
)

WRITABLE = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
READ_ONLY = MOUNT_ATTR_RDONLY | WRITABLE
"""Attributes of the mounts: no device of a tree is ever opened."""

_MEMORY = 1 << 30
"""Bytes of address space; about 100 MiB are in use."""
_PLACE = "/proc"
"""A mount point that every host has, and that is not needed after the change of root."""


def limit_memory() -> None:
    """Bound the memory that the process and its children can allocate for input from others, and
    end the protection from the kernel's OOM killer that an agent may have."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    score = "/proc/self/oom_score_adj"
    with open(score, encoding="ascii") as file:
        protected = int(file.read()) < 0
    if protected:
        with open(score, "w", encoding="ascii") as file:
            file.write("0")


def confine(folders: Mapping[str, int]) -> None:
    """Change the process's root to one that contains only `folders`: detached mounts by the name
    that each has in the new root.

    No module can be imported afterwards. Raises OSError.
    """
    unshare_mounts(receive=False)
    libc.mount("tmpfs", _PLACE, "tmpfs", 0, "mode=700,size=1m")
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
    """Load Python's lazily loaded codecs, and refuse every later import: a module found in a
    container's root is the container's code."""
    for name in ("utf-8", "ascii", "latin-1"):
        codecs.lookup(name)
    sys.meta_path.clear()
