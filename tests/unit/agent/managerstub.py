# SPDX-License-Identifier: Apache-2.0
"""A manager as the agent sees it: a real gRPC server whose every word a test decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from orchestrator.identity.revocation import REVOKED_SERIAL
from orchestrator.pb import dispatch_pb2, dispatch_pb2_grpc


class Conversation:
    """One session as the manager holds it."""

    def __init__(self, hello: dispatch_pb2.Hello, context: Any) -> None:
        self.hello = hello
        self._context = context
        self.statuses: list[dispatch_pb2.StatusReport] = []
        self.images: list[dispatch_pb2.ImageReport] = []
        self.applied: list[int] = []
        """Revisions of the endpoint table that were acknowledged."""
        self.heartbeats = 0
        self.troubles = [hello.description.trouble]
        """The troubles that the node has reported, in order."""
        self.acknowledge = True
        self.over = asyncio.Event()
        self._speaking = asyncio.Lock()

    async def say(self, **kind: Any) -> None:
        """Send a message. It is lost if the agent has gone, as a manager's is."""
        async with self._speaking:  # gRPC takes one write at a time
            try:
                await self._context.write(dispatch_pb2.ManagerMessage(**kind))
            except Exception:
                if not self._context.done():
                    raise

    async def welcome(self, period: float = 0.05, managers: Iterable[str] = ()) -> None:
        await self.say(
            welcome=dispatch_pb2.Welcome(heartbeat_period=period, managers=list(managers))
        )

    async def full(
        self,
        *tasks: dispatch_pb2.AssignedTask,
        version: int = 1,
        networks: Iterable[dispatch_pb2.AssignedNetwork] = (),
    ) -> None:
        await self.say(
            assignments=dispatch_pb2.Assignments(
                full=True, results_in=version, tasks=tasks, networks=networks
            )
        )

    async def diff(
        self,
        *tasks: dispatch_pb2.AssignedTask,
        applies_to: int,
        removed: Iterable[str] = (),
    ) -> None:
        await self.say(
            assignments=dispatch_pb2.Assignments(
                applies_to=applies_to,
                results_in=applies_to + 1,
                tasks=tasks,
                removed_tasks=removed,
            )
        )

    def states(self) -> dict[str, int]:
        """Task → the newest state that was reported in this session."""
        newest: dict[str, int] = {}
        for report in self.statuses:
            newest.update({task: status.state for task, status in report.statuses.items()})
        return newest

    async def listen(self, messages: AsyncIterator[dispatch_pb2.AgentMessage]) -> None:
        async for message in messages:
            match message.WhichOneof("kind"):
                case "statuses":
                    self.statuses.append(message.statuses)
                    if self.acknowledge:
                        await self.say(
                            ack=dispatch_pb2.StatusAck(sequence=message.statuses.sequence)
                        )
                case "images":
                    self.images.append(message.images)
                case "endpoints_applied":
                    self.applied.append(message.endpoints_applied.revision)
                case "heartbeat":
                    self.heartbeats += 1
                case "trouble":
                    self.troubles.append(message.trouble)


class TunnelEnd:
    """The manager's end of one tunnel."""

    def __init__(self, messages: AsyncIterator[dispatch_pb2.Frame], context: Any) -> None:
        self._messages = messages
        self._context = context
        self.closed = asyncio.Event()

    async def send(self, **kind: Any) -> None:
        await self._context.write(dispatch_pb2.Frame(**kind))

    async def frames(self) -> list[dispatch_pb2.Frame]:
        """All frames up to the result, and with it; then the tunnel is closed."""
        frames: list[dispatch_pb2.Frame] = []
        async with asyncio.timeout(60):
            while not frames or not frames[-1].HasField("result"):
                frames.append(await anext(self._messages))
        self.closed.set()
        return frames

    async def frame(self) -> dispatch_pb2.Frame:
        async with asyncio.timeout(60):
            return await anext(self._messages)


class ManagerStub(dispatch_pb2_grpc.DispatchServicer):  # type: ignore[misc]
    """Hands each session and each tunnel to the test that waits for it."""

    def __init__(self) -> None:
        self._sessions: asyncio.Queue[Conversation] = asyncio.Queue()
        self._tunnels: dict[str, asyncio.Future[TunnelEnd]] = {}
        self.redirect_to: str | None = None
        self.refuse = ""
        self.refusal = grpc.StatusCode.PERMISSION_DENIED
        self.revoked_serial = ""
        """Of the certificate that the refusal names as revoked."""
        self.silent = False
        self.dialled = 0
        self.address = ""

    async def Session(self, messages: Any, context: Any) -> None:
        self.dialled += 1
        if self.refuse:
            trailing = ((REVOKED_SERIAL, self.revoked_serial),) if self.revoked_serial else ()
            await context.abort(self.refusal, self.refuse, trailing)
        hello = (await anext(messages)).hello
        if self.redirect_to is not None:
            redirect = dispatch_pb2.Redirect(leader=self.redirect_to)
            await context.write(dispatch_pb2.ManagerMessage(redirect=redirect))
            return
        conversation = Conversation(hello, context)
        if not self.silent:
            self._sessions.put_nowait(conversation)
        async with asyncio.TaskGroup() as group:
            listener = group.create_task(conversation.listen(messages))
            await conversation.over.wait()
            listener.cancel()

    async def Tunnel(self, messages: Any, context: Any) -> None:
        (tunnel_id,) = (v for k, v in context.invocation_metadata() if k == "orc-tunnel")
        end = TunnelEnd(messages, context)
        self._expect(tunnel_id).set_result(end)
        await end.closed.wait()

    def _expect(self, tunnel_id: str) -> asyncio.Future[TunnelEnd]:
        return self._tunnels.setdefault(tunnel_id, asyncio.get_running_loop().create_future())

    async def session(self) -> Conversation:
        """The next session that an agent opens."""
        async with asyncio.timeout(60):
            return await self._sessions.get()

    async def tunnel(self, tunnel_id: str) -> TunnelEnd:
        """The tunnel that an agent opens on order."""
        async with asyncio.timeout(60):
            return await self._expect(tunnel_id)


@asynccontextmanager
async def manager_stub(address: str = "127.0.0.1:0") -> AsyncIterator[ManagerStub]:
    """A manager at HOST:PORT."""
    stub = ManagerStub()
    server = grpc.aio.server()
    dispatch_pb2_grpc.add_DispatchServicer_to_server(stub, server)
    stub.address = f"127.0.0.1:{server.add_insecure_port(address)}"
    await server.start()
    try:
        yield stub
    finally:
        await server.stop(None)
