"""A program: copy files out of or into a container, as `orchestrator.copying` does it.

One argument, JSON: `{"pid": PID, "verb": "pack", "path": …, "follow": …}` writes a line and a tar,
`{"pid": PID, "verb": "unpack", "path": …, "top": …, …}` reads a tar. Where it succeeds, a line on
stderr says what of the files could not be kept.

It works in the root and user namespace of process PID, and so can reach nothing outside of a
container and sees owners as the container does. For a container that does not run, `layers`,
`upper`, `work` and `root` in place of the PID are what to mount its root from, where nobody else
sees it. From the moment that it has changed its root it imports nothing, since that would be the
container's code.
"""

from __future__ import annotations

import codecs
import ctypes
import json
import os
import sys
from typing import Any

from orchestrator.copying import CannotCopy, Owner, pack, source, target, unpack, words

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_PRIVATE = ctypes.c_ulong(0x4000 | 0x40000)
"""Recursive and private, for mount(2)."""


def _enter(order: dict[str, Any]) -> None:
    """Be in a container's root and user namespace, and import nothing any more."""
    for name in ("utf-8", "ascii", "latin-1"):
        codecs.lookup(name)
    libc = ctypes.CDLL(None, use_errno=True)
    root, users = order.get("root"), -1
    if root is None:
        root = f"/proc/{order['pid']}/root"
        users = os.open(f"/proc/{order['pid']}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        if os.fstat(users).st_ino == os.stat("/proc/self/ns/user").st_ino:
            users = -1
    else:
        _mount(libc, order["layers"], order["upper"], order["work"], root)
    os.chroot(root)
    os.chdir("/")
    sys.meta_path.clear()
    if users >= 0:
        _check(libc.setns(users, _CLONE_NEWUSER))
        os.setgid(0)
        os.setuid(0)
    os.umask(0)


def _mount(libc: ctypes.CDLL, layers: list[str], upper: str, work: str, root: str) -> None:
    """Mount a container's root, in a mount namespace of our own."""
    _check(libc.unshare(_CLONE_NEWNS))
    _check(libc.mount(b"none", b"/", None, _PRIVATE, None))

    def place(path: str) -> str:
        # By descriptors: there may be more of them than a mount call takes as paths.
        return f"/proc/self/fd/{os.open(path, os.O_PATH | os.O_CLOEXEC)}"

    lower = ":".join(place(path) for path in reversed(layers))
    data = f"lowerdir={lower},upperdir={place(upper)},workdir={place(work)}"
    _check(libc.mount(b"overlay", os.fsencode(root), b"overlay", 0, data.encode()))


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def main(argv: list[str]) -> None:
    """Do one copy; see the module. Exits with 1 and a line on stderr if that fails."""
    try:
        _copy(json.loads(argv[0]))
    except CannotCopy as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(words(error))


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
