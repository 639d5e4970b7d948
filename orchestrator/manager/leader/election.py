# SPDX-License-Identifier: Apache-2.0
"""Leader election: one key, held by a lease, created by the first candidate that finds it missing.

    election = Election(kv, "/orc/leader", "manager-1")
    async with election.term() as term:
        ...  # runs as leader; every write carries term.guard

The body is cancelled and the `async with` raises `LeadershipLost` as soon as the lease is not
certain to be valid: at a *local* deadline, counted from when the last successful renewal was
*sent*, minus a margin. So a leader that hangs or is partitioned has stopped before another one
starts. Its writes in flight fail on `term.guard`, which is the actual fence.

A term ends only with its lease. An outage of the store shorter than that has no effect. With a
`Renewal`, a thread renews the lease, so that a late event loop does not lose it (`lease_renewal`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from orchestrator.daemon.background import background
from orchestrator.manager.store.kv import (
    Compacted,
    Conflict,
    Delete,
    Entry,
    Guard,
    Kv,
    LeaseLost,
    Put,
    Snapshot,
    StoreError,
)
from orchestrator.manager.store.lease_renewal import Held, Keeper, Renewal

log = logging.getLogger(__name__)

RETRY = 0.2
"""Seconds between attempts while the store does not answer."""


class LeadershipLost(Exception):
    """This process no longer leads; the text says why. Another one may already lead."""


class Deposed(LeadershipLost):
    """The key was deleted: another process is to lead."""


@dataclass(slots=True)
class Term:
    """One leadership, from election to loss.

    `guard` holds as long as the term does: put it into every transaction. `revision` is that of
    the election, so a later term has a greater one. `deadline` (on the election's clock) moves on
    with each renewal that the loop makes.
    """

    identity: str
    guard: Guard
    revision: int
    lease: int
    deadline: float


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
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`ttl`: seconds after a leader's death until the next election. `margin`: seconds by which
        the leader itself stops earlier, which covers clock drift and a late loop; by default a
        sixth of the ttl. `renewal` renews the lease from a thread; without it the event loop
        does."""
        margin = ttl / 6 if margin is None else margin
        if not 0 < margin < ttl:
            raise ValueError(f"margin {margin} must lie between 0 and the ttl {ttl}")
        self._kv = kv
        self._key = key
        self._identity = identity
        self._ttl = ttl
        self._margin = margin
        self._renewal = renewal
        self._clock = clock
        self._sleep = sleep

    async def leader(self) -> str | None:
        """The current leader's identity, or None. Raises StoreUnavailable."""
        entry = await self._kv.get(self._key)
        return None if entry is None else entry.value.decode()

    @asynccontextmanager
    async def term(self) -> AsyncIterator[Term]:
        """Wait until elected, lead while the body runs, resign when it ends.

        Raises LeadershipLost, with the body cancelled, when the term ends before the body does.
        """
        term = await self.campaign()
        keeper = self._keeper(term)
        try:
            if keeper is not None:
                keeper.start()
            async with background(self._hold(term, keeper)), background(self._watch(term)):
                yield term
        finally:
            if keeper is not None:
                keeper.stop()
            await self._resign(term)

    def _keeper(self, term: Term) -> Keeper | None:
        if self._renewal is None:
            return None
        held = Held(self._key, term.revision, term.lease, term.deadline)
        return Keeper(held, self._renewal, ttl=self._ttl, margin=self._margin)

    async def campaign(self) -> Term:
        """Wait until elected, across outages of the store. Nothing renews the lease yet."""
        said = ""
        while True:
            try:
                before = await self._kv.list(self._key)
                holder = self._holder(before)
                if holder is not None and holder.value.decode() != self._identity:
                    await self._vacancy(before.revision + 1)
                    continue
                if holder is not None:
                    await self._remove(holder)
                if (term := await self._stand()) is not None:
                    log.info("elected", extra={"leader": self._identity, "term": term.revision})
                    return term
            except Compacted:
                continue
            except StoreError as error:
                if str(error) != said:  # an outage lasts, and its cause stays the same: log it once
                    said = str(error)
                    log.warning("cannot campaign: %s", error)
                await self._sleep(RETRY)

    def _holder(self, snapshot: Snapshot) -> Entry | None:
        # The list is by prefix, so a longer key may be among the entries.
        return next((entry for entry in snapshot.entries if entry.key == self._key), None)

    async def _vacancy(self, revision: int) -> None:
        """Wait until the key is deleted."""
        async with self._kv.watch(self._key, revision) as changes:
            async for batch in changes:
                if any(event.key == self._key and event.entry is None for event in batch.events):
                    return

    async def _remove(self, own: Entry) -> None:
        """Delete the key of an earlier, killed process with this identity, instead of waiting for
        its lease."""
        with suppress(Conflict):
            await self._kv.txn(
                [Guard(self._key, create_revision=own.create_revision)], [Delete(self._key)]
            )

    async def _stand(self) -> Term | None:
        """Create the key unless another candidate does first."""
        sent = self._clock()
        lease = await self._kv.grant(self._ttl)
        elected = False
        try:
            revision = await self._kv.txn(
                [Guard(self._key, create_revision=0)],
                [Put(self._key, self._identity.encode(), lease)],
            )
            elected = True
        except Conflict:
            return None
        finally:
            if not elected:
                await self._revoke(lease)
        return Term(
            self._identity,
            Guard(self._key, create_revision=revision),
            revision,
            lease,
            sent + self._ttl - self._margin,
        )

    async def _hold(self, term: Term, keeper: Keeper | None) -> None:
        """Renew the lease until that fails for too long; always ends with LeadershipLost."""
        if keeper is not None:
            raise LeadershipLost(await keeper.wait())
        pause = self._ttl / 3
        while True:
            await self._sleep(min(pause, max(0.0, term.deadline - self._clock())))
            sent = self._clock()
            if sent >= term.deadline:
                raise LeadershipLost("the lease could not be renewed in time")
            try:
                async with asyncio.timeout(term.deadline - sent):
                    remaining = await self._kv.keepalive(term.lease)
                    await self._check(term)
                term.deadline = sent + remaining - self._margin
                pause = self._ttl / 3
            except LeaseLost as error:
                raise LeadershipLost("the lease has expired or was revoked") from error
            except (StoreError, TimeoutError) as error:
                log.warning("cannot renew the lease: %s", error or "no answer in time")
                pause = RETRY

    async def _watch(self, term: Term) -> None:
        """Raise Deposed when the key is deleted, without waiting for the next renewal."""
        revision = term.revision + 1
        while True:
            try:
                async with self._kv.watch(self._key, revision) as changes:
                    async for batch in changes:
                        if any(each.key == self._key and not each.entry for each in batch.events):
                            raise Deposed("the leader's key was deleted")
            except Compacted:
                revision = (await self._kv.list(self._key)).revision + 1
            except StoreError:
                await self._sleep(RETRY)

    async def _check(self, term: Term) -> None:
        """Check the key: the lease may outlive it if another process with this identity removed
        it."""
        entry = await self._kv.get(self._key)
        if entry is None or entry.create_revision != term.revision:
            raise LeadershipLost("another process holds the leader's key")

    async def _resign(self, term: Term) -> None:
        await self._revoke(term.lease)
        log.info("resigned", extra={"leader": self._identity, "term": term.revision})

    async def _revoke(self, lease: int) -> None:
        """Revoke the lease; if the store does not answer, it expires."""
        with suppress(StoreError):
            await self._kv.revoke(lease)
