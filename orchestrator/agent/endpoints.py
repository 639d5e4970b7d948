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

from orchestrator.agent.network import NetworkError
from orchestrator.agent.statedb import EndpointKey, StateDb
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


class Endpoints:
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
        self._entries = {_key(entry): entry for entry in db.endpoints()}
        self._node_id = node_id
        self._networks = tuple(db.networks())
        self._alone = _alone(self._networks)
        self._followers = {follower: _Progress() for follower in followers}
        self._revision = 1

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
        changed: dict[EndpointKey, dispatch_pb2.ServiceEndpoints] = {}
        for told in table.changed:
            key = _key(told)
            known = None if table.full else self._entries.get(key)
            entry = _merged(known, told)
            if entry != self._entries.get(key):
                changed[key] = entry
        removed = [(each.id, each.network_id) for each in table.removed]
        if table.full:
            told_of = {_key(entry) for entry in table.changed}
            removed = list(self._entries.keys() - told_of)
        if changed or removed:
            self._db.put_endpoints(changed, removed)
            self._entries.update(changed)
            for key in removed:
                self._entries.pop(key, None)
            self._move_on(changed.keys() | set(removed))
        return self._revision

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
        if key[1] not in self._alone:
            return entry
        seen = dispatch_pb2.ServiceEndpoints()
        seen.CopyFrom(entry)
        del seen.endpoints[:]
        seen.endpoints.extend(each for each in entry.endpoints if each.node_id == self._node_id)
        return seen


def _alone(networks: Iterable[dispatch_pb2.AssignedNetwork]) -> frozenset[str]:
    """Ids of the networks that each node has for itself."""
    alone = (each for each in networks if stays_on_node(each.driver, each.options))
    return frozenset(network.id for network in alone)


def _key(entry: dispatch_pb2.ServiceEndpoints) -> EndpointKey:
    return entry.id, entry.network_id


def _merged(
    known: dispatch_pb2.ServiceEndpoints | None, told: dispatch_pb2.ServiceEndpoints
) -> dispatch_pb2.ServiceEndpoints:
    """An entry after a change of it; complete, endpoints by slot."""
    endpoints = {each.task_id: each for each in known.endpoints} if known is not None else {}
    endpoints.update((each.task_id, each) for each in told.endpoints)
    for task_id in told.gone:
        endpoints.pop(task_id, None)
    merged = dispatch_pb2.ServiceEndpoints()
    merged.CopyFrom(told)
    del merged.gone[:]
    del merged.endpoints[:]
    merged.endpoints.extend(sorted(endpoints.values(), key=lambda each: (each.slot, each.task_id)))
    return merged
