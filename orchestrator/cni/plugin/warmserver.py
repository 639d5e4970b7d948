# SPDX-License-Identifier: Apache-2.0
"""The warm server behind the command `orc-cni`: a process that runs the plugin many times.

The command starts it (`launcher`) for its network namespace when there is none; no agent is needed.
It serves one request at a time, keeps only open files, and ends after a while without requests, or
when its code on disk has changed. Killing it loses nothing: the command that waits for an answer
starts another server and sends the request again; every operation is idempotent.

    ORC_CNI_IDLE    seconds without a request after which it ends      600

A request has the values of `PASSED`, each followed by a zero byte, and the configuration, until the
command closes its half of the connection. The answer is the exit status, as a digit, and the output
of the command.
"""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.cni.attachments import ipam
from orchestrator.cni.attachments.attachment import Host
from orchestrator.cni.plugin import protocol

PASSED = ("CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS")
"""The environment variables of a request, as in `thinclient.PASSED`. An installed client may be
older than the server: the order must not change."""
PACKAGE = Path(__file__).parents[1]
IDLE_SECONDS = 600.0
BACKLOG = 1024


class Hosts:
    """The hosts by their data folder: kept open while the context lasts, until the file is replaced
    or an unexpected error occurs."""

    def __init__(self) -> None:
        self._open: dict[Path, tuple[Host, tuple[int, int]]] = {}

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *_: object) -> None:
        for directory in list(self._open):
            self._close(directory)

    @contextmanager
    def opened(self, directory: Path) -> Iterator[Host]:
        """The host whose leases are in a folder."""
        known = self._open.get(directory)
        if known is not None and known[1] != _identity(directory):
            self._close(directory)
            known = None
        if known is None:
            host = protocol.open_host(directory)
            known = self._open[directory] = host, _identity(directory)
        try:
            yield known[0]
        except protocol.EXPECTED:
            raise
        except BaseException:
            self._close(directory)
            raise

    def _close(self, directory: Path) -> None:
        host, _ = self._open.pop(directory)
        host.__exit__(None, None, None)


def _identity(directory: Path) -> tuple[int, int]:
    try:
        found = (directory / ipam.FILE).stat()
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def respond(hosts: Hosts, request: bytes) -> bytes:
    """The answer to a request. Raises only what ends the process."""
    *values, data = request.split(b"\0", len(PASSED))
    environment = {
        name: value.decode(errors="replace") for name, value in zip(PASSED, values, strict=False)
    }
    status, document = protocol.answer(data, environment, hosts.opened)
    printed = json.dumps(document) + "\n" if document is not None else ""
    return f"{status}{printed}".encode()


class _Code:
    """The source files of this process, as they were at its start."""

    def __init__(self) -> None:
        self._files = {str(path): self._time(path) for path in PACKAGE.rglob("*.py")}

    def changed(self) -> bool:
        """Whether any of them was replaced or removed."""
        return any(self._time(path) != time for path, time in self._files.items())

    def _time(self, path: str | Path) -> int:
        try:
            return os.stat(path).st_mtime_ns
        except FileNotFoundError:
            return 0


def serve(listener: socket.socket, idle: float) -> None:
    """Serve until there was no request for `idle` seconds, or the code has changed."""
    code = _Code()
    with selectors.DefaultSelector() as selector, Hosts() as hosts:
        selector.register(listener, selectors.EVENT_READ, None)
        try:
            while True:
                events = selector.select(idle)
                if not events and len(selector.get_map()) == 1:
                    return
                for key, _ in events:
                    if key.data is None:
                        sock, _ = listener.accept()
                        selector.register(sock, selectors.EVENT_READ, bytearray())
                    elif _receive(key):
                        assert isinstance(key.fileobj, socket.socket)
                        selector.unregister(key.fileobj)
                        _answer(key.fileobj, respond(hosts, bytes(key.data)))
                if code.changed():
                    return
        finally:
            # Of incomplete requests.
            for key in list(selector.get_map().values()):
                if isinstance(key.fileobj, socket.socket) and key.fileobj is not listener:
                    key.fileobj.close()


def _receive(key: selectors.SelectorKey) -> bool:
    """Receive more of a request; whether it is complete."""
    assert isinstance(key.fileobj, socket.socket)
    try:
        part = key.fileobj.recv(1 << 16)
    except ConnectionError:
        part = b""
    key.data.extend(part)
    return not part


def _answer(sock: socket.socket, answer: bytes) -> None:
    with sock:
        try:
            sock.sendall(answer)
        except OSError:
            return  # the command was killed; the operation is done


def main(socket_path: str) -> int:
    """Serve at a socket, unless another process does."""
    path = os.fsencode(socket_path)
    os.chdir("/")
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lock = os.open(path + b".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 1  # another process serves, or is about to end
    os.ftruncate(lock, 0)
    os.write(lock, b"%d\n" % os.getpid())
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        if os.path.lexists(path):
            os.unlink(path)
        listener.bind(path)
        listener.listen(BACKLOG)
        os.dup2(0, 1)  # closes the pipe on which the command waits
        serve(listener, float(os.environ.get("ORC_CNI_IDLE", IDLE_SECONDS)))
        os.unlink(path)
    return 0
