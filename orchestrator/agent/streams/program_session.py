# SPDX-License-Identifier: Apache-2.0
"""The streams of a program that a client uses, which outlive the client's connection.

Three flows are independent of each other: output, which is read from the program only as fast as
the client receives it; input, with a window of bytes in flight; and control messages (a new
terminal size, a signal), which overtake unread input.

A client that supports it resumes a session whose connection broke, through another manager. For
that, output is kept until the client has acknowledged it, and positions in both directions are
counted from the session's start, so that nothing is lost or repeated. A resumed session leaves its
former connection, which may not have noticed that it is broken.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc

from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.runtime.io.execs import Program
from orchestrator.daemon.background import background
from orchestrator.pb import dispatch_pb2, interact_pb2

log = logging.getLogger(__name__)

WINDOW = 1 << 18
"""Bytes of input in flight to one program."""
OUTPUT_WINDOW = 1 << 20
"""Bytes of output that are kept for a client that resumes."""

_BROKEN = (grpc.RpcError, asyncio.InvalidStateError)


class ProgramSession:
    """One program's streams. `run` serves the program, `serve` one connection of the client."""

    def __init__(
        self, program: Program, container: str, *, resumable: bool = False, stalls: bool = True
    ) -> None:
        """`container`: its task id. `stalls`: without a client, the program may wait until its
        output is read; else the session ends."""
        self.container = container
        self.ended = False
        """Whether the program has ended and all its output was read."""
        self.on_exit: Callable[[int], None] = lambda code: None
        """Gets the program's exit status."""
        self._closed = False
        self._program = program
        self._resumable = resumable
        self._stalls = stalls
        self._connection = 0
        """Number of the client's connection that counts."""
        self._connected = False
        self._left_at = asyncio.get_running_loop().time()
        self._changed = asyncio.Event()
        """Set, and replaced, at each change."""
        self._output: deque[tuple[bool, bytes]] = deque()
        """Not acknowledged: whether it is stderr, and the bytes."""
        self._acknowledged = 0
        """Position of the first byte of `_output`."""
        self._dropped = 0
        """Number of chunks that were acknowledged."""
        self._produced = 0
        self._code = 0
        self._failure: Exception | None = None
        self._input: deque[bytes] = deque()
        self._queued = 0
        """Bytes of input that are queued."""
        self._received = 0
        """Bytes of input since the start."""
        self._input_ended = False
        self._consumed = 0
        """Bytes of input that the program has read."""

    async def run(self) -> None:
        """Serve the program until it has ended, and release it. A failure is reported to the
        client."""
        try:
            async with background(self._feed()):
                await self._read_output()
                self._code = await self._program.wait()
                self.on_exit(self._code)
        except (RuntimeFailure, OSError) as failure:
            self._failure = failure
        except Exception as error:
            log.exception("the streams of a program failed", extra={"task": self.container})
            self._failure = RuntimeFailure(f"internal error of the agent: {error}")
        self.close()
        self.ended = True
        self._notify()

    def close(self) -> None:
        """Release the program's streams; the program may continue. Idempotent."""
        if not self._closed:
            self._closed = True
            self._program.close()

    async def left(self, keep: float) -> None:
        """Wait until the session has been without a client for `keep` seconds (0 if it cannot be
        resumed), or keeps as much output as it may."""
        now = asyncio.get_running_loop().time
        while True:
            changed = self._changed
            if self._connected:
                await changed.wait()
                continue
            rest = self._left_at + (keep if self._resumable else 0.0) - now()
            if rest <= 0 or (self._full and not self._stalls and not self.ended):
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await changed.wait()

    async def serve(
        self, call: Any, readers: asyncio.TaskGroup, received: int = 0, resumed: bool = False
    ) -> None:
        """Serve a connection of the client, which has `received` bytes of output, until all output
        is sent. Tasks in `readers` continue to read the client's input until it has received the
        end and closes. Raises RuntimeFailure if the client has come back over another one."""
        self._connection += 1
        own, self._connected = self._connection, True
        self._notify()
        try:
            attached = interact_pb2.Attached(
                tty=self._program.tty,
                stdin=self._program.stdin,
                stdin_window=WINDOW,
                resumable=self._resumable,
                stdin_received=self._received,
                container=self.container,
            )
            await send(call, attached=attached)
            readers.create_task(self._take(call, own))
            await self._send_output(call, own, received, -1 if resumed else 0)
        finally:
            if own == self._connection:
                self._connected = False
                self._left_at = asyncio.get_running_loop().time()
                self._notify()

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of the program's terminal."""
        if not self._closed:
            self._program.resize(rows, columns)

    @property
    def _full(self) -> bool:
        return self._produced - self._acknowledged >= (OUTPUT_WINDOW if self._resumable else 1)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _read_output(self) -> None:
        while (output := await self._program.read()) is not None:
            self._output.append(output)
            self._produced += len(output[1])
            self._notify()
            while self._full:
                await self._changed.wait()

    async def _feed(self) -> None:
        while not (self._input_ended and not self._input):
            if not self._input:
                await self._changed.wait()
                continue
            data = self._input.popleft()
            await self._program.write(data)
            self._queued -= len(data)
            self._consumed += len(data)
            self._notify()
        await self._program.end_input()

    async def _send_output(self, call: Any, own: int, position: int, told: int) -> None:
        """Send the output after `position`, and what the program has read of its input; `told`: as
        the client knows it."""
        number, skip = self._chunk_at(position)
        while True:
            changed = self._changed
            if own != self._connection:
                raise RuntimeFailure("the client has resumed this session over another connection")
            if told < 0 or self._consumed - told >= WINDOW // 4:
                told = self._consumed
                await send(call, stdin_taken=told)
            elif number < self._dropped + len(self._output):
                stderr, data = self._output[number - self._dropped]
                await send(call, **{"stderr" if stderr else "stdout": data[skip:]})
                number, skip, position = number + 1, 0, position + len(data) - skip
                if not self._resumable:
                    self._acknowledge(position)
            elif self._failure is not None:
                raise self._failure
            elif self.ended:
                await send(call, exited=interact_pb2.Exited(code=self._code))
                return
            else:
                await changed.wait()

    def _chunk_at(self, position: int) -> tuple[int, int]:
        """The number of the output's chunk at a position, and the bytes before it there."""
        begin = self._acknowledged
        for number, (_, data) in enumerate(self._output, self._dropped):
            if position < begin + len(data):
                return number, max(0, position - begin)
            begin += len(data)
        return self._dropped + len(self._output), 0

    def _acknowledge(self, position: int) -> None:
        while self._output and self._acknowledged + len(self._output[0][1]) <= position:
            self._acknowledged += len(self._output.popleft()[1])
            self._dropped += 1
        self._notify()

    async def _take(self, call: Any, own: int) -> None:
        with suppress(*_BROKEN):
            while isinstance(frame := await call.read(), dispatch_pb2.Frame):
                if own != self._connection:
                    return
                message = frame.session_input
                match message.WhichOneof("kind"):
                    case "stdin":
                        self._input.append(message.stdin)
                        self._queued += len(message.stdin)
                        self._received += len(message.stdin)
                        if self._queued > WINDOW:
                            log.warning("a client sent more input than its window allows")
                            call.cancel()
                            return
                    case "eof":
                        self._input_ended = True
                    case "output_taken":
                        self._acknowledge(message.output_taken)
                    case "resize":
                        self.resize(message.resize.rows, message.resize.columns)
                    case "signal":
                        await self._program.signal(message.signal)
                self._notify()


async def send(call: Any, **message: Any) -> None:
    """Send a message to the client."""
    await call.write(dispatch_pb2.Frame(session_output=interact_pb2.SessionOutput(**message)))
