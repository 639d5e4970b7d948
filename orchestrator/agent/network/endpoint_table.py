"""The endpoint table on this node: kept, and followed by whoever needs it.

A manager tells it (`session`), whole once a session and then by differences. It is written down
before it is followed, so that a node that starts without a manager has its names and its balance
from the last one. Each follower (`Follower`: the kernel's balance, the name server) goes at its own
pace: what changes while it is busy comes to it as one change. Every few seconds it is asked to mend
what somebody else has changed.

`applied` is the newest state that all of them follow, which is what a manager is waiting for
before it stops a task that has left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.statedb import EndpointChange, EndpointKey, StateDb
from orchestrator.model.networks import stays_on_node
from orchestrator.pb import dispatch_pb2

log = logging.getLogger(__name__)

MEND_PERIOD = 5.0
"""Seconds between two applications when nothing changes."""
_RETRY_FIRST, _RETRY_MOST = 0.1, 5.0
"""Seconds between attempts of a follower that fails."""


@dataclass(frozen=True, slots=True)
class Change:
    """The whole table (`base` None), or what makes it from that of revision `base`; a change to
    the same revision asks that what was applied be mended."""

    revision: int
    base: int | None
    entries: tuple[dispatch_pb2.ServiceEndpoints, ...]
    """New or changed ones, each complete."""
    removed: tuple[EndpointKey, ...] = ()
    networks: tuple[dispatch_pb2.AssignedNetwork, ...] | None = None
    """All networks of this node; None where they are the same."""


class Follower(Protocol):
    """Something on this node that follows the table."""

    @property
    def name(self) -> str:
        """What it is, for the log."""
        ...

    async def follow(self, change: Change, whole: Callable[[], Change]) -> None:
        """Apply a change; if what it changes is not there, the whole table. Raises
        NetworkError."""
        ...


@dataclass(slots=True)
class _Progress:
    """How far one follower is."""

    applied: int | None = None
    """The revision that it follows; None: not known."""
    dirty: set[EndpointKey] = field(default_factory=set)
    """Entries that have changed since."""
    networks: bool = True
    """The networks have."""
    news: asyncio.Event = field(default_factory=asyncio.Event)


class EndpointTable:
    """The table of this node."""

    def __init__(
        self,
        db: StateDb,
        followers: Iterable[Follower],
        wake: Callable[[], None],
        node_id: str = "",
        period: float = MEND_PERIOD,
    ) -> None:
        """`wake` is called when `applied` has grown; `node_id` is this node's."""
        self._db = db
        self._wake = wake
        self._period = period
        self._entries: dict[EndpointKey, _Entry] = {}
        for known in db.endpoints():
            self._entries[_key(known)] = entry = _Entry()
            entry.take(known, whole=True)
        self._node_id = node_id
        self._networks = tuple(db.networks())
        self._alone = _alone(self._networks)
        self._followers = {follower: _Progress() for follower in followers}
        self._revision = 1
        self._followed = asyncio.Event()
        """Set, and replaced, when a follower is up to date."""

    @property
    def applied(self) -> int:
        """The newest revision that everything on this node follows; 0 for none. Revisions are
        this process's own, see `apply`."""
        return min((each.applied or 0 for each in self._followers.values()), default=0)

    @property
    def count(self) -> int:
        """Addresses of running tasks in the table."""
        return sum(len(entry.endpoints) for entry in self._entries.values())

    def apply(self, table: dispatch_pb2.EndpointTable) -> int:
        """Write down and take a table or a change of it; the revision that it makes here."""
        changes: list[EndpointChange] = []
        for told in table.changed:
            entry = self._entries.setdefault(_key(told), _Entry())
            if change := entry.take(told, whole=table.full):
                changes.append(change)
        removed = [(each.id, each.network_id) for each in table.removed]
        if table.full:
            removed = list(self._entries.keys() - {_key(entry) for entry in table.changed})
        removed = [key for key in removed if self._entries.pop(key, None) is not None]
        if changes or removed:
            self._db.put_endpoints(changes, removed)
            self._move_on({_key(change.head) for change in changes} | set(removed))
        return self._revision

    async def clear(self) -> None:
        """Forget the table and the networks; return when everything on this node has followed."""
        self.apply(dispatch_pb2.EndpointTable(full=True))
        self.order(())
        revision = self._revision
        while self.applied < revision:
            await self._followed.wait()

    def order(self, networks: Sequence[dispatch_pb2.AssignedNetwork]) -> None:
        """Take the complete list of this node's networks."""
        if tuple(networks) != self._networks:
            self._networks = tuple(networks)
            before, self._alone = self._alone, _alone(self._networks)
            others = before ^ self._alone
            self._move_on([key for key in self._entries if key[1] in others], networks=True)

    def look_again(self, follower: Follower) -> None:
        """Have a follower see now that all is as it should be."""
        self._followers[follower].news.set()

    async def run(self) -> None:
        """Have the followers follow until cancelled."""
        async with asyncio.TaskGroup() as group:
            for follower, progress in self._followers.items():
                group.create_task(self._lead(follower, progress), name=follower.name)

    def _move_on(self, keys: Iterable[EndpointKey], *, networks: bool = False) -> None:
        self._revision += 1
        for progress in self._followers.values():
            progress.dirty.update(keys)
            progress.networks = progress.networks or networks
            progress.news.set()

    async def _lead(self, follower: Follower, progress: _Progress) -> None:
        retry, complaint = _RETRY_FIRST, ""
        while True:
            progress.news.clear()
            change = self._since(progress)
            try:
                await follower.follow(change, self._whole)
            except NetworkError as error:
                progress.applied = None
                if str(error) != complaint:
                    log.error("%s cannot follow the endpoints: %s", follower.name, error)
                retry, complaint = min(2 * retry, _RETRY_MOST), str(error)
                await asyncio.sleep(retry)
                continue
            if complaint:
                log.info("%s follows the endpoints again", follower.name)
            retry, complaint = _RETRY_FIRST, ""
            if progress.applied != change.revision:
                progress.applied = change.revision
                self._followed.set()
                self._followed = asyncio.Event()
                self._wake()
            try:
                async with asyncio.timeout(self._period):
                    await progress.news.wait()
            except TimeoutError:
                pass

    def _since(self, progress: _Progress) -> Change:
        """What a follower is to be told now; it is then up to date."""
        dirty, progress.dirty = progress.dirty, set()
        networks, progress.networks = progress.networks, False
        if progress.applied is None:
            return self._whole()
        return Change(
            revision=self._revision,
            base=progress.applied,
            entries=tuple(self._seen(key) for key in sorted(dirty) if key in self._entries),
            removed=tuple(key for key in sorted(dirty) if key not in self._entries),
            networks=self._networks if networks else None,
        )

    def _whole(self) -> Change:
        entries = tuple(map(self._seen, sorted(self._entries)))
        return Change(self._revision, None, entries, (), self._networks)

    def _seen(self, key: EndpointKey) -> dispatch_pb2.ServiceEndpoints:
        """An entry as it is from here: in a network that each node has for itself the tasks of
        other nodes cannot be reached."""
        entry = self._entries[key]
        return entry.complete(self._node_id if key[1] in self._alone else "")


