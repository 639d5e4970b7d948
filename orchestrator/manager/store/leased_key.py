# SPDX-License-Identifier: Apache-2.0
"""One key of the store, held by a lease: created when it is missing, and kept by renewals.

    key = LeasedKey(kv, "/orc/leader", b"manager-1")
    async with key.hold() as held:
        ...  # the key exists; writes that depend on it carry held.guard

The body is cancelled and the `async with` raises `KeyLost` as soon as the lease is not certain to
be valid: at a *local* deadline, counted from when the last successful renewal was *sent*, minus a
margin. So a holder that hangs or is partitioned has stopped before another one starts. Its writes
in flight fail on `held.guard`, which is the actual fence.

A lease can outlive its holder by more than its time to live: a new leader of etcd renews all
leases. So a holder may *announce* itself: each renewal writes the key again, unchanged. A process
that waits for the key watches that, and deletes the key after a time to live without announcements
(`_Vigil`). The deletion is guarded by the last announcement that it saw.

The key is lost only with its lease or when it is deleted. An outage of the store shorter than that
has no effect. With a `Renewal`, a thread renews the lease, so that a late event loop does not lose
it (`lease_renewal`).
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

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
RENEWALS = 3
"""Of a lease in its time to live."""
_INTERVALS = 2
"""Number of intervals between announcements that are remembered, and after which they count as
regular: one write of the key may also be the exchange of its lease."""


class KeyLost(Exception):
    """This process no longer holds the key; the text says why. Another one may hold it."""


class KeyDeleted(KeyLost):
    """The key was deleted at this store revision, by its lease or by another process."""

    def __init__(self, revision: int) -> None:
        super().__init__("the key was deleted")
        self.revision = revision


class _Vigil:
    """The announcements of a key's holder, as seen by a process that waits for the key."""

    def __init__(self, revision: int, now: float, ttl: float) -> None:
        """`revision`: the newest write of the key; `ttl` in seconds."""
        self.revision = revision
        self._ttl = ttl
        self._newest = now
        self._intervals: deque[float] = deque(maxlen=_INTERVALS)

    def announced(self, revision: int, now: float) -> None:
        """The key was written again."""
        self._intervals.append(now - self._newest)
        self.revision, self._newest = revision, now

    def silence(self, now: float) -> float:
        """Seconds since the last announcement."""
        return now - self._newest

    @property
    def regular(self) -> bool:
        """Whether the holder announces itself at all: one of an earlier release does not."""
        return len(self._intervals) == _INTERVALS

    @property
    def patience(self) -> float:
        """Seconds of silence after which the holder counts as dead: its time to live, which may
        be longer than our own. Announcements that come late, together, are not more frequent."""
        usual = statistics.median(self._intervals) if self._intervals else 0.0
        return max(self._ttl, RENEWALS * usual)


