# SPDX-License-Identifier: Apache-2.0
"""A manager's own entry in the store: its `Manager` object, and its presence under a lease."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import object_key
from orchestrator.manager.store.kv import Conflict, Kv, LeaseLost, Put, StoreError
from orchestrator.model.convert import encode
from orchestrator.model.managers import Manager, ManagerPresence

log = logging.getLogger(__name__)

PRESENCE_TTL = 5.0
"""Seconds after a manager's death until its presence key disappears."""
RETRY = 0.2
"""Seconds between attempts while the store does not answer."""


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
    """Holds this manager's presence key for as long as `run` does."""

    def __init__(self, kv: Kv, id: str, now: Callable[[], float]) -> None:
        self._kv = kv
        self._id = id
        self._now = now

    async def run(self) -> None:
        """Hold the key until cancelled; then release it at once."""
        said = ""
        while True:
            lease = 0
            try:
                lease = await self._kv.grant(PRESENCE_TTL)
                own = ManagerPresence(id=self._id, since=self._now())
                await self._kv.txn((), [Put(object_key(own), encode(own), lease)])
                said = ""
                await self._renew(lease)
            except LeaseLost:
                log.warning("the presence lease was lost; taking another one")
            except StoreError as error:
                if str(error) != said:  # an outage lasts: log its cause once
                    said = str(error)
                    log.warning("cannot hold the presence key", extra={"error": error})
                await asyncio.sleep(RETRY)
            finally:
                if lease:
                    # On a cancellation, or before another attempt: no stale key is left behind.
                    with suppress(StoreError):
                        await self._kv.revoke(lease)

    async def _renew(self, lease: int) -> None:
        pause = PRESENCE_TTL / 3
        while True:
            await asyncio.sleep(pause)
            try:
                await self._kv.keepalive(lease)
                pause = PRESENCE_TTL / 3
            except LeaseLost:
                raise
            except StoreError as error:
                log.warning("cannot renew the presence lease", extra={"error": error})
                pause = RETRY
