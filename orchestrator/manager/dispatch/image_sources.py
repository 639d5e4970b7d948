# SPDX-License-Identifier: Apache-2.0
"""gRPC service for agents that need an image: where and when each may pull it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from orchestrator.identity.tls import peer_identity
from orchestrator.manager.dispatch.pull_coordination import (
    REGISTRY,
    Granted,
    Pull,
    PullCoordinator,
    Waiting,
)
from orchestrator.manager.object_lookup import images_of
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.security.registry_credentials import auth_for
from orchestrator.manager.security.vault import Vault
from orchestrator.manager.store.cache import Cache
from orchestrator.model.names import parse_image
from orchestrator.model.nodes import Node, NodeState
from orchestrator.model.objects import Image
from orchestrator.model.states import TaskState
from orchestrator.model.units import format_size
from orchestrator.pb import images_pb2, images_pb2_grpc

log = logging.getLogger(__name__)


class ImageSources(images_pb2_grpc.SourcesServicer):  # type: ignore[misc]
    """Answers agents; the decisions are those of `pull_coordination`."""

    def __init__(
        self,
        cache: Cache,
        vault: Vault,
        ordered: Callable[[str, str], bool],
        turns: PullCoordinator | None = None,
    ) -> None:
        """`ordered`: whether a node (by id) currently serves a client's request, such as a build,
        that needs an image (by full name)."""
        self._ordered = ordered
        self._cache = cache
        self._vault = vault
        self._turns = turns or PullCoordinator()
        self._waiting: set[asyncio.Event] = set()
        """Events of waiting calls, set when another call has ended."""

    async def Acquire(self, request: Any, context: Any) -> None:
        """Notices while the agent has to wait, then one grant, which lasts until the call ends or
        the pull's lease expires (see `pull_coordination`)."""
        identity = peer_identity(context)
        assert identity is not None  # guaranteed by the role guard
        pull = Pull(
            identity.id,
            request.digest or request.name,
            frozenset(request.failed),
            request.reports,
        )
        now = asyncio.get_running_loop().time
        ticket = self._turns.ask(pull, now())
        # Not a generator: one that is suspended when its call is cancelled is closed only some time
        # later.
        try:
            source = await self._turn(ticket, pull, request, context)
            if source == REGISTRY:
                needed = self._builds(identity.id, request.name) or must_pull(
                    self._cache.view, identity.id, request.name
                )
                auth = self._auth(request.name, identity.id) if needed else b""
                await context.write(images_pb2.Grant(registry=True, auth=auth))
            else:
                await context.write(images_pb2.Grant(nodes=[source]))
            await asyncio.get_running_loop().create_future()
        finally:
            self._turns.end(ticket, now())
            for wake in self._waiting:
                wake.set()

    async def Progress(self, request: Any, context: Any) -> Any:
        """An agent reports progress of its pull."""
        identity = peer_identity(context)
        assert identity is not None  # guaranteed by the role guard
        now = asyncio.get_running_loop().time()
        image = request.digest or request.name
        self._turns.progress(identity.id, image, request.received, now)
        return images_pb2.PullProgressReply()

    async def Locate(self, request: Any, context: Any) -> Any:
        """Resolve an image name in the cluster."""
        identity = peer_identity(context)
        assert identity is not None  # guaranteed by the role guard
        found = images_of(self._cache.view, request.name)
        return images_pb2.LocateReply(
            digest=found[0].id if found else "",
            auth=(
                self._auth(request.name, identity.id)
                if self._builds(identity.id, request.name)
                else b""
            ),
        )

    def _builds(self, node_id: str, image: str) -> bool:
        try:
            return self._ordered(node_id, str(parse_image(image)))
        except ValueError:
            return False

    def _auth(self, image: str, node_id: str) -> bytes:
        """The cluster's credentials for an image's registry, which are sent to a node."""
        auth = auth_for(self._cache.view, self._vault, image)
        if auth:
            log.info("registry credentials sent", extra={"node": node_id, "image": image})
        return auth

    async def _turn(self, ticket: int, pull: Pull, request: Any, context: Any) -> str:
        """Wait for the grant; return the source. Sends notices to the agent meanwhile."""
        now = asyncio.get_running_loop().time
        async with self._woken() as wake:
            while True:
                wake.clear()
                view = self._cache.view
                holders = _holders(view, request.digest, request.name, pull.node_id)
                found = self._turns.poll(ticket, now(), holders, partial(_is_up, view))
                if isinstance(found, Granted):
                    return found.source
                if found.notify:
                    await context.write(images_pb2.Grant(waiting=_reason(view, found)))
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout(found.until - now()):
                        await wake.wait()

    @asynccontextmanager
    async def _woken(self) -> AsyncIterator[asyncio.Event]:
        """An event that is set when a call ends, or when nodes or images change."""
        wake = asyncio.Event()
        self._waiting.add(wake)
        try:
            async with self._cache.subscribe() as feed:
                feed.on_change = lambda: wake.set() if _matters(feed.take()) else None
                yield wake
        finally:
            self._waiting.discard(wake)


def must_pull(view: ClusterView, node_id: str, image: str) -> bool:
    """Whether a node has a task that waits for this image; only then does it get credentials."""
    wanted = parse_image(image)
    return any(
        task.desired_state is TaskState.RUNNING
        and TaskState.ASSIGNED <= task.status.state < TaskState.STARTING
        and parse_image(task.spec.container.image) == wanted
        for task in view.tasks_of_node(node_id).values()
        if task.spec.container.image
    )


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
