# SPDX-License-Identifier: Apache-2.0
"""Changes of the cluster for open web pages, encoded once for all."""

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
"""Seconds between two messages about changes, at least: one message covers the start of a hundred
tasks."""
PAST_EVENTS = 200
"""Past events that a newly opened page gets."""
LONGEST_QUEUE = 50
"""Messages that wait for a slow browser, before it gets a new snapshot instead."""


class Viewer:
    """The message queue of one browser."""

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()
        self._event = asyncio.Event()
        self.needs_snapshot = True
        """Whether it needs a snapshot: it is new, or lags too far behind."""

    def tell(self, text: bytes) -> None:
        """Queue a message; dropped while a snapshot is due, which includes it."""
        if self.needs_snapshot:
            return
        self._waiting.append(text)
        if len(self._waiting) > LONGEST_QUEUE:
            self._waiting.clear()
            self.needs_snapshot = True
        self._event.set()

    async def next(self) -> bytes:
        """Wait for messages, and take all of them; empty if a snapshot is due."""
        if not self.needs_snapshot:
            await self._event.wait()
        self._event.clear()
        taken = b"".join(self._waiting)
        self._waiting.clear()
        return taken


class LiveUpdates:
    """Follows the store for all open pages; without any, its cost is negligible."""

    def __init__(self, ctx: ManagerContext) -> None:
        self._ctx = ctx
        self._viewers: set[Viewer] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._last_sent = 0.0
        self._feed = Feed()
        self._happened: deque[Event] = deque()

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Send updates while the body runs."""
        async with (
            self._ctx.cache.subscribe() as self._feed,
            self._ctx.events.follow(self._schedule) as self._happened,
        ):
            self._feed.on_change = self._schedule
            try:
                yield
            finally:
                if self._timer is not None:
                    self._timer.cancel()

    @contextmanager
    def viewer(self) -> Iterator[Viewer]:
        """Register a browser while the block lasts."""
        viewer = Viewer()
        self._viewers.add(viewer)
        try:
            yield viewer
        finally:
            self._viewers.discard(viewer)

    async def next(self, viewer: Viewer) -> bytes:
        """Wait for a viewer's next message."""
        if text := await viewer.next():
            return text
        # Other viewers get pending changes now, which this one's snapshot includes.
        self._send_changes()
        viewer.needs_snapshot = False
        ctx = self._ctx
        past = ctx.events.since(0.0)[-PAST_EVENTS:]
        return await offload(_snapshot, ctx.view, ctx.leader(), past)

    def _schedule(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(
                max(loop.time(), self._last_sent + SHORTEST_INTERVAL), self._send_changes
            )

    def _send_changes(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._last_sent = asyncio.get_running_loop().time()
        changes, events = self._feed.take(), list(self._happened)
        self._happened.clear()
        if not self._viewers:
            return
        text = b""
        if changed := cluster_snapshot.snapshot_changes(self._ctx.view, changes):
            text += event("changed", changed)
        if events:
            text += event("happened", [_event_data(each) for each in events])
        if text:
            for viewer in self._viewers:
                viewer.tell(text)


def _snapshot(view: ClusterView, leader: str, past: list[Event]) -> bytes:
    """A snapshot and past events."""
    about = {"id": view.cluster.id if view.cluster else "", "leader": leader}
    # Object by object: one call of the encoder holds the interpreter until it is done.
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
        "bad": event.is_failure,
    }
