# SPDX-License-Identifier: Apache-2.0
"""Tunnels: streams between a client's call and one node, over a connection that the agent opens.

The manager requests a tunnel through the node's session; the agent connects with the tunnel's id,
and frames flow both ways with little buffering: a slow reader slows the sender, not the node. If
another manager has the session, the tunnel passes through that one (`relay`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import grpc

from orchestrator.manager.errors import unavailable
from orchestrator.pb import dispatch_pb2

_MAX_IN_FLIGHT = 16
"""Frames in flight per direction."""

OPEN_TIMEOUT = 5.0
"""Seconds in which the agent must have connected."""


Channel = Callable[[str], Awaitable[grpc.aio.Channel | None]]
"""Manager id → a channel to it; None if there is no such manager."""


class _TunnelClosed(Exception):
    """One side of a tunnel has closed it."""


class Tunnel(Protocol):
    """One stream to one node, as the call that uses it sees it."""

    async def send(self, frame: Any) -> None:
        """Send a `Frame` to the agent; waits while too many are in flight. Frames for a closed
        tunnel are dropped."""

    def frames(self) -> AsyncIterator[Any]:
        """The agent's frames, until it closes its side. Raises RequestError if the agent does not
        connect, or disconnects before its last frame."""


class LocalTunnel:
    """A tunnel to a node in session with this manager."""

    def __init__(self, node_id: str, node_name: str, pulls: frozenset[str] = frozenset()) -> None:
        """`pulls`: see `Tunnels.open`."""
        self.pulls = pulls
        self.node_id = node_id
        self.node_name = node_name
        self._to_agent: asyncio.Queue[Any | None] = asyncio.Queue(_MAX_IN_FLIGHT)
        self._from_agent: asyncio.Queue[Any | None] = asyncio.Queue(_MAX_IN_FLIGHT)
        self._joined = asyncio.Event()
        self._closed = False

    async def send(self, frame: Any) -> None:
        """Send a `Frame` to the agent; waits while too many are in flight. Frames for a closed
        tunnel are dropped."""
        await self._put(self._to_agent, frame)

    async def frames(self) -> AsyncIterator[Any]:
        """The agent's frames, until it closes its side. Raises RequestError if the agent does not
        connect, or disconnects before its last frame."""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                await self._joined.wait()
        except TimeoutError:
            raise unavailable(f"node {self.node_name} does not answer; see 'orc node ls'") from None
        while True:
            frame = await self._from_agent.get()
            if frame is None:
                raise unavailable(f"the connection to node {self.node_name} broke")
            yield frame
            if frame.WhichOneof("kind") == "result":
                return

    async def carry(self, requests: AsyncIterator[Any], context: Any) -> None:
        """The agent's call: pump frames both ways until either side closes the tunnel."""
        self._joined.set()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._inward(requests))
                group.create_task(self._outward(context))
        except* _TunnelClosed:
            pass

    async def _inward(self, requests: AsyncIterator[Any]) -> None:
        try:
            async for frame in requests:
                await self._put(self._from_agent, frame)
        finally:
            await self._put(self._from_agent, None)
        raise _TunnelClosed

    async def _outward(self, context: Any) -> None:
        while (frame := await self._to_agent.get()) is not None:
            await context.write(frame)
        raise _TunnelClosed

    async def _put(self, queue: asyncio.Queue[Any | None], item: Any | None) -> None:
        """Put, unless the client has left and nothing will read the queue any more."""
        if not self._closed:
            await queue.put(item)

    def close(self) -> None:
        """Close the client's side: pending puts return, and the agent's call ends."""
        self._closed = True
        for queue in (self._to_agent, self._from_agent):
            while not queue.empty():
                queue.get_nowait()
        self._to_agent.put_nowait(None)


class Remote(Protocol):
    """Opens tunnels through the managers that have the nodes' sessions."""

    def __call__(
        self, node_id: str, node_name: str, order: Any, pulls: frozenset[str]
    ) -> AbstractAsyncContextManager[Tunnel | None]:
        """A tunnel; None if the node is in session with this manager or with none."""


@asynccontextmanager
async def _no_other_manager(
    node_id: str, node_name: str, order: Any, pulls: frozenset[str]
) -> AsyncIterator[Tunnel | None]:
    yield None


class Tunnels:
    """Open tunnels by id."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._open: dict[str, LocalTunnel] = {}
        self.remote: Remote = _no_other_manager

    @property
    def count(self) -> int:
        """Number of open tunnels."""
        return len(self._open)

    @asynccontextmanager
    async def open(
        self,
        node_id: str,
        node_name: str,
        order: Any,
        deliver: Callable[[str, Any], Awaitable[None]],
        pulls: frozenset[str] = frozenset(),
    ) -> AsyncIterator[Tunnel]:
        """Open a tunnel to `node_id`. `order` is an `OpenTunnel` without its id; `deliver` sends a
        `ManagerMessage` in the node's session and raises RequestError without one. `pulls` are full
        names of the images that the node may pull for it with the cluster's credentials."""
        async with self.remote(node_id, node_name, order, pulls) as remote:
            if remote is not None:
                yield remote
                return
        async with self.open_local(node_id, node_name, order, deliver, pulls) as tunnel:
            yield tunnel

    @asynccontextmanager
    async def open_local(
        self,
        node_id: str,
        node_name: str,
        order: Any,
        deliver: Callable[[str, Any], Awaitable[None]],
        pulls: frozenset[str] = frozenset(),
    ) -> AsyncIterator[Tunnel]:
        """As `open`, to a node in session with this manager."""
        identifier = self._new_id()
        tunnel = LocalTunnel(node_id, node_name, pulls)
        message = dispatch_pb2.OpenTunnel()
        message.CopyFrom(order)
        message.id = identifier
        self._open[identifier] = tunnel
        try:
            await deliver(node_id, dispatch_pb2.ManagerMessage(open=message))
            yield tunnel
        finally:
            del self._open[identifier]
            tunnel.close()

    def pulls(self, node_id: str, image: str) -> bool:
        """Whether a node's current work for a client needs this image (by full name)."""
        return any(
            tunnel.node_id == node_id and image in tunnel.pulls for tunnel in self._open.values()
        )

    def of(self, node_id: str) -> bool:
        """Whether a tunnel to the node is open."""
        return any(tunnel.node_id == node_id for tunnel in self._open.values())

    def find(self, identifier: str, node_id: str) -> LocalTunnel | None:
        """The tunnel that was requested of this node under this id."""
        tunnel = self._open.get(identifier)
        return tunnel if tunnel is not None and tunnel.node_id == node_id else None
