# SPDX-License-Identifier: Apache-2.0
"""`orc` in processes that begin warm: each is forked from one that has imported all of it.

The tests run it some thousand times, and most of that would be Python starting. Who wants to see
how it starts, or hold its streams, runs ORC.

As a script it serves on its standard input, a socket. A request is `[arguments, environment]` as
JSON, with four descriptors: the three standard streams, and a socket for the answer, which is the
process's id and then its exit status (negative: the signal that ended it), a line each.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

ORC = str(Path(sys.executable).with_name("orc"))
_LARGEST = 1 << 20
"""Bytes of a request, at most."""


class _Server:
    """The process that the others are forked from. It ends with this one."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__], stdin=theirs, stdout=subprocess.DEVNULL
            )
        self._lock = threading.Lock()

    def request(self, request: bytes, descriptors: list[int]) -> None:
        with self._lock:
            socket.send_fds(self._ours, [request], descriptors)


_server = cache(_Server)


def run(
    arguments: tuple[str, ...], env: Mapping[str, str], within: float
) -> subprocess.CompletedProcess[str]:
    """What `orc` says, with nothing to read, and its exit status. Raises TimeoutExpired."""
    ours, theirs = socket.socketpair()
    with (
        ours,
        open(os.devnull, "rb") as nothing,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        with theirs:
            streams = [nothing.fileno(), out.fileno(), err.fileno(), theirs.fileno()]
            _server().request(json.dumps([arguments, dict(env)]).encode(), streams)
        answers = ours.makefile("r")
        process = int(answers.readline())
        ours.settimeout(within)
        try:
            status = int(answers.readline())
        except TimeoutError:
            os.kill(process, signal.SIGKILL)
            raise subprocess.TimeoutExpired([ORC, *arguments], within) from None
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess([ORC, *arguments], status, *said)


def _import_all() -> None:
    """What any command may want, but for the screens of the one that draws."""
    package = importlib.import_module("orchestrator.cli")
    for module in pkgutil.walk_packages(package.__path__, "orchestrator.cli."):
        if "screen" not in module.name:
            importlib.import_module(module.name)
    assert threading.active_count() == 1, "who has threads must not fork"


def _serve(requests: socket.socket) -> None:
    """Fork for each request; returns in the processes that are to be `orc`."""
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, _LARGEST, 4)
        if not request:
            sys.exit()
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    requests.close()
    *streams, answer = descriptors
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if process := os.fork():
        os.write(answer, f"{process}\n".encode())
        _, status = os.waitpid(process, 0)
        with suppress(BrokenPipeError):  # who asked has given up
            os.write(answer, f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    os.close(answer)
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    arguments, env = json.loads(request)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [ORC, *arguments]


if __name__ == "__main__":
    _import_all()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who answer
    _serve(socket.socket(fileno=os.dup(0)))
    sys.exit(importlib.import_module("orchestrator.cli.main").main())
