# SPDX-License-Identifier: Apache-2.0
"""Exec and attach: the programs of a node that clients use.

A client that disconnects does not end a program: it is detached from a container, and a program of
`exec` continues, its output read and discarded. Before that, its session is kept for a while, so
that the client can resume it (`program_session`). When the agent ends, such a program gets the same
hang-up as from a closed terminal.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from orchestrator.agent.runtime.engine.bundle import ContainerHandle
from orchestrator.agent.runtime.interface import Exit, RuntimeFailure
from orchestrator.agent.runtime.io import execs
from orchestrator.agent.runtime.io.attach import attach
from orchestrator.agent.runtime.io.execs import ExecProgram, ExecSpec
from orchestrator.agent.streams.program_session import ProgramSession, send
from orchestrator.agent.tasks.runner import TaskRunner
from orchestrator.daemon.background import background
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import TaskStatus
from orchestrator.pb import dispatch_pb2, interact_pb2

log = logging.getLogger(__name__)

RESUME_WITHIN = 20.0
"""Seconds for which a session is kept for a client whose connection broke."""
REMEMBERED = 4096
"""Programs with a session whose exit status is remembered: the newest."""


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
        self._kept: set[asyncio.Task[None]] = set()
        """One for each session, and for each program whose client has left."""
        self._sessions: dict[str, ProgramSession] = {}
        """Those that can be resumed, by id."""
        self._execs: OrderedDict[tuple[str, str], interact_pb2.ExecState] = OrderedDict()
        """By task id and session of a program of `exec`."""

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._kept:
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
                await send(call, attached=interact_pb2.Attached())
                return dispatch_pb2.TunnelResult()
            program = await execs.start(access, spec)
        except RuntimeFailure as failure:
            if not failure.exit_code:
                raise
            self._remember(request, failure.exit_code, str(failure))
            exited = interact_pb2.Exited(code=failure.exit_code, error=str(failure))
            await send(call, exited=exited)
            return dispatch_pb2.TunnelResult()
        self._remember(request, None)
        session = ProgramSession(program, access.container_id, resumable=bool(request.session))

        async def run_on() -> None:
            self._remember(request, await _run_on(program))

        return await self._begin(
            session,
            request.session,
            call,
            readers,
            run_on,
            lambda code: self._remember(request, code),
        )

    async def get_exec(
        self, call: Any, order: dispatch_pb2.OpenTunnel, readers: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        """How a program of `exec` with a session is, or has ended."""
        key = (order.get_exec.container, order.get_exec.session)
        return dispatch_pb2.TunnelResult(exec=self._execs.get(key, interact_pb2.ExecState()))

    def _remember(
        self, request: interact_pb2.ExecRequest, code: int | None, error: str = ""
    ) -> None:
        """Record the exit status of a program, and why it was not run; None: it runs."""
        if not request.session:
            return
        ended = interact_pb2.ExecState.EXITED
        self._execs[(request.container, request.session)] = interact_pb2.ExecState(
            state=interact_pb2.ExecState.RUNNING if code is None else ended,
            exit_code=code or 0,
            error=error,
        )
        while len(self._execs) > REMEMBERED:
            self._execs.popitem(last=False)

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
            size=(request.size.rows, request.size.columns) if request.HasField("size") else None,
        )
        session = ProgramSession(program, runner.id, resumable=bool(request.session), stalls=False)
        return await self._begin(session, request.session, call, readers)

    async def resume(
        self, call: Any, order: dispatch_pb2.OpenTunnel, readers: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        """Continue the session of a client whose connection broke. Raises RuntimeFailure."""
        request = order.resume
        session = self._sessions.get(request.session)
        if session is None or session.container != request.container:
            raise RuntimeFailure("the session has ended on its node")
        if request.HasField("size"):
            session.resize(request.size.rows, request.size.columns)
        await session.serve(call, readers, request.received, resumed=True)
        return dispatch_pb2.TunnelResult()

    def _runner(self, task_id: str) -> TaskRunner:
        runner = self._runners.get(task_id)
        if runner is None or runner.task.desired_state is TaskState.REMOVE:
            raise RuntimeFailure("the container is no longer on this node")
        return runner

    async def _begin(
        self,
        session: ProgramSession,
        id: str,
        call: Any,
        readers: asyncio.TaskGroup,
        afterwards: Callable[[], Awaitable[None]] | None = None,
        ended: Callable[[int], None] = lambda code: None,
    ) -> dispatch_pb2.TunnelResult:
        """Serve a new session; `afterwards` is what happens to a program whose client has left.
        `ended` gets the exit status of one that has ended before."""
        if id:
            self._sessions[id] = session
        session.on_exit = ended
        task = self._group.create_task(self._keep(session, id, afterwards))
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)
        await session.serve(call, readers)
        return dispatch_pb2.TunnelResult()

    async def _keep(
        self,
        session: ProgramSession,
        id: str,
        afterwards: Callable[[], Awaitable[None]] | None,
    ) -> None:
        """Run a session for as long as its client uses it or may come back."""
        try:
            async with background(session.run()):
                await session.left(RESUME_WITHIN)
            self._sessions.pop(id, None)
            if afterwards is not None and not session.ended:
                await afterwards()
        finally:
            self._sessions.pop(id, None)
            session.close()


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


async def _run_on(program: ExecProgram) -> int:
    """Let a program continue without a client; its exit status."""
    try:
        await program.drain()
    except OSError as error:
        log.warning("the output of a program without a client cannot be read: %s", error)
    return await program.wait()
