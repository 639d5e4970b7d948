# SPDX-License-Identifier: Apache-2.0
"""Removal of networks, secrets and configs once the last task that uses them has stopped, as `orc
stack rm -d` requests.

The mark is in the store (`remove_when_unused`), so the removal survives managers and clients. Each
manager deletes what it sees marked and unused. Deletes are guarded by the revision that was read,
and marked objects take no new users, so several managers do not interfere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from orchestrator.manager.planning.consumers import network_consumers
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.reconcile.document_versions import (
    document_consumers as document_users,
)
from orchestrator.manager.security.document_store import deleted_data
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.kv import Conflict, Kv, StoreError
from orchestrator.model.documents import Document
from orchestrator.model.objects import Network, Object

log = logging.getLogger(__name__)

RETRY = 1.0
"""Seconds until a failed delete is retried."""


class DeferredRemoval:
    """Deletes marked objects that nothing uses."""

    def __init__(self, kv: Kv, cache: Cache) -> None:
        self._kv, self._cache = kv, cache
        self._marked: set[str] = set()
        """Ids of marked networks and documents."""

    async def run(self) -> None:
        """Run until cancelled."""
        async with self._cache.subscribe() as feed:
            view = self._cache.view
            self._note((*view.networks.values(), *view.documents.values()))
            while True:
                failed = [id for id in sorted(self._marked) if not await self._collect(id)]
                changes = []
                try:
                    async with asyncio.timeout(RETRY if failed else None):
                        changes = await feed.next()
                except TimeoutError:
                    pass
                self._note(change.after for change in changes)

    def _note(self, objects: Iterable[Object | None]) -> None:
        self._marked |= {
            each.id
            for each in objects
            if isinstance(each, Network | Document) and each.remove_when_unused
        }

    async def _collect(self, id: str) -> bool:
        """Delete the object if it is still marked and unused. False if the store failed."""
        view = self._cache.view
        found = view.networks.get(id) or view.documents.get(id)
        if found is None or not found.remove_when_unused:
            self._marked.discard(id)
            return True
        if isinstance(found, Network):
            users, ops = network_consumers(view, found), []
        else:
            users, ops = document_users(view, found), deleted_data(found)
        if users:
            return True
        try:
            await self._cache.wait_for(await commit(self._kv, [Change(found, None)], ops=ops))
        except Conflict:
            return True  # the conflicting change is about to arrive
        except StoreError as error:
            log.warning(
                "cannot delete an unused object; retrying",
                extra={"object": found.name, "error": str(error)},
            )
            return False
        return True
