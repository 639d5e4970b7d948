# SPDX-License-Identifier: Apache-2.0
"""Start a server for the command `orc-cni` when there is none, or run the plugin without one.

The server is a fork of the command. Imports take most of the time until the first container is
connected, so they are done once, in one interpreter.
"""

from __future__ import annotations

import fcntl
import gc
import posix
import sys

TYPE_CHECKING = False  # as in `typing`, which is slow to import
if TYPE_CHECKING:
    from collections.abc import Callable

    Ask = Callable[[bytes, bytes], bytes]
    """Sends a request to the server at a path; returns its answer, empty without a server."""

ATTEMPTS = 3


def answer(path: bytes, request: bytes, ask: Ask) -> bytes:
    """A server's answer, by `ask`: of one that another command has started meanwhile, or a new one.

    Empty if no server could be started.
    """
    try:
        lock = _lock(path)
    except OSError:
        return b""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for _ in range(ATTEMPTS):
            found = ask(path, request) or _start(path, request, ask)
            if found:
                return found
    except OSError:
        return b""
    finally:
        posix.close(lock)
    return b""


def _lock(path: bytes) -> int:
    """A descriptor of the file that is locked while a server is started."""
    try:  # noqa: SIM105 - contextlib is slow to import
        posix.mkdir(path.rpartition(b"/")[0], 0o700)
    except FileExistsError:
        pass
    return posix.open(path + b".start", posix.O_CREAT | posix.O_RDWR | posix.O_CLOEXEC, 0o600)


def _start(path: bytes, request: bytes, ask: Ask) -> bytes:
    gc.disable()  # imports leave no garbage
    from orchestrator.cni.plugin import warmserver

    gc.enable()
    ready, write = posix.pipe()
    if posix.fork() == 0:
        try:
            _become(warmserver.main, path, write)
        finally:
            posix._exit(1)
    posix.close(write)
    try:
        posix.read(ready, 1)  # end of file when the server listens, or has ended
    finally:
        posix.close(ready)
    return ask(path, request)


def _become(serve: Callable[[str], int], path: bytes, ready: int) -> None:
    """Become the server, with no descriptor of the runtime's, which waits until its pipe is closed.

    `ready` is closed when the server listens.
    """
    posix.setsid()
    nothing = posix.open("/dev/null", posix.O_RDWR)
    for source, target in ((nothing, 0), (ready, 1), (nothing, 2)):
        posix.dup2(source, target)
    serve(path.decode())


def become_plugin(data: bytes) -> bytes:
    """Replace this process by the plugin, with the same stdin, arguments and `sys.path`: never
    returns."""
    if data:
        copy = posix.memfd_create("stdin")
        posix.write(copy, data)
        posix.lseek(copy, 0, 0)
        posix.dup2(copy, 0)
    program = "import sys; sys.path[:] = sys.argv.pop(1).split(':')\n"
    program += "from orchestrator.cni.plugin.protocol import main; sys.exit(main())"
    arguments = [sys.executable, "-ISE", "-c", program, ":".join(sys.path), *sys.argv[1:]]
    posix.execv(sys.executable, arguments)
    return b""
