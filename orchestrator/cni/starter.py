"""Start a server for the command `orc-cni` when there is none, or do without."""

from __future__ import annotations

import fcntl
import posix
import sys

from . import client

ATTEMPTS = 3
# The server needs the standard library and this package only, and starts faster without the rest.
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from orchestrator.cni.server import main
sys.exit(main(sys.argv[2]))
"""


def answer(path: bytes, request: bytes) -> bytes:
    """A server's answer: of one that another command has started meanwhile, or of a new one.

    Empty if none can be had.
    """
    try:
        lock = _lock(path)
    except OSError:
        return b""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for _ in range(ATTEMPTS):
            found = client.ask(path, request) or _start(path, request)
            if found:
                return found
    except OSError:
        return b""
    finally:
        posix.close(lock)
    return b""


def _lock(path: bytes) -> int:
    """A descriptor of the file that is locked while a server is started."""
    try:  # noqa: SIM105 - contextlib takes long to import
        posix.mkdir(path.rpartition(b"/")[0], 0o700)
    except FileExistsError:
        pass
    return posix.open(path + b".start", posix.O_CREAT | posix.O_RDWR | posix.O_CLOEXEC, 0o600)


def _start(path: bytes, request: bytes) -> bytes:
    ready, write = posix.pipe()
    # It must hold nothing of the runtime's: that waits until all have closed its pipe.
    posix.posix_spawn(
        sys.executable,
        [sys.executable, "-ISE", "-c", PROGRAM, client.PACKAGES, path.decode()],
        posix.environ,
        file_actions=[
            (posix.POSIX_SPAWN_OPEN, 0, "/dev/null", posix.O_RDWR, 0),
            (posix.POSIX_SPAWN_DUP2, write, 1),
            (posix.POSIX_SPAWN_OPEN, 2, "/dev/null", posix.O_RDWR, 0),
        ],
        setsid=True,
    )
    posix.close(write)
    try:
        client.read(ready)  # until it listens, or has died
    finally:
        posix.close(ready)
    return client.ask(path, request)


def become_plugin(data: bytes) -> bytes:
    """Do it in this process, with the same stdin and arguments: never returns."""
    if data:
        copy = posix.memfd_create("stdin")
        posix.write(copy, data)
        posix.lseek(copy, 0, 0)
        posix.dup2(copy, 0)
    program = "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
    program += "from orchestrator.cni.plugin import main; sys.exit(main())"
    arguments = [sys.executable, "-ISE", "-c", program, client.PACKAGES, *sys.argv[1:]]
    posix.execv(sys.executable, arguments)
    return b""
