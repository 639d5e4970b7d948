# SPDX-License-Identifier: Apache-2.0
"""A manager's own entry in the store: its `Manager` object, and its presence under a lease."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import object_key
from orchestrator.manager.store.kv import Conflict, Kv
from orchestrator.manager.store.lease_renewal import Held, Renewal
from orchestrator.manager.store.leased_key import KeyDeleted, LeasedKey
from orchestrator.model.administration.managers import Manager, ManagerPresence
from orchestrator.model.convert import encode

PRESENCE_TTL = 5.0
"""Seconds from a manager's death until its presence key and session records are gone."""


@dataclass(frozen=True, slots=True)
class OwnFacts:
    """What a manager knows of itself when it starts; the rest of its object stays as stored."""

    id: str
    hostname: str
    address: str
    port: int
    version: str
    features: tuple[str, ...] = ()
    peer_port: int = 0
    member_id: str = ""


async def register(kv: Kv, cache: Cache, own: OwnFacts, now: float) -> None:
    """Write this manager's object unless it is up to date. Raises StoreError."""
    while True:
        before = cache.view.managers.get(own.id)
        after = replace(
            before or Manager(id=own.id, created_at=now),
            hostname=own.hostname,
            address=own.address,
            port=own.port,
            version=own.version,
            features=own.features,
            peer_port=own.peer_port,
            member_id=own.member_id,
            joining=False,
        )
        if after == before:
            return
        with suppress(Conflict):
            await cache.wait_for(await commit(kv, [Change(before, after)]))
            return
        await cache.wait_for(cache.revision + 1)


def was_removed(view: ClusterView, id: str) -> bool:
    """Whether another manager has removed this one. A missing object alone does not say so: one
    that cannot be decoded is missing from the view, too. A removal also revokes certificates."""
    return id not in view.managers and f"manager.{id}" in view.revocations


class Presence:
    """Holds this manager's presence key. Whatever else lasts while the manager runs is bound to the
    same lease: the records of its sessions."""

    def __init__(
        self,
        kv: Kv,
        cache: Cache,
        id: str,
        *,
        now: Callable[[], float],
        renewal: Renewal | None = None,
        extended_ttl: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`now` in seconds since 1970. The others: see `LeasedKey`."""
        self._kv = kv
        self._cache = cache
        self.manager_id = id
        self._now = now
        self._renewal = renewal
        self._extended_ttl = extended_ttl
        self._clock = clock
        self._deleted_at = 0
        """Store revision at which the key was last deleted."""

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[Held]:
        """Acquire the key, hold it while the body runs, release it when it ends. If its lease is
        exchanged, what is bound to the former one is to be written again.

        A manager that was removed waits for ever instead: it is about to end. Raises KeyLost, with
        the body cancelled, when the key is lost before the body ends.
        """
        # A removal of the manager deletes the key, too.
        await self._cache.wait_for(self._deleted_at)
        if was_removed(self._cache.view, self.manager_id):
            await asyncio.Event().wait()
        presence = ManagerPresence(id=self.manager_id, since=self._now())
        key = LeasedKey(
            self._kv,
            object_key(presence),
            encode(presence),
            ttl=PRESENCE_TTL,
            renewal=self._renewal,
            extended_ttl=self._extended_ttl,
            shared=True,
            is_own=lambda _: True,  # the key has the manager's id
            clock=self._clock,
        )
        try:
            async with key.hold() as held:
                yield held
        except KeyDeleted as deleted:
            self._deleted_at = deleted.revision
            raise
