# SPDX-License-Identifier: Apache-2.0
"""Records in the store of the sessions that this manager has: one key per node, bound to the
lease of the manager's presence (`cluster.registration`).

The record says through which manager a node can be reached and whose reports about it count. The
leader judges liveness by it (`planning.reports.liveness`): heartbeats are not written. A record is
written when a session begins, when its node falls silent, and when it is heard again.

**The newest session wins.** A manager replaces the record that it read after the agent had said
hello. If the record changes again, a newer session exists: this one is closed. A record outlives
its session: an agent that reconnects replaces it, and one that does not is silent after the node
timeout. A node that is silent at the manager of its newest session is silent everywhere.

If the lease is lost, a new one is acquired and all records are written again. Meanwhile the manager
may be cut off from etcd while others are not, which take its nodes for lost: if there are others,
its sessions are closed, and agents connect to them. The same happens to a new session whose record
cannot be written.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from orchestrator.daemon.background import background
from orchestrator.manager.cluster.registration import Presence
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.keys import object_key
from orchestrator.manager.store.kv import (
    Conflict,
    Delete,
    Entry,
    Guard,
    Kv,
    LeaseLost,
    Put,
    StoreError,
)
from orchestrator.manager.store.lease_renewal import Held
from orchestrator.manager.store.leased_key import KeyLost
from orchestrator.model.convert import ConvertError, decode, encode
from orchestrator.model.nodes import EndpointProgress, SessionRecord
from orchestrator.model.objects import Cluster

log = logging.getLogger(__name__)

SWEEP = 0.5
"""Seconds between two checks for silent nodes."""
WRITTEN_WITHIN = 2.0
"""Seconds in which the record of a new session must be written."""
RETRY = 0.2
"""Seconds between attempts while the store does not answer."""
FIRST_ATTEMPT = 0.5
"""Seconds that the first attempt to write a record may take; the limit doubles with each failure. A
write that was on its way to a leader of etcd that died is never answered: without a limit, the new
session would be closed as well."""
_LONGEST_ATTEMPT = 4.0
_AT_ONCE = 32
"""Records that are written concurrently."""


@dataclass(slots=True)
class _Held:
    """A session that this manager has or had last."""

    session_id: str
    began: float
    silent: bool = False
    written: int = 0
    """Store revision of its record; 0: not written yet."""
    ended: bool = False
    certificate_ca: str = ""


class SessionRecords:
    """The records of one manager's sessions."""

    def __init__(
        self,
        kv: Kv,
        cache: Cache,
        presence: Presence,
        heard: Callable[[], Mapping[str, float]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`heard`: node id → when it was last heard from, by `clock`."""
        self._kv = kv
        self._cache = cache
        self._presence = presence
        self.manager_id = presence.manager_id
        self._heard = heard
        self._clock = clock
        self._held: dict[str, _Held] = {}
        """By node id."""
        self._pending: dict[str, None] = {}
        """Ids of nodes whose records are to be written, in order."""
        self._progress = self._published = 0
        self._patience = FIRST_ATTEMPT
        self._wake = asyncio.Event()
        self.has_lease = False
        """Whether the manager holds its lease: etcd answers it."""
        self.on_lease_lost: Callable[[], None] = lambda: None
        """Called when the lease is lost."""
        self.on_unwritten: Callable[[str, str], None] = lambda node_id, session_id: None
        """Called with a session whose record could not be written."""
        self.on_moved: Callable[[str, str], None] = lambda node_id, session_id: None
        """Called with a session that a newer one has replaced."""
        self.on_written: Callable[[str, str], None] = lambda node_id, session_id: None
        """Called when the record of a session has been written."""

    def begin(self, node_id: str, session_id: str, certificate_ca: str = "") -> None:
        """A session began, with a certificate of this CA."""
        self._held[node_id] = _Held(session_id, self._clock(), certificate_ca=certificate_ca)
        self._pending[node_id] = None
        self._wake.set()

    def written(self, node_id: str, session_id: str) -> int:
        """The store revision of a session's record; 0 while it is not written."""
        held = self._held.get(node_id)
        return held.written if held is not None and held.session_id == session_id else 0

    def end(self, node_id: str, session_id: str) -> None:
        """A session ended. If its record was not written, none will be: a newer session may have
        one by then."""
        held = self._held.get(node_id)
        if held is not None and held.session_id == session_id:
            held.ended = True
            if not held.written:
                self._forget(node_id)

    def publish_progress(self, through: int) -> None:
        """All nodes in session have applied the changes of endpoints up to this store revision."""
        self._progress = max(self._progress, through)
        self._wake.set()

    def is_local(self, node_id: str) -> bool:
        """Whether the store says that this manager has the session of a node."""
        record = self._cache.view.sessions.get(node_id)
        return record is not None and record.manager_id == self.manager_id

    def elsewhere(self, node_id: str) -> SessionRecord | None:
        """The record of a session of the node with another manager; None without one."""
        record = self._cache.view.sessions.get(node_id)
        if record is None or record.silent or record.manager_id == self.manager_id:
            return None
        return record

    def changed(self, changes: Iterable[Change]) -> None:
        """Process changes of the store."""
        for change in changes:
            match change.after:
                case SessionRecord() as record if record.id in self._held:
                    self._compare(record)
                case _:
                    pass

    def _compare(self, record: SessionRecord) -> None:
        held = self._held[record.id]
        if held.written and record.revision > held.written and not self._is(record, held):
            self._moved(record.id, held)

    def _is(self, record: SessionRecord, held: _Held) -> bool:
        return record.manager_id == self.manager_id and record.session_id == held.session_id

    def _forget(self, node_id: str) -> None:
        del self._held[node_id]
        self._pending.pop(node_id, None)

    def _moved(self, node_id: str, held: _Held) -> None:
        self._forget(node_id)
        self.on_moved(node_id, held.session_id)

    async def run(self) -> None:
        """Hold the manager's presence and keep the records current, until cancelled. Then they are
        deleted."""
        async with background(self._close_unwritten()):
            await self._keep_current()

    async def _close_unwritten(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            late = self._clock() - WRITTEN_WITHIN
            for node_id, held in list(self._held.items()):
                if not (held.written or held.ended) and held.began < late:
                    self.on_unwritten(node_id, held.session_id)

    async def _keep_current(self) -> None:
        while True:
            try:
                async with self._presence.hold() as held_key:
                    self.has_lease = True
                    self._published = 0
                    # Records of ended sessions have ended with the former lease.
                    for node_id in [id for id, held in self._held.items() if held.ended]:
                        self._forget(node_id)
                    self._pending = dict.fromkeys(self._held)
                    await self._follow(held_key)
            except (KeyLost, LeaseLost) as lost:
                log.warning("presence lost", extra={"reason": lost})
                self.has_lease = False
                self.on_lease_lost()
            finally:
                self.has_lease = False

    async def _follow(self, held_key: Held) -> None:
        lease = held_key.lease
        while True:
            self._wake.clear()
            if lease != held_key.lease:  # it was exchanged: the records are to outlive the former
                lease = held_key.lease
                self._published = 0
                self._pending = dict.fromkeys(self._held)
            self._sweep()
            try:
                await self._publish(lease)
                while self._pending:
                    await self._write_some(lease)
            except LeaseLost:
                raise
            except (StoreError, TimeoutError) as error:
                reason = str(error) or f"no answer within {self._patience:g} s"
                log.warning("cannot write session records", extra={"error": reason})
                self._patience = min(2 * self._patience, _LONGEST_ATTEMPT)
                await asyncio.sleep(RETRY)
                continue
            self._patience = FIRST_ATTEMPT
            with suppress(TimeoutError):
                async with asyncio.timeout(SWEEP):
                    await self._wake.wait()

    def _sweep(self) -> None:
        """Find the nodes that have fallen silent, or are heard again."""
        timeout = (self._cache.view.cluster or Cluster()).node_timeout
        heard, now = self._heard(), self._clock()
        for node_id, record in self._cache.view.sessions.items():
            if record.manager_id == self.manager_id and node_id not in self._held:
                # The session ended while its record was being written.
                self._held[node_id] = _Held(
                    record.session_id, now, record.silent, record.revision, ended=True
                )
        for node_id, held in self._held.items():
            silent = now - max(heard.get(node_id, 0.0), held.began) >= timeout
            if silent != held.silent or (silent and node_id not in self._cache.view.nodes):
                held.silent = silent
                self._pending[node_id] = None

    async def _publish(self, lease: int) -> None:
        through = self._progress
        if through > self._published:
            progress = EndpointProgress(self.manager_id, through)
            await self._kv.txn([], [Put(object_key(progress), encode(progress), lease)])
            self._published = through

    async def _write_some(self, lease: int) -> None:
        some = list(self._pending)[:_AT_ONCE]
        results = await asyncio.gather(
            *(self._write_in_time(node_id, lease) for node_id in some), return_exceptions=True
        )
        failures = [each for each in results if isinstance(each, BaseException)]
        for failure in sorted(
            failures, key=lambda each: isinstance(each, (StoreError, TimeoutError))
        ):
            raise failure

    async def _write_in_time(self, node_id: str, lease: int) -> None:
        async with asyncio.timeout(self._patience):
            await self._write(node_id, lease)

    async def _write(self, node_id: str, lease: int) -> None:
        """Write the record of a node's session, unless a newer one has replaced it. An attempt that
        was given up may have been applied: the next one finds that."""
        if (held := self._held.get(node_id)) is None:
            return  # its session has ended meanwhile
        record = SessionRecord(
            node_id,
            self.manager_id,
            held.session_id,
            held.silent,
            certificate_ca=held.certificate_ca,
        )
        key = object_key(record)
        if held.silent and node_id not in self._cache.view.nodes:
            await self._remove(node_id, held, key)
            return
        stored = self._cache.view.sessions.get(node_id)
        revision = held.written or (stored.revision if stored is not None else 0)
        attempts = 0
        while self._held.get(node_id) is held:
            try:
                written = await self._kv.txn(
                    [Guard(key, mod_revision=revision)], [Put(key, encode(record), lease)]
                )
            except Conflict:
                entry = await self._kv.get(key)
                other = entry is not None and not self._is_in(entry, held)
                if other and (held.written or attempts) and self._held.get(node_id) is held:
                    self._moved(node_id, held)
                    return
                revision = entry.mod_revision if entry is not None else 0
                attempts += 1
                continue
            held.written = written
            self.on_written(node_id, held.session_id)
            if held.silent == record.silent:
                self._pending.pop(node_id, None)
            newest = self._cache.view.sessions.get(node_id)
            if newest is not None and self._held.get(node_id) is held:
                self._compare(newest)
            return

    async def _remove(self, node_id: str, held: _Held, key: str) -> None:
        """Delete the record of a node that was removed from the cluster."""
        if held.written:
            with suppress(Conflict):
                await self._kv.txn([Guard(key, mod_revision=held.written)], [Delete(key)])
        if self._held.get(node_id) is held:
            self._forget(node_id)

    def _is_in(self, entry: Entry, held: _Held) -> bool:
        try:
            return self._is(decode(SessionRecord, entry.value, entry.mod_revision), held)
        except ConvertError:
            return False
