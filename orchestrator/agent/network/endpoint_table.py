# SPDX-License-Identifier: Apache-2.0
"""The endpoint table of this node: receives it, records it, and distributes it to followers.

A manager sends it over the session: complete at the beginning, then as differences. It is recorded
before it is applied, so that a node that starts without a manager resolves names and balances load
by the last one. Each follower (`Follower`: the kernel's load balancer, the name server) applies
changes at its own pace, and changes that arrive meanwhile are merged into one. Every few seconds it
also repairs drift.

`applied` is the newest revision that all followers have applied. A manager waits for it before it
stops a task that was removed from the table.
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

REPAIR_PERIOD = 5.0
"""Seconds between two repairs of drift without a change."""
_RETRY_FIRST, _RETRY_MOST = 0.1, 5.0
"""Seconds between attempts of a follower that fails."""


@dataclass(frozen=True, slots=True)
class Change:
    """The whole table (`base` None), or a difference from revision `base`; a change to the same
    revision asks the follower to repair drift."""

    revision: int
    base: int | None
    entries: tuple[dispatch_pb2.ServiceEndpoints, ...]
    """New or changed entries, each complete."""
    removed: tuple[EndpointKey, ...] = ()
    networks: tuple[dispatch_pb2.AssignedNetwork, ...] | None = None
    """All networks of this node; None: unchanged."""


class Follower(Protocol):
    """A component of this node that follows the table."""

    @property
    def name(self) -> str:
        """Its name in logs."""
        ...

    async def follow(self, change: Change, whole: Callable[[], Change]) -> None:
        """Apply a change, or the whole table if the base of the change is missing. Raises
        NetworkError."""
        ...


@dataclass(slots=True)
class _Progress:
    """The progress of one follower."""

    applied: int | None = None
    """The revision that it follows; None: unknown."""
    dirty: set[EndpointKey] = field(default_factory=set)
    """Entries changed since."""
    networks: bool = True
    """The networks have changed since."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class EndpointTable:
    """The endpoint table of this node."""

    def __init__(
        self,
        db: StateDb,
        followers: Iterable[Follower],
        wake: Callable[[], None],
        node_id: str = "",
        period: float = REPAIR_PERIOD,
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
        self._node_local = _node_local(self._networks)
        self._followers = {follower: _Progress() for follower in followers}
        self._revision = 1
        self._followed = asyncio.Event()
        """Set, and replaced, when a follower is up to date."""

    @property
    def applied(self) -> int:
        """The newest revision that all followers have applied; 0: none. Revisions are local to this
        process, see `apply`."""
        return min((each.applied or 0 for each in self._followers.values()), default=0)

    @property
    def count(self) -> int:
        """Addresses of running tasks in the table."""
        return sum(len(entry.endpoints) for entry in self._entries.values())

    def apply(self, table: dispatch_pb2.EndpointTable) -> int:
        """Record and take a table or a difference. Returns its local revision."""
        changes: list[EndpointChange] = []
        for received in table.changed:
            entry = self._entries.setdefault(_key(received), _Entry())
            if change := entry.take(received, whole=table.full):
                changes.append(change)
        removed = [(each.id, each.network_id) for each in table.removed]
        if table.full:
            removed = list(self._entries.keys() - {_key(entry) for entry in table.changed})
        removed = [key for key in removed if self._entries.pop(key, None) is not None]
        if changes or removed:
            self._db.put_endpoints(changes, removed)
            self._advance({_key(change.head) for change in changes} | set(removed))
        return self._revision

    async def clear(self) -> None:
        """Empty the table and the networks; return when all followers have applied that."""
        self.apply(dispatch_pb2.EndpointTable(full=True))
        self.order(())
        revision = self._revision
        while self.applied < revision:
            await self._followed.wait()

    def order(self, networks: Sequence[dispatch_pb2.AssignedNetwork]) -> None:
        """Take the complete list of this node's networks."""
        if tuple(networks) != self._networks:
            self._networks = tuple(networks)
            before, self._node_local = self._node_local, _node_local(self._networks)
            others = before ^ self._node_local
            self._advance([key for key in self._entries if key[1] in others], networks=True)

    def resync(self, follower: Follower) -> None:
        """Check a follower for drift now."""
        self._followers[follower].changed.set()

    async def run(self) -> None:
        """Drive the followers until cancelled."""
        async with asyncio.TaskGroup() as group:
            for follower, progress in self._followers.items():
                group.create_task(self._drive(follower, progress), name=follower.name)

    def _advance(self, keys: Iterable[EndpointKey], *, networks: bool = False) -> None:
        self._revision += 1
        for progress in self._followers.values():
            progress.dirty.update(keys)
            progress.networks = progress.networks or networks
            progress.changed.set()

    async def _drive(self, follower: Follower, progress: _Progress) -> None:
        retry, complaint = _RETRY_FIRST, ""
        while True:
            progress.changed.clear()
            change = self._since(progress)
            try:
                await follower.follow(change, self._whole)
            except NetworkError as error:
                progress.applied = None
                if str(error) != complaint:
                    log.error("%s cannot apply the endpoint table: %s", follower.name, error)
                retry, complaint = min(2 * retry, _RETRY_MOST), str(error)
                await asyncio.sleep(retry)
                continue
            if complaint:
                log.info("%s applies the endpoint table again", follower.name)
            retry, complaint = _RETRY_FIRST, ""
            if progress.applied != change.revision:
                progress.applied = change.revision
                self._followed.set()
                self._followed = asyncio.Event()
                self._wake()
            try:
                async with asyncio.timeout(self._period):
                    await progress.changed.wait()
            except TimeoutError:
                pass

    def _since(self, progress: _Progress) -> Change:
        """The change that makes a follower up to date."""
        dirty, progress.dirty = progress.dirty, set()
        networks, progress.networks = progress.networks, False
        if progress.applied is None:
            return self._whole()
        return Change(
            revision=self._revision,
            base=progress.applied,
            entries=tuple(self._visible(key) for key in sorted(dirty) if key in self._entries),
            removed=tuple(key for key in sorted(dirty) if key not in self._entries),
            networks=self._networks if networks else None,
        )

    def _whole(self) -> Change:
        entries = tuple(map(self._visible, sorted(self._entries)))
        return Change(self._revision, None, entries, (), self._networks)

    def _visible(self, key: EndpointKey) -> dispatch_pb2.ServiceEndpoints:
        """An entry as visible from this node: in a node-local network the tasks of other nodes are
        unreachable."""
        entry = self._entries[key]
        return entry.complete(self._node_id if key[1] in self._node_local else "")


def _node_local(networks: Iterable[dispatch_pb2.AssignedNetwork]) -> frozenset[str]:
    """Ids of the node-local networks."""
    local = (each for each in networks if stays_on_node(each.driver, each.options))
    return frozenset(network.id for network in local)


def _key(entry: dispatch_pb2.ServiceEndpoints) -> EndpointKey:
    return entry.id, entry.network_id


class _Entry:
    """An entry of the table. The cost of a change depends on its own size, not the entry's."""

    def __init__(self) -> None:
        self._head = dispatch_pb2.ServiceEndpoints()
        """Everything except the endpoints."""
        self.endpoints: dict[str, dispatch_pb2.Endpoint] = {}
        """By task."""

    def take(
        self, received: dispatch_pb2.ServiceEndpoints, *, whole: bool = False
    ) -> EndpointChange | None:
        """Take a difference, or the `whole` entry. Returns the effective change, None: none."""
        put = [each for each in received.endpoints if self.endpoints.get(each.task_id) != each]
        if whole:
            gone = list(self.endpoints.keys() - {each.task_id for each in received.endpoints})
        else:
            gone = list(received.gone)
            put = [each for each in put if each.task_id not in received.gone] if gone else put
        gone = [task_id for task_id in gone if self.endpoints.pop(task_id, None) is not None]
        self.endpoints.update((each.task_id, each) for each in put)
        head = dispatch_pb2.ServiceEndpoints()
        head.CopyFrom(received)
        del head.gone[:]
        del head.endpoints[:]
        if not put and not gone and head == self._head:
            return None
        self._head = head
        return EndpointChange(head, put, gone)

    def complete(self, node_id: str = "") -> dispatch_pb2.ServiceEndpoints:
        """The complete entry, endpoints by slot; with `node_id`, only those of this node."""
        entry = dispatch_pb2.ServiceEndpoints()
        entry.CopyFrom(self._head)
        found = [each for each in self.endpoints.values() if not node_id or each.node_id == node_id]
        entry.endpoints.extend(sorted(found, key=lambda each: (each.slot, each.task_id)))
        return entry
