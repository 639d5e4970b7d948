# SPDX-License-Identifier: Apache-2.0
"""A program that mounts a folder below another one whose content is not trusted.

Arguments: ROOT PATH TARGET. It is a separate process because a lookup on a dead file server never
returns, and a process can be killed. It exits with 0, or with 1 and the kernel's error number
(errno(3)) on stderr.

The path is resolved once, beneath ROOT, and the folder is mounted by its descriptor, so a symbolic
link that appears concurrently has no effect. Sources: openat2(2), open_tree(2), move_mount(2).
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack

from orchestrator.linux.mounts import attach, detached
from orchestrator.linux.openat import open_beneath


def mount_beneath(root: str, path: str, target: str) -> None:
    """Mount the folder at `path` below `root`, with the mounts below it, at `target`.

    Raises OSError as `open_beneath` does, or when the kernel refuses the mount.
    """
    with ExitStack() as opened:
        above = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, above)
        folder = open_beneath(above, path)
        opened.callback(os.close, folder)
        # Private, since another container may mount something in the volume later.
        tree = detached(folder, recursive=True)
        opened.callback(os.close, tree)
        attach(tree, target)


def main(argv: list[str]) -> None:
    """Mount the folder that the arguments name."""
    root, path, target = argv
    try:
        mount_beneath(root, path, target)
    except OSError as error:
        sys.exit(str(error.errno))
