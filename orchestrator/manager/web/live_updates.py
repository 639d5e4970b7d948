"""What changes, worked out and written down once for all browsers that look."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from orchestrator.manager.event_loop import offload
from orchestrator.manager.operations.context import ManagerContext
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Feed
from orchestrator.manager.telemetry.event_log import Event
from orchestrator.manager.web import cluster_snapshot
from orchestrator.manager.web.server_sent_events import compact_json, event, raw_event

SHORTEST_INTERVAL = 0.1
"""Seconds between two pictures of changes at the least: no eye sees more, and a hundred tasks that
start are told of in a few."""
PAST_EVENTS = 200
"""Events of before that one who opens the page is shown."""
LONGEST_QUEUE = 50
"""Messages that wait for a slow browser, before it is given the whole anew instead."""


class Viewer:
    """What one browser has yet to be told."""

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()
        self._event = asyncio.Event()
        self.behind = True
        """Whether it needs the whole: it is new, or too slow for all that changed."""

    def tell(self, text: bytes) -> None:
        """Queue a message; what is told before the whole is in the whole."""
        if self.behind:
            return
        self._waiting.append(text)
        if len(self._waiting) > LONGEST_QUEUE:
            self._waiting.clear()
            self.behind = True
        self._event.set()

    async def next(self) -> bytes:
        """Wait for messages, and take all of them; empty when it needs the whole."""
        if not self.behind:
            await self._event.wait()
        self._event.clear()
        taken = b"".join(self._waiting)
        self._waiting.clear()
        return taken


class LiveUpdates:
    """Follows the store for all that look; where nobody does, it costs nothing to speak of."""

    def __init__(self, ctx: ManagerContext) -> None:
        self._ctx = ctx
        self._viewers: set[Viewer] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._told = 0.0
        self._feed = Feed()
        self._happened: deque[Event] = deque()

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Tell viewers of what changes for as long as this lasts."""
        async with (
            self._ctx.cache.subscribe() as self._feed,
            self._ctx.events.follow(self._due) as self._happened,
        ):
            self._feed.on_change = self._due
            try:
                yield
            finally:
                if self._timer is not None:
                    self._timer.cancel()

    @contextmanager
    def viewer(self) -> Iterator[Viewer]:
        """One more that looks, while the block lasts."""
        viewer = Viewer()
        self._viewers.add(viewer)
        try:
            yield viewer
        finally:
            self._viewers.discard(viewer)

    async def next(self, viewer: Viewer) -> bytes:
        """Wait for what a viewer is to be told next."""
        if text := await viewer.next():
            return text
        # The others hear now of what is new: it is in this one's whole.
        self._tell()
        viewer.behind = False
        ctx = self._ctx
        past = ctx.events.since(0.0)[-PAST_EVENTS:]
        return await offload(_whole, ctx.view, ctx.leader(), past)

    def _due(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(loop.time(), self._told + SHORTEST_INTERVAL), self._tell)

    def _tell(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._told = asyncio.get_running_loop().time()
        changes, events = self._feed.take(), list(self._happened)
        self._happened.clear()
        if not self._viewers:
            return
        text = b""
        if news := cluster_snapshot.snapshot_changes(self._ctx.view, changes):
            text += event("changed", news)
        if events:
            text += event("happened", [_event_data(each) for each in events])
        if text:
            for viewer in self._viewers:
                viewer.tell(text)


def _whole(view: ClusterView, leader: str, past: list[Event]) -> bytes:
    """All that there is, and what happened last."""
    about = {"id": view.cluster.id if view.cluster else "", "leader": leader}
    # Object by object: the interpreter stays with one call of the encoder until it is done.
    kinds = [f'"cluster":{compact_json(about)}']
    for kind, items in cluster_snapshot.full_snapshot(view).items():
        found = ",".join(f"{compact_json(id)}:{compact_json(drawn)}" for id, drawn in items.items())
        kinds.append(f'"{kind}":{{{found}}}')
    return raw_event("picture", f"{{{','.join(kinds)}}}") + event(
        "happened", [_event_data(each) for each in past]
    )


def _event_data(event: Event) -> dict[str, Any]:
    return {
        "at": event.at,
        "type": event.type,
        "action": event.action,
        "id": event.id,
        "name": event.name,
        "node": event.node,
        "bad": event.troubling,
    }
