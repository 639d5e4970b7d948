# SPDX-License-Identifier: Apache-2.0
"""A session's two directions: the end of one does not break the other off."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from orchestrator.agent.streams.program_session import WINDOW, ProgramSession
from orchestrator.daemon.background import background
from orchestrator.pb import dispatch_pb2, interact_pb2


class Call:
    """The agent's end of a call, as grpc.aio has it: a write that is cancelled cancels the call."""

    def __init__(self, inputs: list[bytes]) -> None:
        self._inputs = inputs
        self.written: list[Any] = []
        self.taken = asyncio.Event()
        """Set once a word about input is being written."""
        self.go_on = asyncio.Event()
        self.cancelled = False

    async def read(self) -> Any:
        if not self._inputs:
            return grpc.aio.EOF
        data = interact_pb2.SessionInput(stdin=self._inputs.pop(0))
        return dispatch_pb2.Frame(session_input=data)

    async def write(self, frame: Any) -> None:
        try:
            if frame.session_output.HasField("stdin_taken"):
                self.taken.set()
                await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        self.written.append(frame.session_output)


class Program:
    """Reads all input, writes nothing, and ends while the input is being acknowledged."""

    tty, stdin = False, True

    def __init__(self, call: Call) -> None:
        self._call = call

    async def read(self) -> None:
        await self._call.taken.wait()

    async def wait(self) -> int:
        asyncio.get_running_loop().call_soon(self._call.go_on.set)
        return 7

    async def write(self, data: bytes) -> None:
        pass

    async def end_input(self) -> None:
        pass

    def close(self) -> None:
        pass


async def test_a_program_that_ends_while_its_input_is_acknowledged() -> None:
    call = Call([bytes(WINDOW // 2)])
    async with asyncio.TaskGroup() as readers:
        program: Any = Program(call)
        session = ProgramSession(program, "c1")
        async with background(session.run()):
            await session.serve(call, readers)
    assert not call.cancelled
    assert [each.WhichOneof("kind") for each in call.written] == [
        "attached",
        "stdin_taken",
        "exited",
    ]
    assert call.written[-1].exited.code == 7