def _alone(networks: Iterable[dispatch_pb2.AssignedNetwork]) -> frozenset[str]:
    """Ids of the networks that each node has for itself."""
    alone = (each for each in networks if stays_on_node(each.driver, each.options))
    return frozenset(network.id for network in alone)


def _key(entry: dispatch_pb2.ServiceEndpoints) -> EndpointKey:
    return entry.id, entry.network_id


class _Entry:
    """An entry of the table, of which a change costs what it is about, and not what is there."""

    def __init__(self) -> None:
        self._head = dispatch_pb2.ServiceEndpoints()
        """All but the endpoints."""
        self.endpoints: dict[str, dispatch_pb2.Endpoint] = {}
        """By task."""

    def take(
        self, told: dispatch_pb2.ServiceEndpoints, *, whole: bool = False
    ) -> EndpointChange | None:
        """Take a change of the entry, or the `whole` of it; what it changes, None for nothing."""
        put = [each for each in told.endpoints if self.endpoints.get(each.task_id) != each]
        if whole:
            gone = list(self.endpoints.keys() - {each.task_id for each in told.endpoints})
        else:
            gone = list(told.gone)
            put = [each for each in put if each.task_id not in told.gone] if gone else put
        gone = [task_id for task_id in gone if self.endpoints.pop(task_id, None) is not None]
        self.endpoints.update((each.task_id, each) for each in put)
        head = dispatch_pb2.ServiceEndpoints()
        head.CopyFrom(told)
        del head.gone[:]
        del head.endpoints[:]
        if not put and not gone and head == self._head:
            return None
        self._head = head
        return EndpointChange(head, put, gone)

    def complete(self, node_id: str = "") -> dispatch_pb2.ServiceEndpoints:
        """All of it, endpoints by slot; with `node_id`, those of this node alone."""
        entry = dispatch_pb2.ServiceEndpoints()
        entry.CopyFrom(self._head)
        found = [each for each in self.endpoints.values() if not node_id or each.node_id == node_id]
        entry.endpoints.extend(sorted(found, key=lambda each: (each.slot, each.task_id)))
        return entry
