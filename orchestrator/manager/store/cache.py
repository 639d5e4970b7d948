"""The store's content as a `ClusterView`, kept current by one writer.

List, then watch from the next revision; on any error of the watch, list again and make the
changes that were missed by comparing revisions. A batch of the watch is one transaction, so a
reader never sees half of one. Readers take `view` (immutable) and decide without awaiting, or
`wait_for` a revision that they wrote.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.views import ClusterView
from orchestrator.manager.store.keys import PREFIX, object_key, object_type
from orchestrator.manager.store.kv import Compacted, Entry, Event, Kv, StoreUnavailable
from orchestrator.model.convert import decode
from orchestrator.model.documents import Document
from orchestrator.model.nodes import Node
from orchestrator.model.objects import Cluster, Credential, Image, Network, Object, Volume
from orchestrator.model.services import Service
from orchestrator.model.tasks import Task

log = logging.getLogger(__name__)

_RETRY = 0.1
"""Seconds between attempts to list while the store is away."""


class Feed:
    """Changes since the holder last looked, folded to one an object."""

    def __init__(self) -> None:
        self._changes: dict[str, Change] = {}
        self._event = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None
        """Called when there is something new, for holders that wait for several things."""

    def push(self, changes: Iterable[Change]) -> None:
        """Add changes, newest last."""
        fold(self._changes, changes)
        self._event.set()
        self.on_change()

    def take(self) -> list[Change]:
        """Changes so far, without waiting."""
        taken, self._changes = list(self._changes.values()), {}
        self._event.clear()
        return taken

    async def next(self) -> list[Change]:
        """Wait for changes, and take them."""
        await self._event.wait()
        return self.take()


def fold(into: dict[str, Change], changes: Iterable[Change]) -> None:
    """Merge changes of one object: the first `before`, the last `after`. An object that came and
    went leaves nothing."""
    for change in changes:
        key = object_key(change.subject)
        earlier = into.get(key)
        if earlier is None:
            into[key] = change
        elif earlier.before is None and change.after is None:
            del into[key]
        else:
            into[key] = Change(earlier.before, change.after)


class Cache:
    """The newest view, and those who wait for it."""

    def __init__(self, kv: Kv) -> None:
        self._kv = kv
        self.view = ClusterView()
        self.revision = 0
        """Of the store, up to which `view` is complete."""
        self.healthy = False
        """Whether the watch is running."""
        self._feeds: set[Feed] = set()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    async def follow(self) -> None:
        """Keep the view current, for as long as this runs."""
        while True:
            try:
                snapshot = await self._kv.list(PREFIX)
                self._reset(snapshot.entries, snapshot.revision)
                async with self._kv.watch(PREFIX, snapshot.revision + 1) as batches:
                    self.healthy = True
                    async for batch in batches:
                        self._apply(batch.events, batch.revision)
            except Compacted:
                log.info("the watch fell behind the store's history; listing again")
            except StoreUnavailable as error:
                log.warning("the store is away", extra={"error": error})
                await asyncio.sleep(_RETRY)
            finally:
                self.healthy = False

    async def wait_for(self, revision: int) -> None:
        """Until the view holds all changes up to `revision`."""
        if self.revision >= revision:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        bisect.insort(self._waiting, (revision, next(self._order), waiter))
        await waiter

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[Feed]:
        """A feed of all changes from now on."""
        feed = Feed()
        self._feeds.add(feed)
        try:
            yield feed
        finally:
            self._feeds.discard(feed)

    def _reset(self, entries: Iterable[Entry], revision: int) -> None:
        """Make the view equal to a full list, as if each difference had been watched."""
        known = {object_key(item): item for item in self.view.objects()}
        changes: list[Change] = []
        for entry in entries:
            before = known.pop(entry.key, None)
            if before is not None and before.revision == entry.mod_revision:
                continue
            after = _decoded(entry.key, entry)
            if after is not None:
                changes.append(Change(before, after))
        changes.extend(Change(gone, None) for gone in known.values())
        self._publish(changes, revision)

    def _apply(self, events: Iterable[Event], revision: int) -> None:
        changes: list[Change] = []
        for event in events:
            before = self._current(event.key)
            after = _decoded(event.key, event.entry)
            if before is None and after is None:
                continue
            changes.append(Change(before, after))
        self._publish(changes, revision)

    def _current(self, key: str) -> Object | None:
        found = object_type(key)
        return find_object(self.view, *found) if found else None

    def _publish(self, changes: list[Change], revision: int) -> None:
        self.view = self.view.evolve(changes)
        self.revision = max(self.revision, revision)
        if changes:
            for feed in self._feeds:
                feed.push(changes)
        while self._waiting and self._waiting[0][0] <= self.revision:
            waiter = self._waiting.pop(0)[2]
            if not waiter.done():
                waiter.set_result(None)


def find_object(view: ClusterView, type_: type[Object], identifier: str) -> Object | None:
    if type_ is Cluster:
        return view.cluster
    tables: dict[type[Object], Mapping[str, Object]] = {
        Node: view.nodes,
        Service: view.services,
        Task: view.tasks,
        Network: view.networks,
        Image: view.images,
        Volume: view.volumes,
        Credential: view.credentials,
        Document: view.documents,
    }
    return tables[type_].get(identifier)


def _decoded(key: str, entry: Entry | None) -> Object | None:
    found = object_type(key)
    if entry is None or found is None:
        return None
    return decode(found[0], entry.value, entry.mod_revision)