class LeasedKey:
    """Acquires one key and holds it. A value belongs to one living process at a time."""

    def __init__(
        self,
        kv: Kv,
        key: str,
        value: bytes,
        *,
        ttl: float = 3.0,
        margin: float | None = None,
        renewal: Renewal | None = None,
        is_own: Callable[[bytes], bool] | None = None,
        extended_ttl: Callable[[], float] = lambda: 0.0,
        shared: bool = False,
        announced: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`ttl`: seconds from a holder's death until the key is deleted. `margin`: seconds by which
        the holder itself stops earlier, which covers clock drift and a late loop; by default a
        sixth of the ttl. `renewal` renews the lease from a thread; without it the event loop
        does. `is_own`: whether an earlier process wrote this value in the place of this one; by
        default, if it is the same value. `extended_ttl`: seconds that the lease is to live instead
        of `ttl` if they are more; if they change, another lease takes its place. Renewals are as
        frequent as `ttl` requires. `shared`: other keys are bound to the lease, too. A lease that
        was exchanged is then left to expire, so that they can be written with the new one.
        `announced`: a renewal announces the holder, unless the lease is extended. It takes a
        `Renewal`."""
        margin = ttl / 6 if margin is None else margin
        if not 0 < margin < ttl:
            raise ValueError(f"margin {margin} must lie between 0 and the ttl {ttl}")
        self._kv = kv
        self._key = key
        self._value = value
        self._ttl = ttl
        self._margin = margin
        self._renewal = renewal
        self._is_own = is_own or (lambda found: found == value)
        self._extended_ttl = extended_ttl
        self._shared = shared
        self._announced = announced
        self._granted_ttl = ttl
        self._clock = clock
        self._sleep = sleep

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[Held]:
        """Acquire the key, hold it while the body runs, release it when it ends.

        Raises KeyLost, with the body cancelled, when the key is lost before the body ends.
        """
        held = await self.acquire()
        keeper = self._keeper(held)
        try:
            if keeper is not None:
                keeper.start()
            async with (
                background(self._keep(held, keeper)),
                background(self._watch(held)),
                background(self._adapt(held)),
            ):
                yield held
        except BaseExceptionGroup as group:
            lost, other = group.split(KeyLost)
            if lost is None or other is not None:
                raise
            # The lease was given up, and its key deleted, in one instant.
            raise _end_of_hold(lost) from group
        finally:
            if keeper is not None:
                keeper.stop()
            await self._revoke(held.lease)

    def _keeper(self, held: Held) -> Keeper | None:
        if self._renewal is None:
            return None
        return Keeper(
            held,
            self._renewal,
            ttl=self._ttl,
            margin=self._margin,
            announces=lambda: self._announced and self._granted_ttl <= self._ttl,
        )

    async def acquire(self) -> Held:
        """Wait until the key is acquired, across outages of the store. Nothing renews the lease
        yet."""
        said = ""
        while True:
            try:
                before = await self._kv.list(self._key)
                holder = self._holder(before)
                if holder is not None and not self._is_own(holder.value):
                    await self._vacancy(holder, before.revision + 1)
                    continue
                if holder is not None:
                    await self._remove(holder)
                if (held := await self._create()) is not None:
                    return held
            except Compacted:
                continue
            except StoreError as error:
                if str(error) != said:  # an outage lasts, and its cause stays the same: log it once
                    said = str(error)
                    log.warning(
                        "cannot acquire a key of the store",
                        extra={"key": self._key, "error": error},
                    )
                await self._sleep(RETRY)

    def _holder(self, snapshot: Snapshot) -> Entry | None:
        # The list is by prefix, so a longer key may be among the entries.
        return next((entry for entry in snapshot.entries if entry.key == self._key), None)

    async def _vacancy(self, holder: Entry, revision: int) -> None:
        """Wait until the key is deleted; delete it if the holder no longer announces itself."""
        vigil = _Vigil(holder.mod_revision, self._clock(), self._ttl)
        async with (
            background(self._end_silence(vigil)),
            self._kv.watch(self._key, revision) as changes,
        ):
            async for batch in changes:
                for event in batch.events:
                    if event.key != self._key:
                        continue
                    if event.entry is None:
                        return
                    vigil.announced(event.mod_revision, self._clock())

    async def _end_silence(self, vigil: _Vigil) -> None:
        """Delete the key once its holder has been silent for too long."""
        while True:
            left = vigil.patience - vigil.silence(self._clock())
            await self._sleep(max(RETRY, left) if vigil.regular else self._ttl / RENEWALS)
            silence = vigil.silence(self._clock())
            if not vigil.regular or silence < vigil.patience:
                continue
            try:
                await self._kv.txn(
                    [Guard(self._key, mod_revision=vigil.revision)], [Delete(self._key)]
                )
            except (Conflict, StoreError):  # an announcement is on its way, or nothing is known
                continue
            log.warning(
                "deleted the key of a holder that is silent",
                extra={"key": self._key, "seconds": f"{silence:.1f}"},
            )
            return

    async def _remove(self, own: Entry) -> None:
        """Delete the key of an earlier, killed process, instead of waiting for its lease."""
        with suppress(Conflict):
            await self._kv.txn(
                [Guard(self._key, create_revision=own.create_revision)], [Delete(self._key)]
            )

    async def _create(self) -> Held | None:
        """Create the key unless another process does first."""
        sent, ttl = self._clock(), self._wanted_ttl()
        lease = await self._kv.grant(ttl)
        created = False
        try:
            revision = await self._kv.txn(
                [Guard(self._key, create_revision=0)], [Put(self._key, self._value, lease)]
            )
            created = True
        except Conflict:
            return None
        finally:
            if not created:
                await self._revoke(lease)
        self._granted_ttl = ttl
        return Held(self._key, revision, lease, sent + ttl - self._margin)

    def _wanted_ttl(self) -> float:
        return max(self._ttl, self._extended_ttl())

    async def _adapt(self, held: Held) -> None:
        """Exchange the lease when another time to live is wanted."""
        pause, unknown = self._ttl / RENEWALS, False
        while True:
            await self._sleep(pause)
            if self._wanted_ttl() == self._granted_ttl and not unknown:
                continue
            try:
                await self._exchange(held)
                pause, unknown = self._ttl / RENEWALS, False
            except Conflict:
                return  # the key was deleted: the watch ends the hold
            except StoreError as error:
                # The key may have been written. Until that is known, both leases are left alone.
                log.warning(
                    "cannot exchange the lease of a key", extra={"key": self._key, "error": error}
                )
                pause, unknown = RETRY, True

    async def _exchange(self, held: Held) -> None:
        """Write the key with another lease, which keeps its create revision, hence the hold."""
        sent, ttl, former = self._clock(), self._wanted_ttl(), held.lease
        lease = await self._kv.grant(ttl)
        try:
            await self._kv.txn([held.guard], [Put(self._key, self._value, lease)])
        except (Conflict, asyncio.CancelledError):
            await self._revoke(lease)
            raise
        held.exchanged(lease, sent + ttl - self._margin)
        self._granted_ttl = ttl
        log.info("lease of a key exchanged", extra={"key": self._key, "ttl": ttl})
        if not self._shared:
            await self._revoke(former)

    async def _keep(self, held: Held, keeper: Keeper | None) -> None:
        """Renew the lease until that fails for too long; always ends with KeyLost."""
        if keeper is not None:
            raise KeyLost(await keeper.wait())
        pause = self._ttl / RENEWALS
        while True:
            await self._sleep(min(pause, max(0.0, held.deadline - self._clock())))
            sent = self._clock()
            if sent >= held.deadline:
                raise KeyLost("the lease could not be renewed in time")
            lease = held.lease
            try:
                async with asyncio.timeout(held.deadline - sent):
                    remaining = await self._kv.keepalive(lease)
                    await self._check(held)
                held.renewed(lease, sent + remaining - self._margin)
                pause = self._ttl / RENEWALS
            except LeaseLost as error:
                if lease != held.lease:  # revoked after it was exchanged
                    continue
                raise KeyLost("the lease has expired or was revoked") from error
            except (StoreError, TimeoutError) as error:
                log.warning("cannot renew the lease: %s", error or "no answer in time")
                pause = RETRY

    async def _watch(self, held: Held) -> None:
        """Raise KeyDeleted when the key is deleted, without waiting for the next renewal."""
        revision = held.revision + 1
        while True:
            try:
                async with self._kv.watch(self._key, revision) as changes:
                    async for batch in changes:
                        if any(each.key == self._key and not each.entry for each in batch.events):
                            raise KeyDeleted(batch.revision)
            except Compacted:
                # A key that was deleted meanwhile is noticed by the next renewal.
                with suppress(StoreError):
                    revision = (await self._kv.list(self._key)).revision + 1
            except StoreError:
                await self._sleep(RETRY)

    async def _check(self, held: Held) -> None:
        """Check the key: the lease may outlive it if another process removed it."""
        entry = await self._kv.get(self._key)
        if entry is None:
            raise KeyLost("the key was deleted")
        if entry.create_revision != held.revision:
            raise KeyLost("another process holds the key")

    async def _revoke(self, lease: int) -> None:
        """Revoke the lease; if the store does not answer, it expires."""
        with suppress(StoreError):
            await self._kv.revoke(lease)


def _end_of_hold(lost: BaseExceptionGroup[KeyLost]) -> KeyLost:
    """The reason that says most: the deletion of the key, with its revision, if it was seen."""
    reasons: list[KeyLost] = []
    for each in lost.exceptions:
        reasons.append(_end_of_hold(each) if isinstance(each, BaseExceptionGroup) else each)
    return next((each for each in reasons if isinstance(each, KeyDeleted)), reasons[0])
