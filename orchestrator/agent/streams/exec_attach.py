# SPDX-License-Identifier: Apache-2.0
"""Exec and attach: the agent's end of a client's streams.

Three flows are independent of each other: output, which is read from the program only as fast as
the client receives it; input, with a window of bytes in flight; and control messages (a new
terminal size, a signal), which overtake unread input.

A client that disconnects does not end a program: it is detached from a container, and a program of
`exec` continues, its output read and discarded. When the agent ends, such a program gets the same
hang-up as from a closed terminal.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

import grpc

from orchestrator.agent.runtime.engine.bundle import ContainerHandle
from orchestrator.agent.runtime.interface import Exit, RuntimeFailure
from orchestrator.agent.runtime.io import execs
from orchestrator.agent.runtime.io.attach import attach
from orchestrator.agent.runtime.io.execs import ExecProgram, ExecSpec, Program
from orchestrator.agent.tasks.runner import TaskRunner
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import TaskStatus
from orchestrator.pb import dispatch_pb2, interact_pb2

log = logging.getLogger(__name__)

WINDOW = 1 << 18
"""Bytes of input in flight to one program."""

_BROKEN = (grpc.RpcError, asyncio.InvalidStateError)


class ExecAttach:
    """All exec and attach sessions of a node; an async context manager around the tunnels."""

    def __init__(
        self,
        runners: Mapping[str, TaskRunner],
        access: Callable[[str], ContainerHandle],
        wait: Callable[[str], Awaitable[Exit]],
    ) -> None:
        self._runners = runners
        self._access = access
        self._wait = wait
        self._group = asyncio.TaskGroup()
        self._left: set[asyncio.Task[None]] = set()
        """Programs whose clients have disconnected."""

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._left:
            task.cancel()
        await self._group.__aexit__(kind, error, trace)

    async def exec(
        self, call: Any, order: dispatch_pb2.OpenTunnel, readers: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        """Run another program in a container. Raises RuntimeFailure."""
        request = order.exec
        access = self._access(self._runner(request.container).id)
        spec = ExecSpec(
            command=tuple(request.command),
            tty=request.tty,
            stdin=request.stdin,
            env=tuple(request.env),
            user=request.user,
            workdir=request.workdir,
            privileged=request.privileged,
            rows=request.size.rows,
            columns=request.size.columns,
        )
        try:
            if request.detach:
                await execs.start_detached(access, spec)
                await _send(call, attached=interact_pb2.Attached())
                return dispatch_pb2.TunnelResult()
            program = await execs.start(access, spec)
        except RuntimeFailure as failure:
            if not failure.exit_code:
                raise
            exited = interact_pb2.Exited(code=failure.exit_code, error=str(failure))
            await _send(call, exited=exited)
            return dispatch_pb2.TunnelResult()
        try:
            await _Relay(call, program).run(readers)
        except BaseException:
            self._leave(program)
            raise
        program.close()
        return dispatch_pb2.TunnelResult()

    async def attach(
        self, call: Any, order: dispatch_pb2.OpenTunnel, readers: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        """Connect to a container's main program. Raises RuntimeFailure."""
        request = order.attach
        runner = self._runner(request.container)
        spec = runner.task.spec.container
        program = await attach(
            self._access(runner.id),
            lambda _: end_of(runner, self._wait),
            runner.ended,
            stdin=spec.open_stdin and request.stdin,
            tty=spec.tty,
        )
        try:
            if request.HasField("size"):
                program.resize(request.size.rows, request.size.columns)
            await _Relay(call, program).run(readers)
        finally:
            program.close()
        return dispatch_pb2.TunnelResult()

    def _runner(self, task_id: str) -> TaskRunner:
        runner = self._runners.get(task_id)
        if runner is None or runner.task.desired_state is TaskState.REMOVE:
            raise RuntimeFailure("the container is no longer on this node")
        return runner

    def _leave(self, program: ExecProgram) -> None:
        task = self._group.create_task(_run_on(program))
        self._left.add(task)
        task.add_done_callback(self._left.discard)


class _Ending(Protocol):
    """The end of a container, as its runner has recorded it."""

    @property
    def id(self) -> str: ...
    @property
    def ended(self) -> asyncio.Event: ...
    @property
    def status(self) -> TaskStatus: ...


async def end_of(runner: _Ending, wait: Callable[[str], Awaitable[Exit]]) -> Exit:
    """How a container ended. With `--rm` it may already be removed; then its reported status is
    used. Raises RuntimeFailure if its end is unknown."""
    try:
        return await wait(runner.id)
    except RuntimeFailure:
        if not runner.ended.is_set():
            raise
        status = runner.status
        return Exit(status.exit_code, status.oom_killed, status.finished_at, status.message)


async def _run_on(program: ExecProgram) -> None:
    try:
        await program.drain()
    except OSError as error:
        log.warning("the output of a program without a client cannot be read: %s", error)
    finally:
        program.close()


class _Relay:
    """Relays the streams between one client and one program."""

    def __init__(self, call: Any, program: Program) -> None:
        self._call = call
        self._program = program
        self._sending = asyncio.Lock()
        self._waiting: deque[bytes] = deque()
        self._size = 0
        """Bytes that are queued."""
        self._ended = False
        self._changed = asyncio.Event()
        self._consumed = 0
        """Bytes of input that the program has read."""

    async def run(self, readers: asyncio.TaskGroup) -> None:
        """Run until the program has ended and all its output is sent. Tasks in `readers` continue
        to read the client's input until it has received the end and closes."""
        program = self._program
        await self._send(
            attached=interact_pb2.Attached(
                tty=program.tty, stdin=program.stdin, stdin_window=WINDOW
            )
        )
        readers.create_task(self._take())
        feeder = readers.create_task(self._feed())
        try:
            while (output := await program.read()) is not None:
                stderr, data = output
                await self._send(**{"stderr" if stderr else "stdout": data})
            code = await program.wait()
            # Not during a write to the client: cancelling a write ends the call.
            async with self._sending:
                feeder.cancel()
        finally:
            feeder.cancel()
            # It uses descriptors that are closed afterwards.
            await asyncio.wait((feeder,))
        await self._send(exited=interact_pb2.Exited(code=code))

    async def _send(self, **message: Any) -> None:
        async with self._sending:
            await _send(self._call, **message)

    async def _take(self) -> None:
        try:
            while isinstance(frame := await self._call.read(), dispatch_pb2.Frame):
                message = frame.session_input
                match message.WhichOneof("kind"):
                    case "stdin":
                        self._waiting.append(message.stdin)
                        self._size += len(message.stdin)
                        if self._size > WINDOW:
                            log.warning("a client sent more input than its window allows")
                            self._call.cancel()
                            return
                    case "eof":
                        self._ended = True
                    case "resize":
                        self._program.resize(message.resize.rows, message.resize.columns)
                    case "signal":
                        await self._program.signal(message.signal)
                self._changed.set()
        except _BROKEN:
            return

    async def _feed(self) -> None:
        acknowledged = 0
        try:
            while True:
                while self._waiting:
                    data = self._waiting.popleft()
                    await self._program.write(data)
                    self._size -= len(data)
                    self._consumed += len(data)
                    if self._consumed - acknowledged >= WINDOW // 4:
                        acknowledged = self._consumed
                        await self._send(stdin_taken=acknowledged)
                if self._ended:
                    await self._program.end_input()
                    return
                self._changed.clear()
                await self._changed.wait()
        except _BROKEN:
            return


async def _send(call: Any, **message: Any) -> None:
    await call.write(dispatch_pb2.Frame(session_output=interact_pb2.SessionOutput(**message)))
