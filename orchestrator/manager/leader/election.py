# SPDX-License-Identifier: Apache-2.0
"""Leader election: the manager that holds the leader's key leads.

    election = Election(kv, "/orc/leader", "manager-1")
    async with election.term() as term:
        ...  # runs as leader; every write carries term.guard

The key is held by a lease (`store.leased_key`) and announced, so a leader that hangs or is
partitioned has stopped before another one starts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from orchestrator.manager.store.kv import Guard, Kv
from orchestrator.manager.store.lease_renewal import Held, Renewal
from orchestrator.manager.store.leased_key import KeyDeleted, KeyLost, LeasedKey

log = logging.getLogger(__name__)


class LeadershipLost(Exception):
    """This process no longer leads; the text says why. Another one may already lead."""


class Deposed(LeadershipLost):
    """The key was deleted: another process is to lead."""


@dataclass(frozen=True, slots=True)
class Term:
    """One leadership, from election to loss."""

    identity: str
    held: Held
    """The leader's key."""

    @property
    def guard(self) -> Guard:
        """Holds as long as the term does: put it into every transaction."""
        return self.held.guard

    @property
    def revision(self) -> int:
        """Of the election in the store, so a later term has a greater one."""
        return self.held.revision


class Election:
    """Campaigns for one key. An identity belongs to one living process at a time."""

    def __init__(
        self,
        kv: Kv,
        key: str,
        identity: str,
        *,
        ttl: float = 3.0,
        margin: float | None = None,
        renewal: Renewal | None = None,
        extended_ttl: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """The arguments after `identity` are those of `LeasedKey`."""
        self._kv = kv
        self._key = key
        self._identity = identity
        self._leased = LeasedKey(
            kv,
            key,
            identity.encode(),
            ttl=ttl,
            margin=margin,
            renewal=renewal,
            extended_ttl=extended_ttl,
            announced=True,
            clock=clock,
            sleep=sleep,
        )

    async def leader(self) -> str | None:
        """The current leader's identity, or None. Raises StoreUnavailable."""
        entry = await self._kv.get(self._key)
        return None if entry is None else entry.value.decode()

    @asynccontextmanager
    async def term(self) -> AsyncIterator[Term]:
        """Wait until elected, lead while the body runs, resign when it ends.

        Raises LeadershipLost, with the body cancelled, when the term ends before the body does.
        """
        try:
            async with self._leased.hold() as held:
                about = {"leader": self._identity, "term": held.revision}
                log.info("elected", extra=about)
                try:
                    yield Term(self._identity, held)
                finally:
                    log.info("resigned", extra=about)
        except KeyDeleted as deleted:
            raise Deposed("the leader's key was deleted") from deleted
        except KeyLost as lost:
            raise LeadershipLost(str(lost)) from lost
