# SPDX-License-Identifier: Apache-2.0
"""A container's streams over a hijacked connection: attach, and the processes of exec.

Two threads for each: one passes the client's bytes on, as far as the node has room for them; the
other writes the process's output. A session whose manager is lost is resumed at another,
without gaps and repetitions, while the node keeps it.
"""

from __future__ import annotations

import os
import queue
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from orchestrator.cli.app.errors import CliError, ManagerLost
from orchestrator.cli.container.terminal import DetachKeys
from orchestrator.cli.rpc.client import RECONNECT_PAUSE
from orchestrator.dockerapi.containers.failures import start_failure
from orchestrator.dockerapi.gateway import Gateway
from orchestrator.dockerapi.http.exchange import Duplex
from orchestrator.model.states import CANNOT_INVOKE
from orchestrator.pb import interact_pb2

STDOUT, STDERR = 1, 2
_RESUME_WITHIN = 15.0
"""Seconds in which a session must be resumed; the node keeps it a little longer."""
_ACKNOWLEDGE = 1 << 17
"""Bytes of output between two acknowledgements."""
_CHUNK = 1 << 16


def frame(stream: int, data: bytes) -> bytes:
    """One frame of a multiplexed stream."""
    return struct.pack(">BxxxL", stream, len(data)) + data


def exec_status(code: int, error: str) -> int:
    """The exit status of a process of exec; dockerd says 126 of all that could not be run (API
    1.45)."""
    return CANNOT_INVOKE if error else code


