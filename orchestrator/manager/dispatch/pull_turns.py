# SPDX-License-Identifier: Apache-2.0
"""When and from where the nodes of all managers pull images: the leader decides.

A manager that leads asks its own `PullCoordinator`; any other asks the leader, with one call for
each pull of its nodes. If the lead changes, it asks the next leader, and registers there the pulls
that were granted and continue: a leader knows within moments what is being pulled. While there is
no leader, nodes wait; an agent gives up after a while and pulls on its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc

from orchestrator.daemon.background import background
from orchestrator.manager.dispatch.pull_coordination import (
    REGISTRY,
    Granted,
    Pull,
    PullCoordinator,
    Waiting,
)
from orchestrator.manager.dispatch.tunnels import Channel
from orchestrator.manager.object_lookup import images_of
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.kv import StoreError
from orchestrator.model.nodes import Node, NodeState
from orchestrator.model.objects import Image
from orchestrator.model.units import format_size
from orchestrator.pb import dispatch_pb2, dispatch_pb2_grpc, images_pb2

log = logging.getLogger(__name__)

RETRY = 0.5
"""Seconds between attempts to find or reach the leader."""
REPORT_TIMEOUT = 5.0
"""Seconds in which the leader must have taken a report of progress."""


@dataclass(slots=True, eq=False)
class PullTurn:
    """One pull of a node, from its request until it ends."""

    node_id: str
    request: Any
    """An `AcquireRequest`."""
    grant: Callable[[str], Awaitable[None]]
    """Called once with the source: HOST:PORT of a node, or REGISTRY."""
    notify: Callable[[str], Awaitable[None]]
    """Called with the reason why the node has to wait."""
    granted: bool = False
    source: str = REGISTRY
    """The source, once it is granted."""
    leader: Any = None
    """The stub of the leader that coordinates it; None: this manager does."""

    @property
    def pull(self) -> Pull:
        """As the coordinator sees it."""
        request = self.request
        return Pull(self.node_id, self.image, frozenset(request.failed), bool(request.reports))

    @property
    def image(self) -> str:
        """The digest, or the name if the digest is unknown."""
        return str(self.request.digest or self.request.name)

    async def begin(self, source: str) -> None:
        """The pull is granted."""
        self.granted, self.source = True, source
        await self.grant(source)


@dataclass(slots=True)
class _Term:
    """A term in which this manager leads."""

    turns: PullCoordinator
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class PullTurns:
    """Turns of the nodes in session with one manager and, while it leads, of all others'."""

    def __init__(
        self,
        cache: Cache,
        manager_id: str,
        leader: Callable[[], Awaitable[str | None]],
        channel: Channel,
        coordinator: Callable[[], PullCoordinator] = PullCoordinator,
    ) -> None:
        """`leader`: the id of the manager that leads. Raises StoreError."""
        self._cache = cache
        self._manager_id = manager_id
        self._leader = leader
        self._channel = channel
        self._coordinator = coordinator
        self._term: _Term | None = None
        self._own = coordinator()
        """Used while a manager of an older version leads."""
        self._turns: set[PullTurn] = set()
        """Of the nodes in session with this manager."""
        self._waiting: set[asyncio.Event] = set()
        """Events of waiting pulls, set when another pull has ended."""

    @asynccontextmanager
    async def leading(self) -> AsyncIterator[PullCoordinator]:
        """Coordinate the pulls of all managers while the body runs."""
        term = self._term = _Term(self._coordinator())
        try:
            yield term.turns
        finally:
            self._term = None
            term.ended.set()

    async def hold(self, turn: PullTurn) -> None:
        """Have a pull granted and hold its turn, until cancelled."""
        self._turns.add(turn)
        try:
            while True:
                if not await self._with_leader(turn):
                    await asyncio.sleep(RETRY)
        finally:
            self._turns.discard(turn)

    async def progress(self, node_id: str, image: str, report: Any) -> None:
        """A node in session with this manager reports the progress of its pull (`PullProgress`)."""
        found = (t for t in self._turns if (t.node_id, t.image) == (node_id, image))
        leaders = {id(turn.leader): turn.leader for turn in found}
        for leader in leaders.values():
            if leader is None:
                self.progress_here(node_id, image, report.received)
                continue
            relayed = dispatch_pb2.RelayProgress(node_id=node_id, progress=report)
            with suppress(grpc.aio.AioRpcError):  # the pull is about to move to another leader
                await leader.ReportPull(relayed, timeout=REPORT_TIMEOUT)

    def progress_here(self, node_id: str, image: str, received: int) -> None:
        """Process the progress of a pull that this manager coordinates."""
        now = asyncio.get_running_loop().time()
        for turns in (self._own, *([self._term.turns] if self._term else ())):
            turns.progress(node_id, image, received, now)

    async def hold_here(self, turn: PullTurn) -> bool:
        """Coordinate a pull while this manager leads, until its term ends; False if it does not
        lead."""
        term = self._term
        if term is None:
            return False
        turn.leader = None
        async with background(self._coordinate(turn, term.turns)):
            await term.ended.wait()
        return True

    async def _with_leader(self, turn: PullTurn) -> bool:
        """Hold the turn with the present leader until it leads no more; False if there is none that
        can be reached."""
        if await self.hold_here(turn):
            return True
        try:
            leader = await self._leader()
        except StoreError:
            return False
        if leader is None or leader == self._manager_id:
            return False
        channel = await self._channel(leader)
        return channel is not None and await self._relayed(turn, channel)

    async def _relayed(self, turn: PullTurn, channel: grpc.aio.Channel) -> bool:
        """Hold the turn with another manager while that one leads."""
        request = images_pb2.AcquireRequest()
        request.CopyFrom(turn.request)
        request.pulling, request.source = turn.granted, turn.source
        stub = turn.leader = dispatch_pb2_grpc.RelayStub(channel)
        call = stub.AcquirePull(dispatch_pb2.RelayAcquire(node_id=turn.node_id, request=request))
        heard = False
        try:
            while isinstance(grant := await call.read(), images_pb2.Grant):
                heard = True
                if grant.waiting:
                    await turn.notify(grant.waiting)
                elif not turn.granted:
                    await turn.begin(grant.nodes[0] if grant.nodes else REGISTRY)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                # A leader of an older version: this manager coordinates the pulls of its nodes.
                turn.leader = None
                await self._coordinate(turn, self._own)
            log.debug("the leader coordinates no pulls", extra={"reason": error.details()})
        finally:
            call.cancel()
        return heard

    async def _coordinate(self, turn: PullTurn, turns: PullCoordinator) -> None:
        """Have a pull granted by a coordinator and hold its turn there, until cancelled."""
        now = asyncio.get_running_loop().time
        if turn.granted:
            ticket = turns.resume(turn.pull, turn.source, now())
        else:
            ticket = turns.ask(turn.pull, now())
        try:
            if not turn.granted:
                await turn.begin(await self._granted(ticket, turn, turns))
            await asyncio.Event().wait()
        finally:
            turns.end(ticket, now())
            for wake in self._waiting:
                wake.set()

    async def _granted(self, ticket: int, turn: PullTurn, turns: PullCoordinator) -> str:
        """Wait for the grant; return the source. Sends notices meanwhile."""
        now = asyncio.get_running_loop().time
        async with self._woken() as wake:
            while True:
                wake.clear()
                view = self._cache.view
                holders = _holders(view, turn.request.digest, turn.request.name, turn.node_id)
                found = turns.poll(ticket, now(), holders, partial(_is_up, view))
                if isinstance(found, Granted):
                    return found.source
                if found.notify:
                    await turn.notify(_reason(view, found))
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout(found.until - now()):
                        await wake.wait()

    @asynccontextmanager
    async def _woken(self) -> AsyncIterator[asyncio.Event]:
        """An event that is set when a pull ends, or when nodes or images change."""
        wake = asyncio.Event()
        self._waiting.add(wake)
        try:
            async with self._cache.subscribe() as feed:
                feed.on_change = lambda: wake.set() if _matters(feed.take()) else None
                yield wake
        finally:
            self._waiting.discard(wake)


