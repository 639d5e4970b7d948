# SPDX-License-Identifier: Apache-2.0
"""The store's content as a `ClusterView`, updated by one writer.

An object that cannot be decoded is quarantined (`ClusterView.quarantined`) and stays in the view in
its last decodable state, if any. Nothing may write it until it can be decoded again or is deleted.

List, then watch from the next revision. On any error of the watch, list again and derive the missed
changes by comparing revisions. A batch of the watch is one transaction, so a reader never sees half
of one. Readers take `view` (immutable) and decide without awaiting, or `wait_for` a revision that
they wrote.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.unplannable import incomplete_services
from orchestrator.manager.planning.view import ClusterView, Quarantined
from orchestrator.manager.store.keys import (
    PREFIX,
    claimed_address,
    is_foreign_key,
    object_key,
    object_type,
)
from orchestrator.manager.store.kv import (
    Compacted,
    Entry,
    Event,
    Kv,
    Op,
    StoreError,
    StoreUnavailable,
)
from orchestrator.manager.store.partial_decoding import leading_fields
from orchestrator.model.administration.access import Certificate, PageSession, Revocation
from orchestrator.model.administration.managers import Manager, ManagerPresence
from orchestrator.model.administration.orphans import Orphan
from orchestrator.model.convert import ConvertError, UnknownEnumNumber, decode
from orchestrator.model.documents import Document
from orchestrator.model.nodes import (
    Availability,
    EndpointProgress,
    Node,
    NodeDescription,
    SessionRecord,
)
from orchestrator.model.objects import Cluster, Credential, Image, Network, Object, Volume
from orchestrator.model.services import Service
from orchestrator.model.tasks import Task
from orchestrator.pb import types_pb2

log = logging.getLogger(__name__)

_RETRY = 0.1
"""Seconds between attempts to list while the store is unavailable."""

_DECODE_BATCH = 50
"""Objects that are decoded before the event loop serves other work."""

_ID, _SERVICE_ID = (
    types_pb2.Task.DESCRIPTOR.fields_by_name[name].number for name in ("id", "service_id")
)


class Feed:
    """Changes since the last take, folded to one per object."""

    def __init__(self) -> None:
        self._changes: dict[str, Change] = {}
        self._event = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None
        """Called when there is something new, for subscribers that wait for several things."""

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
    """Merge changes of one object: the first `before`, the last `after`. An object that was created
    and deleted leaves nothing."""
    for change in changes:
        key = object_key(change.subject)
        earlier = into.get(key)
        if earlier is None:
            into[key] = change
        elif earlier.before is None and change.after is None:
            del into[key]
        else:
            into[key] = Change(earlier.before, change.after)


class Unreadable(StoreError):
    """A write to an object that cannot be decoded; it would lose data."""

    def __init__(self, found: Quarantined) -> None:
        super().__init__(
            f"{found.key} cannot be decoded ({found.reason}), so it is not changed; upgrade this "
            "manager if a newer one wrote it, else restore or delete the key in etcd"
        )


def log_undecodable(found: Quarantined) -> None:
    log.warning(
        "a stored object cannot be decoded",
        extra={"key": found.key, "reason": found.reason, "held": sorted(found.services)},
    )


class Cache:
    """The newest view, and its subscribers."""

    def __init__(self, kv: Kv) -> None:
        self._kv = kv
        self.view = ClusterView()
        self.revision = 0
        """Store revision up to which `view` is complete."""
        self.newest_change = 0
        """Store revision of the newest change in `view`. Another cache that has reached it holds at
        least what this one does."""
        self.healthy = False
        """Whether the watch is running."""
        self.on_undecodable: Callable[[Quarantined], None] = log_undecodable
        """Called for each object that is quarantined."""
        self._feeds: set[Feed] = set()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    async def follow(self) -> None:
        """Keep the view current, until cancelled."""
        while True:
            try:
                snapshot = await self._kv.list(PREFIX)
                await self._reset(snapshot.entries, snapshot.revision)
                async with self._kv.watch(PREFIX, snapshot.revision + 1) as batches:
                    self.healthy = True
                    async for batch in batches:
                        await self._apply(batch.events, batch.revision)
            except Compacted:
                log.info("the watch was overtaken by compaction; listing again")
            except StoreUnavailable as error:
                log.warning("etcd is unavailable; retrying", extra={"error": error})
                await asyncio.sleep(_RETRY)
            finally:
                self.healthy = False

    async def wait_for(self, revision: int) -> None:
        """Wait until the view holds all changes up to `revision`."""
        if self.revision >= revision:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        bisect.insort(self._waiting, (revision, next(self._order), waiter))
        await waiter

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[Feed]:
        """Subscribe to all changes from now on."""
        feed = Feed()
        self._feeds.add(feed)
        try:
            yield feed
        finally:
            self._feeds.discard(feed)

    def admit(self, ops: Iterable[Op]) -> None:
        """Raise Unreadable if one of these operations is on a quarantined object."""
        aside = self.view.quarantined
        if aside and (found := next((aside[op.key] for op in ops if op.key in aside), None)):
            raise Unreadable(found)

    async def _reset(self, entries: Sequence[Entry], revision: int) -> None:
        """Make the view equal to a full list, as if each difference had been watched."""
        known = {object_key(item): item for item in self.view.objects()}
        listed = {entry.key: entry for entry in entries}
        found = _Update()
        for number, entry in enumerate(entries):
            before = known.pop(entry.key, None)
            aside = entry.key in self.view.quarantined
            if before is None or before.revision != entry.mod_revision or aside:
                found.read(entry.key, entry, before)
            await _yield_to_loop(number)
        for key in self.view.quarantined.keys() - listed.keys():
            found.aside[key] = None
        found.changes.extend(Change(gone, None) for gone in known.values())
        found.attribute(self.view, listed)
        found.add_addresses(self.view)
        self.newest_change = max((each.mod_revision for each in entries), default=0)
        self._publish(found, revision)

    async def _apply(self, events: Sequence[Event], revision: int) -> None:
        found = _Update()
        for number, event in enumerate(events):
            found.read(event.key, event.entry, self._current(event.key))
            await _yield_to_loop(number)
        found.attribute(self.view, {})
        found.add_addresses(self.view)
        self.newest_change = revision
        self._publish(found, revision)

    def _current(self, key: str) -> Object | None:
        found = object_type(key)
        return find_object(self.view, *found) if found else None

    def _publish(self, found: _Update, revision: int) -> None:
        view, changes = self.view.evolve(found.changes), found.changes
        if aside := {
            key: each
            for key, each in found.aside.items()
            if each is not None or key in view.quarantined
        }:
            view, freed = _with_quarantine(view, aside)
            changes = [*changes, *freed]
        self.view = view
        self.revision = max(self.revision, revision)
        if changes:
            for feed in self._feeds:
                feed.push(changes)
        for each in aside.values():
            if each is not None:
                self.on_undecodable(each)
        while self._waiting and self._waiting[0][0] <= self.revision:
            waiter = self._waiting.pop(0)[2]
            if not waiter.done():
                waiter.set_result(None)


class _Update:
    """The content of a list or a batch of the watch, until it is published."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.aside: dict[str, Quarantined | None] = {}
        """Key → quarantined object, or None for one that can be decoded or is deleted."""
        self._strays: dict[str, int] = {}
        """Keys of tasks of unknown services → the revisions at which they were created."""
        self._claims: dict[str, str] = {}
        """Addresses → the objects (by id) that claim them; empty once released."""

    def read(self, key: str, entry: Entry | None, before: Object | None) -> None:
        """Process the entry of a key. `before` is the object in the view."""
        kind = object_type(key)
        if kind is None:
            if (address := claimed_address(key)) is not None:
                self._claims[address] = entry.value.decode(errors="replace") if entry else ""
            elif is_foreign_key(key):
                reason = "this version knows no such kind of object"
                self.aside[key] = Quarantined(key, "", key, reason) if entry else None
            return
        type_, identifier = kind
        after, reason = (None, "") if entry is None else _decoded(type_, identifier, entry)
        if entry is None or not reason:
            self.aside[key] = None
        else:
            after = after or before or _placeholder(type_, identifier, entry, reason)
            services = frozenset({identifier} if type_ is Service else ())
            if type_ is Task:
                service_id = after.service_id if isinstance(after, Task) else _owner(entry)
                if service_id is None:
                    self._strays[key] = entry.create_revision
                elif service_id:
                    services = frozenset({service_id})
            word = type_.__name__.lower()
            self.aside[key] = Quarantined(key, word, identifier, reason, services)
        if before is not after and (before is not None or after is not None):
            self.changes.append(Change(before, after))

    def attribute(self, view: ClusterView, listed: Mapping[str, Entry]) -> None:
        """Quarantine every service that tasks of unknown services may belong to. `listed` has the
        store's content, if known: a service that was created later cannot own the task."""
        if not self._strays:
            return
        suspects = list(incomplete_services(view.evolve(self.changes)))
        for key, created in self._strays.items():
            record = self.aside[key]
            assert record is not None
            held = frozenset(
                each.id
                for each in suspects
                if (entry := listed.get(object_key(each))) is None
                or entry.create_revision < created
            )
            self.aside[key] = replace(record, services=held)

    def add_addresses(self, view: ClusterView) -> None:
        """Add the addresses that quarantined objects claim, since their content does not show
        them. Claims are written together with their object."""
        for key, known in {**view.quarantined, **self.aside}.items():
            if known is None:
                continue
            before = view.quarantined.get(key)
            claimed = {each for each, owner in self._claims.items() if owner == known.id}
            kept = before.addresses - self._claims.keys() if before is not None else frozenset()
            if known.addresses != (addresses := kept | claimed):
                self.aside[key] = replace(known, addresses=addresses)


