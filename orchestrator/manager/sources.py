"""Whose turn it is to fetch an image, and from where: so that a registry serves it about once.

The first node that asks for an image that nobody has goes to its registry; the others wait until
it is there, and then go to nodes that have it. Each of those serves a few at a time, so that the
sources grow with every turn, as a tree does. A turn lasts as long as its call: what breaks gives
it to the next.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from orchestrator.identity.tls import peer_identity
from orchestrator.manager.credentials import auth_for
from orchestrator.manager.lookup import images_of
from orchestrator.manager.planning.views import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.vault import Vault
from orchestrator.model.names import parse_image
from orchestrator.model.nodes import NodeState
from orchestrator.pb import images_pb2, images_pb2_grpc

SERVED_BY_ONE = 3
"""Nodes that fetch an image from one other at a time."""
REPORT_GRACE = 1.5
"""Seconds in which a node that is done with the registry tells that it has the image."""


class Turns:
    """Who fetches what from whom; in memory, for a new leader's agents ask again."""

    def __init__(self) -> None:
        self._serving: Counter[str] = Counter()
        self._at_registry: set[str] = set()
        self.changed = asyncio.Event()

    def take(self, key: str, holders: list[str]) -> str | None:
        """A source for the image `key`: one of its holders, `""` for the registry, or None when
        all are taken. `give_back` it."""
        if holders:
            least = min(holders, key=lambda holder: (self._serving[holder], holder))
            if self._serving[least] >= SERVED_BY_ONE:
                return None
            self._serving[least] += 1
            return least
        if key in self._at_registry:
            return None
        self._at_registry.add(key)
        return ""

    def give_back(self, key: str, source: str) -> None:
        """End a turn."""
        if source:
            self._serving[source] -= 1
        else:
            self._at_registry.discard(key)
        self.changed.set()
        self.changed = asyncio.Event()


class Sources(images_pb2_grpc.SourcesServicer):  # type: ignore[misc]
    """Serves the agents' questions."""

    def __init__(
        self,
        cache: Cache,
        vault: Vault,
        building: Callable[[str], bool],
        grace: float = REPORT_GRACE,
    ) -> None:
        """`building`: whether a node builds an image for a client now."""
        self._building = building
        self._cache = cache
        self._vault = vault
        self._grace = grace
        self._turns = Turns()

    async def Acquire(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """One grant, which lasts until the agent ends the call."""
        identity = peer_identity(context)
        assert identity is not None  # the role guard saw to it
        key = request.digest or request.name
        source = await self._turn(key, request, identity.id)
        try:
            if source:
                yield images_pb2.Grant(nodes=[source], registry=False)
            else:
                auth = self._auth(request.name, identity.id)
                yield images_pb2.Grant(registry=True, auth=auth)
            await asyncio.get_running_loop().create_future()
        finally:
            if not source:
                # What it has fetched is known in a moment; nobody else need fetch it again.
                asyncio.get_running_loop().call_later(
                    self._grace, self._turns.give_back, key, source
                )
            else:
                self._turns.give_back(key, source)

    async def Locate(self, request: Any, context: Any) -> Any:
        """What the cluster has under a name now."""
        identity = peer_identity(context)
        assert identity is not None  # the role guard saw to it
        found = images_of(self._cache.view, request.name)
        return images_pb2.LocateReply(
            digest=found[0].id if found else "", auth=self._auth(request.name, identity.id)
        )

    def _auth(self, image: str, node_id: str) -> bytes:
        """The credentials for an image's registry, if the node has any need of them."""
        view = self._cache.view
        if not self._building(node_id) and not needs_registry(view, node_id, image):
            return b""
        return auth_for(view, self._vault, image)

    async def _turn(self, key: str, request: Any, node_id: str) -> str:
        async with self._cache.subscribe() as feed:
            while True:
                changed = self._turns.changed
                holders = _holders(self._cache.view, request.digest, request.name, node_id)
                holders = [holder for holder in holders if holder not in request.failed]
                source = self._turns.take(key, holders)
                if source is not None:
                    return source
                await _first(feed.next, changed.wait)


def needs_registry(view: ClusterView, node_id: str, image: str) -> bool:
    """Whether a node has a task with an image of the same registry."""
    registry = parse_image(image).registry
    return any(
        parse_image(task.spec.container.image).registry == registry
        for task in view.tasks_of_node(node_id).values()
        if task.spec.container.image
    )


async def _first(*waits: Callable[[], Any]) -> None:
    """Until one of them is done."""
    tasks = [asyncio.ensure_future(wait()) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def _holders(view: ClusterView, digest: str, name: str, asking: str) -> list[str]:
    """HOST:PORT of the nodes that have the image and are up, but for the one that asks."""
    found = []
    for image in images_of(view, digest or name):
        for node_id in image.nodes:
            node = view.nodes.get(node_id)
            leaving = node_id == asking or node_id in image.condemned
            if node and not leaving and node.state is NodeState.READY:
                found.append(f"{node.description.address}:{node.description.blob_port}")
    return sorted(set(found)) if digest else []