class Session:
    """A process's streams. `open` it, then `serve` a connection with it."""

    def __init__(
        self,
        gateway: Gateway,
        first: Any,
        *,
        keys: bytes = b"",
        streams: tuple[int, ...] = (STDOUT, STDERR),
        ended: Callable[[int], None] = lambda code: None,
    ) -> None:
        """`first`: an ExecRequest or AttachRequest. `keys`: the sequence that detaches, of a
        terminal. `streams`: those that the client wants. `ended` gets the exit status."""
        self._gateway = gateway
        self._first = first
        self._terminal = getattr(first, "tty", False)
        self._exec = isinstance(first, interact_pb2.ExecRequest)
        first.session = first.session or os.urandom(16).hex()
        self._keys = DetachKeys(keys)
        self._streams = streams
        self._ended = ended
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._flow = threading.Condition()
        self._attached: Any = None
        self._sent = self._room = self._kept_from = 0
        self._kept: deque[bytes] = deque()
        self._input_ended = self._connected = self._detached = self._over = False
        self._received = self._acknowledged = 0
        self._failure: Any = None
        """The Exited message of a process that was never started."""
        self._calls: Any = None
        self._messages: Any = None

    @property
    def tty(self) -> bool:
        """Whether the process has a terminal."""
        return self._terminal

    def open(self) -> None:
        """Begin it: from now on no output is missed. Raises CliError."""
        self._send(**{"exec" if self._exec else "attach": self._first})
        self._converse()
        for message in self._messages:
            if message.WhichOneof("kind") == "attached":
                self._attached = message.attached
                self._terminal = bool(message.attached.tty)
                self._room = message.attached.stdin_window
                self._connected = True
                return
            if message.WhichOneof("kind") == "exited":
                self._attached = interact_pb2.Attached()
                self._failure = message.exited
                self._finish(message.exited)
                return
        self._attached = interact_pb2.Attached()
        self._over = True

    def ensure_open(self) -> None:
        """Begin it unless it has begun; `serve` tells the client if it cannot."""
        if self._calls is not None:
            return
        try:
            self.open()
        except CliError as error:
            self._failure = interact_pb2.Exited(code=CANNOT_INVOKE, error=error.format_message())
            self._finish(self._failure)

    def serve(self, connection: Duplex) -> None:
        """Join the connection and the process's streams until the process has exited, or the
        client detached."""
        if self._over:
            if self._failure is not None:
                with suppress(OSError):
                    self._write_error(connection, self._failure)
            return
        if self._attached.stdin:
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()
        try:
            self._write_all(connection)
        except (OSError, ValueError):
            pass  # the client has gone; the process continues
        finally:
            self.close()

    def resize(self, rows: int, columns: int) -> None:
        """Give the terminal this size."""
        self._send(resize=interact_pb2.TerminalSize(rows=rows, columns=columns))

    def close(self) -> None:
        """End the session; a process continues."""
        with self._flow:
            self._over = True
            self._flow.notify_all()
        self._outbox.put(None)
        self._calls.cancel()
        if self._messages is not None:
            self._messages.close()

    def _send(self, **message: Any) -> None:
        self._outbox.put(interact_pb2.SessionInput(**message))

    def _converse(self) -> None:
        outbox = self._outbox
        self._calls = self._gateway.stream("Interact.Session", iter(outbox.get, None))
        self._messages = iter(self._calls)

    def _write_all(self, connection: Duplex) -> None:
        lost_at: float | None = None
        while True:
            try:
                for message in self._messages:
                    lost_at = None
                    if self._take(message, connection):
                        return
                return
            except ManagerLost:
                now = time.monotonic()
                lost_at = now if lost_at is None else lost_at
                if not self._attached.resumable or now - lost_at > _RESUME_WITHIN:
                    raise
                time.sleep(RECONNECT_PAUSE if now > lost_at else 0.0)
                self._resume()

    def _take(self, message: Any, connection: Duplex) -> bool:
        """Process one message; whether it is the last."""
        kind = message.WhichOneof("kind")
        match kind:
            case "stdout" | "stderr":
                data = getattr(message, kind)
                stream = STDOUT if kind == "stdout" else STDERR
                if self._terminal:
                    connection.write(data)
                elif stream in self._streams:
                    connection.write(frame(stream, data))
                self._received += len(data)
                if self._attached.resumable and self._received - self._acknowledged > _ACKNOWLEDGE:
                    self._acknowledged = self._received
                    self._send(output_taken=self._received)
            case "stdin_taken":
                with self._flow:
                    self._room = self._attached.stdin_window + message.stdin_taken
                    self._forget(message.stdin_taken)
                    self._flow.notify_all()
            case "attached":  # resumed
                with self._flow:
                    self._forget(message.attached.stdin_received)
                    for data in self._kept:
                        self._send(stdin=data)
                    if self._input_ended:
                        self._send(eof=True)
                    self._connected = True
            case "exited":
                self._write_error(connection, message.exited)
                self._finish(message.exited)
                return True
        return False

    def _write_error(self, connection: Duplex, exited: Any) -> None:
        """Why it could not be started: at its stdout, as dockerd does it."""
        if exited.error and STDOUT in self._streams:
            text = f"{start_failure(exited.error, exited.code)}\r\n".encode()
            connection.write(text if self._terminal else frame(STDOUT, text))

    def _finish(self, exited: Any) -> None:
        self._over = True
        self._ended(exec_status(exited.code, exited.error))

    def _resume(self) -> None:
        ended, self._outbox = self._outbox, queue.SimpleQueue()
        ended.put(None)
        with self._flow:
            self._connected = False
        request = interact_pb2.ResumeRequest(
            container=self._attached.container,
            session=self._first.session,
            received=self._received,
            attach=not self._exec,
        )
        self._send(resume=request)
        self._converse()

    def _read(self, connection: Duplex) -> None:
        """Pass the client's bytes on, in its thread."""
        while True:
            try:
                data = connection.read()
            except (OSError, ValueError):
                data = b""
            if not data:
                break
            if self._terminal:
                data, self._detached = self._keys.feed(data)
            for start in range(0, len(data), _CHUNK):
                if not self._pass_on(data[start : start + _CHUNK]):
                    return
            if self._detached:
                self.close()
                return
        if self._terminal:
            return  # a terminal has no end; a client that has gone leaves the process alone
        with self._flow:
            self._input_ended = True
            if self._connected:
                self._send(eof=True)

    def _pass_on(self, data: bytes) -> bool:
        with self._flow:
            while data:
                self._flow.wait_for(lambda: self._over or self._sent < self._room)
                if self._over:
                    return False
                part = data[: self._room - self._sent]
                data = data[len(part) :]
                self._sent += len(part)
                self._kept.append(part)
                if self._connected:
                    self._send(stdin=part)
        return True

    def _forget(self, position: int) -> None:
        """Keep the input from this position on."""
        while self._kept and self._kept_from < position:
            data = self._kept.popleft()
            if self._kept_from + len(data) > position:
                self._kept.appendleft(data[position - self._kept_from :])
                self._kept_from = position
            else:
                self._kept_from += len(data)