def _matters(changes: Iterable[Change]) -> bool:
    return any(isinstance(change.subject, Node | Image) for change in changes)


def _is_up(view: ClusterView, node_id: str) -> bool:
    """Whether a node is up, so that others may wait for its pull."""
    node = view.nodes.get(node_id)
    return node is not None and node.state is not NodeState.DOWN


def _reason(view: ClusterView, waiting: Waiting) -> str:
    """Why an agent has to wait, for the user who looks at its task."""
    nodes = {turn.pull.node_id: view.nodes.get(turn.pull.node_id) for turn in waiting.behind}
    names = sorted(node.description.hostname if node else id for id, node in nodes.items())
    if not names:
        return "waiting for the node that has just pulled the image"
    first = waiting.behind[0]
    if first.source == REGISTRY:
        size = f" ({format_size(first.received)} so far)" if first.received else ""
        return f"waiting for {names[0]}, which pulls the image from its registry{size}"
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    has = "have" if more else "has"
    return f"waiting until {names[0]}{more} {has} pulled the image from the nodes that have it"


def _holders(view: ClusterView, digest: str, name: str, asking: str) -> list[str]:
    """HOST:PORT of the nodes that are up and have the image, without the one that asks."""
    found = []
    for image in images_of(view, digest or name):
        for node_id in image.nodes:
            node = view.nodes.get(node_id)
            leaving = node_id == asking or node_id in image.pending_removal
            if node and not leaving and node.state is NodeState.READY:
                found.append(f"{node.description.address}:{node.description.blob_port}")
    return sorted(set(found)) if digest else []
