# SPDX-License-Identifier: Apache-2.0
"""A program that copies files out of or into a container, by `orchestrator.copying`.

One argument, JSON: `{"pid": PID, "verb": "pack", "path": …, "follow": …}` writes a line and a tar,
`{"pid": PID, "verb": "unpack", "path": …, "top": …, …}` reads a tar. On success, a line on stderr
names attributes that could not be preserved.

It works in the mount and user namespace of a container's process, so it cannot access files outside
of the container, and sees the same owners. `pid` is the process, and the descriptor `pidfd`
protects against reuse of the pid. For a container that is not running, `layers`, `upper`, `work`
and `root` replace the two: it mounts the root from them in a private namespace. After the change of
root it imports no module, since that would be the container's code.
"""

from __future__ import annotations

import json
import os
import select
import sys
from typing import Any

from orchestrator.copying import CopyError, Owner, error_text, pack, source, target, unpack
from orchestrator.linux import libc
from orchestrator.linux.confine import (
    change_root,
    end_imports,
    limit_memory,
)
from orchestrator.linux.mounts import mount_overlay, unshare_mounts


def _enter(order: dict[str, Any]) -> None:
    """Enter a container's root and user namespace; nothing is imported afterwards."""
    if "pidfd" in order:
        _join(order["pidfd"], order["pid"])
    else:
        unshare_mounts(receive=False)
        mount_overlay(order["layers"], order["root"], order["upper"], order["work"])
        change_root(order["root"])
    os.umask(0)


def _join(process: int, pid: int) -> None:
    """Enter the namespaces of a container's process. Raises CopyError, OSError."""
    users = os.stat(f"/proc/{pid}/ns/user").st_ino
    # Opened by pid, which is the process's as long as it has not ended.
    if select.select([process], [], [], 0)[0]:
        raise CopyError("the container has ended meanwhile; try again")
    own_users = users != os.stat("/proc/self/ns/user").st_ino
    end_imports()
    libc.setns(process, libc.CLONE_NEWNS | (libc.CLONE_NEWUSER if own_users else 0), "")
    os.close(process)
    if own_users:
        os.setgid(0)
        os.setuid(0)


def main(argv: list[str]) -> None:
    """Do one copy, as described above. On failure, exit with 1 and a line on stderr."""
    limit_memory()
    try:
        _copy(json.loads(argv[0]))
    except CopyError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(error_text(error))
    except MemoryError:
        sys.exit("the copy exceeds its memory limit")


def _copy(order: dict[str, Any]) -> None:
    _enter(order)
    path = os.path.join("/", order["path"])
    if order["verb"] == "pack":
        place, top, is_folder = source(path, order["follow"])
        head = json.dumps({"top": top, "folder": is_folder}) + "\n"
        sys.stdout.buffer.write(head.encode())
        pack(place, top, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    else:
        folder, name = target(path, order["top"], order["folder"])
        ids = order["owner"]
        owner = Owner(True, tuple(ids) if ids else None)
        if lost := unpack(sys.stdin.buffer, folder, order["top"], name, owner):
            print(lost, file=sys.stderr)