def _with_quarantine(
    view: ClusterView, found: Mapping[str, Quarantined | None]
) -> tuple[ClusterView, list[Change]]:
    """The view with the quarantine updated; and the services that are released, as no-op changes
    that have them planned."""
    was = view.quarantined
    merged = {**was, **found}
    view = replace(view, quarantined={key: each for key, each in merged.items() if each})
    held = {id for each in was.values() for id in each.services}
    held -= {id for each in view.quarantined.values() for id in each.services}
    services = (view.services[id] for id in sorted(held & view.services.keys()))
    return view, [Change(service, service) for service in services]


async def _yield_to_loop(number: int) -> None:
    """Yield to the event loop now and then, so that many objects do not block it."""
    if number % _DECODE_BATCH == _DECODE_BATCH - 1:
        await asyncio.sleep(0)


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
        Certificate: view.certificates,
        Revocation: view.revocations,
        PageSession: view.page_sessions,
        Manager: view.managers,
        ManagerPresence: view.manager_presence,
        SessionRecord: view.sessions,
        EndpointProgress: view.endpoint_progress,
        Orphan: view.orphans,
    }
    return tables[type_].get(identifier)


def _decoded(type_: type[Object], identifier: str, entry: Entry) -> tuple[Object | None, str]:
    """The object in an entry, as far as it can be decoded, and why it is not reliable."""
    try:
        found = decode(type_, entry.value, entry.mod_revision)
    except UnknownEnumNumber as error:
        return decode(type_, entry.value, entry.mod_revision, strict=False), str(error)
    except ConvertError as error:
        return None, str(error)
    if found.id != identifier:
        return None, f"it says that its id is '{found.id}'"
    return found, ""


def _placeholder(type_: type[Object], identifier: str, entry: Entry, reason: str) -> Object | None:
    """A placeholder for an object of which only the id is known. A node keeps its tasks and gets no
    others."""
    if type_ is Node:
        return Node(
            id=identifier,
            availability=Availability.PAUSE,
            description=NodeDescription(hostname=identifier[:12]),
            message=reason,
            revision=entry.mod_revision,
        )
    return None


def _owner(entry: Entry) -> str | None:
    """The service id in the bytes of a damaged task, empty for a standalone container; None if
    unknown."""
    fields = dict(leading_fields(entry.value))
    try:
        if fields[_ID].decode() != entry.key.rpartition("/")[2]:
            return None
        if _SERVICE_ID in fields:
            return fields[_SERVICE_ID].decode()
    except (KeyError, UnicodeDecodeError):
        return None
    return "" if fields.keys() - {_ID, _SERVICE_ID} else None
