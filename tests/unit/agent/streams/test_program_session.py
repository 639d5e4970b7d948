# SPDX-License-Identifier: Apache-2.0
"""A client whose connections break, at a program that answers its input."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any

import grpc
import pytest

from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.streams.program_session import OUTPUT_WINDOW, ProgramSession
from orchestrator.daemon.background import background
from orchestrator.pb import dispatch_pb2, interact_pb2


class Echo:
    """Writes what it reads, in pieces of its own, alternately to stdout and stderr; exits with 7 at
    the end of its input."""

    tty, stdin = False, True

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._text = bytearray()
        self._ended = False
        self._more = asyncio.Event()
        self.closed = False
        self._stderr = False

    async def read(self) -> tuple[bool, bytes] | None:
        while not self._text:
            if self._ended:
                return None
            self._more.clear()
            await self._more.wait()
        size = self._rng.randint(1, len(self._text))
        data, self._text = bytes(self._text[:size]), self._text[size:]
        self._stderr = not self._stderr
        return self._stderr, data

    async def write(self, data: bytes) -> None:
        await asyncio.sleep(0)
        self._text += data
        self._more.set()

    async def end_input(self) -> None:
        self._ended = True
        self._more.set()

    async def wait(self) -> int:
        return 7

    def resize(self, rows: int, columns: int) -> None: ...

    async def signal(self, number: int) -> None: ...

    def close(self) -> None:
        self.closed = True


class Connection:
    """The agent's end of a call, and the client's: `received` is what arrives, until it breaks."""

    def __init__(self) -> None:
        self._sent: asyncio.Queue[Any] = asyncio.Queue()
        self.received: asyncio.Queue[Any] = asyncio.Queue(2)

    async def read(self) -> Any:
        message = await self._sent.get()
        if message is None:
            return grpc.aio.EOF
        return dispatch_pb2.Frame(session_input=message)

    async def write(self, frame: Any) -> None:
        await self.received.put(frame.session_output)

    def send(self, **message: Any) -> None:
        self._sent.put_nowait(interact_pb2.SessionInput(**message))

    def end(self) -> None:
        self._sent.put_nowait(None)


@pytest.mark.parametrize("seed", range(20))
async def test_nothing_is_lost_or_repeated_over_broken_connections(seed: int) -> None:
    rng = random.Random(seed)
    text = rng.randbytes(100_000)
    program: Any = Echo(rng)
    session = ProgramSession(program, "c1", resumable=True)
    output, code = b"", None
    connections: list[asyncio.Task[None]] = []
    async with background(session.run()), asyncio.TaskGroup() as readers:
        while code is None:
            call = Connection()
            connections.append(
                readers.create_task(_served(session, call, readers, len(output), len(connections)))
            )
            attached = (await call.received.get()).attached
            sent, budget = attached.stdin_received, rng.randint(1, 40)
            while code is None and (budget := budget - 1):
                if sent < len(text):
                    piece = text[sent : sent + rng.randint(1, 9_000)]
                    call.send(stdin=piece)
                    sent += len(piece)
                elif sent == len(text):
                    call.send(eof=True)
                    sent += 1
                message = await call.received.get()
                match message.WhichOneof("kind"):
                    case "stdout" | "stderr" as kind:
                        output += getattr(message, kind)
                        if rng.random() < 0.3:
                            call.send(output_taken=len(output))
                    case "exited":
                        code = message.exited.code
            # Half of the connections break without the agent's notice.
            call.end()
            if rng.random() < 0.5:
                connections[-1].cancel()
        for each in connections:
            each.cancel()
    assert (output, code) == (text, 7)
    assert len(connections) > 1
    assert program.closed


async def _served(
    session: ProgramSession, call: Any, readers: asyncio.TaskGroup, received: int, number: int
) -> None:
    with suppress(RuntimeFailure):  # the client has resumed the session over another connection
        await session.serve(call, readers, received, resumed=number > 0)


async def test_output_waits_for_its_acknowledgement() -> None:
    program: Any = Echo(random.Random(1))
    session = ProgramSession(program, "c1", resumable=True)
    call = Connection()
    call.received = asyncio.Queue()
    async with background(session.run()), asyncio.TaskGroup() as readers:
        readers.create_task(session.serve(call, readers))
        await program.write(bytes(3 * OUTPUT_WINDOW))
        await program.end_input()
        received, stdout = 0, "stdout"
        while received < 3 * OUTPUT_WINDOW:
            message = await call.received.get()
            if (kind := message.WhichOneof("kind")) in (stdout, "stderr"):
                received += len(getattr(message, kind))
                call.send(output_taken=received)
        call.end()
    assert received == 3 * OUTPUT_WINDOW


async def test_a_session_ends_some_time_after_its_client_has_left() -> None:
    program: Any = Echo(random.Random(1))
    session = ProgramSession(program, "c1", resumable=True)
    async with background(session.run()):
        call = Connection()
        async with asyncio.TaskGroup() as readers:
            served = readers.create_task(session.serve(call, readers))
            await call.received.get()
            left = asyncio.ensure_future(session.left(0.05))
            await asyncio.sleep(0.1)
            assert not left.done()
            served.cancel()
            call.end()
            await left
    assert not session.ended
