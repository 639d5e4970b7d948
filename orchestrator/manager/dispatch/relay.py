# SPDX-License-Identifier: Apache-2.0
"""Tunnels to nodes that are in session with another manager, through that manager.

One hop only: the called manager opens the tunnel to its own session or refuses. Managers call each
other with their own certificates.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc

from orchestrator.daemon.grpc_calls import complete
from orchestrator.manager.dispatch.pull_coordination import REGISTRY
from orchestrator.manager.dispatch.pull_turns import PullTurn, PullTurns
from orchestrator.manager.dispatch.tunnels import Channel, Tunnel, Tunnels
from orchestrator.manager.errors import ErrorKind, RequestError, unavailable
from orchestrator.model.nodes import SessionRecord
from orchestrator.pb import dispatch_pb2, dispatch_pb2_grpc, images_pb2

log = logging.getLogger(__name__)

Locate = Callable[[str, Container[str]], Awaitable[SessionRecord | None]]
"""The record of a node's session (by node id) with another manager, without the sessions that were
tried (by id); waits a moment for one. None: it is in session with this manager, or with none."""

_OPENED = ("orc-relay", "open")

OPEN_TIMEOUT = 2.0
"""Seconds in which the other manager must have asked the node."""


class RelayTunnel:
    """A tunnel through another manager."""

    def __init__(self, node_name: str, call: Any) -> None:
        self._node_name = node_name
        self._call = call

    async def send(self, frame: Any) -> None:
        """See `Tunnel`."""
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # closed: dropped
            await self._call.write(dispatch_pb2.RelayMessage(frame=frame))

    async def frames(self) -> AsyncIterator[Any]:
        """See `Tunnel`."""
        while True:
            try:
                frame = await self._call.read()
            except grpc.aio.AioRpcError as error:
                raise _request_error(error, self._node_name) from None
            if not isinstance(frame, dispatch_pb2.Frame):  # grpc.aio.EOF
                raise unavailable(f"the connection to node {self._node_name} broke")
            yield frame
            if frame.WhichOneof("kind") == "result":
                return


def _request_error(error: grpc.aio.AioRpcError, node_name: str) -> RequestError:
    """The error that the other manager reports; or that it cannot be reached."""
    code = error.code().name
    if code in ErrorKind.__members__ and code != ErrorKind.UNAVAILABLE.name:
        return RequestError(ErrorKind[code], error.details() or "")
    log.warning(
        "a tunnel through another manager broke",
        extra={"node": node_name, "code": code, "error": error.details()},
    )
    return unavailable(f"the connection to node {node_name} broke")


class Relay:
    """Opens tunnels through other managers."""

    def __init__(self, locate: Locate, channel: Channel) -> None:
        self._locate = locate
        self._channel = channel

    @asynccontextmanager
    async def open(
        self, node_id: str, node_name: str, order: Any, pulls: frozenset[str]
    ) -> AsyncIterator[Tunnel | None]:
        """A tunnel; None if the node is in session with this manager, or with none."""
        opened = dispatch_pb2.RelayOpen(
            node_id=node_id, node_name=node_name, order=order, pulls=sorted(pulls)
        )
        tried: set[str] = set()
        while (record := await self._locate(node_id, tried)) is not None:
            tried.add(record.session_id)
            channel = await self._channel(record.manager_id)
            if channel is None:
                continue
            call = dispatch_pb2_grpc.RelayStub(channel).Tunnel()
            try:
                if await _is_open(call, opened):
                    yield RelayTunnel(node_name, call)
                    return
            finally:
                call.cancel()
        yield None


async def _is_open(call: Any, opened: Any) -> bool:
    """Whether the other manager has asked the node."""
    try:
        async with asyncio.timeout(OPEN_TIMEOUT):
            await call.write(dispatch_pb2.RelayMessage(open=opened))
            return _OPENED in tuple(await call.initial_metadata())
    except (TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return False


class RelayService(dispatch_pb2_grpc.RelayServicer):  # type: ignore[misc]
    """Opens tunnels for other managers to nodes in session with this one. While this one leads, it
    also coordinates the pulls of nodes in session with others."""

    def __init__(
        self,
        tunnels: Tunnels,
        deliver: Callable[[str, Any], Awaitable[None]],
        connected: Callable[[str], bool],
        turns: PullTurns,
    ) -> None:
        """`connected`: whether a node (by id) is in session with this manager."""
        self._turns = turns
        self._tunnels = tunnels
        self._deliver = deliver
        self._connected = connected

    async def Tunnel(self, request_iterator: AsyncIterator[Any], context: Any) -> None:
        requests = aiter(request_iterator)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("kind") != "open":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a relay begins with an open")
            return
        node_id, opened = first.open.node_id, first.open
        if not self._connected(node_id):
            reason = f"node {node_id} is not in session with this manager"
            await context.abort(grpc.StatusCode.UNAVAILABLE, reason)
        try:
            async with self._tunnels.open_local(
                node_id,
                opened.node_name,
                opened.order,
                self._deliver,
                frozenset(opened.pulls),
            ) as tunnel:
                await complete(context.send_initial_metadata((_OPENED,)))
                await _pump(tunnel, requests, context)
        except RequestError as refusal:
            await context.abort(grpc.StatusCode[refusal.kind.name], refusal.text)

    async def AcquirePull(self, request: Any, context: Any) -> None:
        asked = request.request

        async def grant(source: str) -> None:
            nodes = [] if source == REGISTRY else [source]
            await context.write(images_pb2.Grant(nodes=nodes, registry=not nodes))

        async def notify(reason: str) -> None:
            await context.write(images_pb2.Grant(waiting=reason))

        await self._turns.hold_here(
            PullTurn(request.node_id, asked, grant, notify, asked.pulling, asked.source)
        )
        await context.abort(grpc.StatusCode.UNAVAILABLE, "this manager does not lead")

    async def ReportPull(self, request: Any, context: Any) -> Any:
        progress = request.progress
        image = progress.digest or progress.name
        self._turns.progress_here(request.node_id, image, progress.received)
        return images_pb2.PullProgressReply()


async def _pump(tunnel: Tunnel, requests: AsyncIterator[Any], context: Any) -> None:
    """Forward frames both ways until the agent's last one."""

    async def outward() -> None:
        async for message in requests:
            await tunnel.send(message.frame)

    sending = asyncio.ensure_future(outward())
    try:
        async for frame in tunnel.frames():
            await context.write(frame)
    finally:
        sending.cancel()
        await asyncio.wait((sending,))
