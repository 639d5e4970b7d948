# SPDX-License-Identifier: Apache-2.0
"""Interactive sessions: connects this process's streams to a container's, for `exec`, `attach`,
`run`.

Three threads: the call's own sends the queue; one reads stdin, limited by the flow-control window
of the other end; the main thread writes the output, at the reader's speed, and handles signals.

When a manager is lost and there are others, the session is resumed at one of them: the node keeps
it for a while, and both ends know their positions in the streams, so nothing is lost or repeated.
If an agent of an older version keeps no sessions, a container is attached to again, unless stdin is
forwarded from something other than a terminal: bytes that may not have arrived cannot be repeated.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import click

from orchestrator.cli.app.errors import CliError, ManagerLost, Refused
from orchestrator.cli.container import terminal
from orchestrator.cli.rpc.client import RECONNECT_PAUSE, Client
from orchestrator.cli.rpc.resumption import GIVE_UP_AFTER
from orchestrator.model.signals import signal_number
from orchestrator.pb import interact_pb2

_CHUNK = 1 << 16
"""Maximum bytes of stdin in a message."""
_STDIN, _STDOUT, _STDERR = 0, 1, 2
_BROKEN_PIPE = 128 + 13
"""Exit status after a broken pipe, as in shells: 128 + SIGPIPE."""
RESUME_FOR = 15.0
"""Seconds in which a session must be resumed; the node keeps it a little longer."""
_ACKNOWLEDGE = 1 << 17
"""Bytes of output between two acknowledgements."""
DETACHED = 0
"""Exit status after detaching, as in Docker."""
NOT_A_TERMINAL = "the input is not a terminal; leave out -t, or run this at a terminal"


class Session:
    """A session; `run` it once."""

    def __init__(
        self,
        client: Client,
        first: Any,
        *,
        stdin: bool,
        keys: bytes,
        sig_proxy: bool = False,
        attached: Callable[[], None] = lambda: None,
    ) -> None:
        """`first`: an ExecRequest or AttachRequest without a size. `stdin`: forward this process's
        stdin. `keys`: the sequence that detaches, at a terminal. `sig_proxy`: forward signals.
        `attached` is called as soon as no output can be missed."""
        self._client = client
        self._stdin = stdin
        self._keys = terminal.DetachKeys(keys)
        self._sig_proxy = sig_proxy
        self._attached = attached
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._flow = threading.Condition()
        self._sent = 0
        """Bytes of stdin, with those that wait for the session to be resumed."""
        self._kept: deque[bytes] = deque()
        """The last of them, which the process may not have read."""
        self._kept_from = 0
        """Position of the first byte of `_kept`."""
        self._input_ended = False
        self._connected = False
        """Whether input can be sent."""
        self._received = self._acknowledged = 0
        """Bytes of output."""
        self._resumable: Any = None
        """The `Attached` of a session that can be resumed."""
        self._room = 0
        """Flow-control limit of bytes sent."""
        self._window = 0
        self._call: Any = None
        self.detached = False
        """Whether the user detached."""
        self.begun = False
        """Whether it has been attached."""
        self.was_lost = False
        """Whether a manager was lost since."""
        self._at_terminal = False
        self._first = first
        first.session = os.urandom(16).hex()
        self._kind = "exec" if isinstance(first, interact_pb2.ExecRequest) else "attach"
        if (found := terminal.size(_STDOUT)) is not None:
            first.size.rows, first.size.columns = found
        self._send(**{self._kind: first})

    def run(self) -> int:
        """Run until the process has exited: its exit status, or DETACHED. Raises CliError."""
        with ExitStack() as stack:
            if self._sig_proxy:
                stack.enter_context(
                    terminal.handle_signals(self._pass_on, *terminal.FORWARDED_SIGNALS)
                )
            try:
                return self._until_exit(stack)
            except CliError:
                if not self.detached:
                    raise
            finally:
                # Ends the call's sender.
                self._outbox.put(None)
        click.echo("\nDetached; the process continues to run.", err=True)
        return DETACHED

    def _until_exit(self, stack: ExitStack) -> int:
        lost_at: float | None = None
        lost: ManagerLost | None = None
        while True:
            try:
                return self._converse(stack)
            except ManagerLost as error:
                if not (self._may_resume() or self._may_attach_again()):
                    raise
                now = time.monotonic()
                if lost_at is None or lost is None or self._connected:
                    lost_at, lost = now, error
                elif now - lost_at > (GIVE_UP_AFTER if self._resumable is None else RESUME_FOR):
                    raise lost from None
                else:
                    time.sleep(RECONNECT_PAUSE)
            except Refused as refused:
                if self._resumable is None or lost is None:
                    raise
                # The session has ended on its node.
                self._resumable = None
                if not self._may_attach_again():
                    raise ManagerLost(f"{lost.message}, and {refused.message}") from None
            self._reset()

    def _may_resume(self) -> bool:
        kept = self._resumable is not None
        return kept and not self.detached and self._client.has_alternatives

    def _may_attach_again(self) -> bool:
        attached = self._kind == "attach" and (self.begun or self.was_lost)
        repeatable = not self._stdin or self._at_terminal
        return attached and repeatable and not self.detached and self._client.has_alternatives

    def _reset(self) -> None:
        """Prepare another call, which resumes the session, or attaches again."""
        self.was_lost = True
        ended, self._outbox = self._outbox, queue.SimpleQueue()
        ended.put(None)
        with self._flow:
            self._connected = False
            if self._resumable is None:
                self._sent = self._room = self._kept_from = 0
                self._kept.clear()
                self._received = self._acknowledged = 0
        if self._resumable is None:
            self._send(attach=self._first)
            return
        request = interact_pb2.ResumeRequest(
            container=self._resumable.container,
            session=self._first.session,
            received=self._received,
            attach=self._kind == "attach",
        )
        if (found := terminal.size(_STDOUT)) is not None:
            request.size.rows, request.size.columns = found
        self._send(resume=request)

    def _converse(self, stack: ExitStack) -> int:
        requests = iter(self._outbox.get, None)
        for message in self._client.stream("Interact.Session", requests, opened=self._opened):
            match message.WhichOneof("kind"):
                case "attached":
                    self._begin(message.attached, stack)
                case "stdout":
                    self._write(_STDOUT, message.stdout)
                case "stderr":
                    self._write(_STDERR, message.stderr)
                case "stdin_taken":
                    with self._flow:
                        self._room = self._window + message.stdin_taken
                        self._forget(message.stdin_taken)
                        self._flow.notify()
                case "exited":
                    if message.exited.error:
                        stack.close()
                        click.echo(f"orc: {message.exited.error}", err=True)
                    return int(message.exited.code)
        return 0  # a detached program

    def _opened(self, call: Any) -> None:
        self._call = call

    def _begin(self, attached: Any, stack: ExitStack) -> None:
        again, self.begun = self.begun, True
        if again and self._resumable is not None:
            self._resume(attached)
            return
        if attached.resumable:
            self._resumable = attached
        if again:
            with self._flow:
                self._room = self._window = attached.stdin_window
                self._connected = True
                self._flow.notify()
            where = self._first.container
            text = f"attached again at another manager; output in between is in 'orc logs {where}'"
            click.echo(f"orc: {text}", err=True)
            return
        self._window = attached.stdin_window
        self._connected = True
        at_terminal = attached.tty and terminal.size(_STDIN) is not None
        self._at_terminal = at_terminal
        if attached.tty and terminal.size(_STDOUT) is not None:
            stack.enter_context(terminal.handle_signals(self._resized, *terminal.RESIZE_SIGNAL))
            # The size may have changed since the request was made.
            self._resized()
        if self._stdin and attached.stdin:
            if at_terminal:
                stack.enter_context(terminal.raw_mode(_STDIN))
            self._room = self._window
            threading.Thread(target=self._read, args=(at_terminal,), daemon=True).start()
        self._attached()

    def _resume(self, attached: Any) -> None:
        """The session is resumed: send the input that the node has not received."""
        with self._flow:
            self._forget(attached.stdin_received)
            for data in self._kept:
                self._send(stdin=data)
            if self._input_ended:
                self._send(eof=True)
            self._connected = True
        if self.detached:
            self._call.cancel()

    def _forget(self, position: int) -> None:
        """Keep the input from this position on."""
        while self._kept and self._kept_from < position:
            data = self._kept.popleft()
            if self._kept_from + len(data) > position:
                self._kept.appendleft(data[position - self._kept_from :])
                self._kept_from = position
            else:
                self._kept_from += len(data)

    def _read(self, at_terminal: bool) -> None:
        while True:
            with self._flow:
                self._flow.wait_for(lambda: self._sent < self._room)
                most = min(_CHUNK, self._room - self._sent)
            try:
                data = os.read(_STDIN, most)
            except OSError:
                data = b""
            ended = not data
            if at_terminal and data:
                data, self.detached = self._keys.feed(data)
            with self._flow:
                if data:
                    self._sent += len(data)
                    self._kept.append(data)
                self._input_ended = ended
                if self._connected and (data or ended):
                    self._send(**({"eof": True} if ended else {"stdin": data}))
            if self.detached:
                self._call.cancel()
            if self.detached or ended:
                return

    def _write(self, descriptor: int, data: bytes) -> None:
        try:
            terminal.write_all(descriptor, data)
        except BrokenPipeError:
            raise SystemExit(_BROKEN_PIPE) from None
        self._received += len(data)
        if self._resumable is not None and self._received - self._acknowledged >= _ACKNOWLEDGE:
            self._acknowledged = self._received
            self._send(output_taken=self._received)

    def _resized(self, number: int = 0) -> None:
        if (found := terminal.size(_STDOUT)) is not None:
            rows, columns = found
            self._send(resize=interact_pb2.TerminalSize(rows=rows, columns=columns))

    def _pass_on(self, number: int) -> None:
        # Signal numbers differ between systems; the container's are those of Linux.
        self._send(signal=signal_number(signal.Signals(number).name))

    def _send(self, **message: Any) -> None:
        self._outbox.put(interact_pb2.SessionInput(**message))
