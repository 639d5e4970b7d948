# SPDX-License-Identifier: Apache-2.0
"""Renewing a lease from a thread.

A lease that the event loop renews is lost when the loop is late: when it plans, decodes or serves
for longer than the lease lasts. Here a thread renews it, over connections of its own, for as long
as the loop gives signs of life. A loop that gives none for `STUCK_AFTER` seconds is considered
stuck: renewals stop, and the lease expires at most `STUCK_AFTER` plus its time to live after the
loop's last sign of life.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Protocol

from orchestrator.manager.store.kv import Guard, LeaseLost, StoreError, StoreUnavailable

log = logging.getLogger(__name__)

STUCK_AFTER = 30.0
"""Seconds without a sign of life after which the event loop is considered stuck."""
HEARTBEAT_INTERVAL = 0.5
"""Seconds between two signs of life of the event loop."""
RETRY = 0.2
"""Seconds between attempts while the store does not answer."""
_FIRST_PAUSES = (0.0, RETRY, RETRY)
"""Seconds before the first renewals. They announce the holder often enough that processes which
wait for its key notice its death by its silence, and not only by the end of its lease."""
_GRACE = 0.1
"""Seconds after the deadline in which the answer of a request may still arrive."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """A lease, and the key that it holds, as the store knows them."""

    seconds: float
    """Seconds to live."""
    create_revision: int
    """Of the key; 0: it does not exist."""


class Renewal(Protocol):
    """Renews leases by blocking calls, from any thread."""

    def renew(self, lease: int, key: str, timeout: float, announce: int = 0) -> Renewed:
        """Renew the lease, then read the key. With `announce`, write the key again, unchanged, if
        that is its create revision. Raises LeaseLost, and StoreError when no answer comes within
        `timeout` seconds."""
        ...


@dataclass(slots=True)
class Held:
    """A key held by a lease, which may be exchanged for another one. Used by several threads."""

    key: str
    revision: int
    """At which the key was created."""
    lease: int
    deadline: float
    """Monotonic time until which the lease is known to be valid, minus a margin."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def renewed(self, lease: int, deadline: float) -> None:
        """A lease was renewed until then. It may no longer be the one that holds the key."""
        with self._lock:
            if lease == self.lease:
                self.deadline = deadline

    def exchanged(self, lease: int, deadline: float) -> None:
        """Another lease holds the key from now on, until then."""
        with self._lock:
            self.lease, self.deadline = lease, deadline

    @property
    def guard(self) -> Guard:
        """Holds as long as the key is held: put it into transactions that depend on it."""
        return Guard(self.key, create_revision=self.revision)


class Keeper:
    """Keeps one lease alive until it is stopped or the lease is lost."""

    def __init__(
        self,
        held: Held,
        renewal: Renewal,
        *,
        ttl: float,
        margin: float,
        stuck_after: float = STUCK_AFTER,
        announces: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ttl` and `margin` in seconds, as `LeasedKey` has them. A lease with a longer time to
        live than `ttl` is renewed as often. While `announces`, each renewal writes the key again.
        """
        self._held = held
        self._renewal = renewal
        self._ttl = ttl
        self._margin = margin
        self._stuck_after = stuck_after
        self._announces = announces
        self._clock = clock
        self._stopped = threading.Event()
        self._beaten = clock()
        self._lost: asyncio.Future[str] | None = None

    def start(self) -> None:
        """Start renewing from a thread. Call it in the event loop."""
        loop = asyncio.get_running_loop()
        lost = self._lost = loop.create_future()

        def run() -> None:
            try:
                reason = self._renew_until_lost()
            except BaseException as error:
                log.exception("the renewal of the lease failed")
                reason = f"the renewal of the lease failed: {error}"
            if not self._stopped.is_set():
                loop.call_soon_threadsafe(_settle, lost, reason)

        threading.Thread(target=run, name="lease", daemon=True).start()

    async def wait(self) -> str:
        """Wait until the lease is lost, giving signs of life meanwhile; the reason."""
        assert self._lost is not None
        while not self._lost.done():
            self._beaten = self._clock()
            await asyncio.wait((self._lost,), timeout=HEARTBEAT_INTERVAL)
        return self._lost.result()

    def stop(self) -> None:
        """Stop renewing. A renewal in flight ends by its timeout; none follows."""
        self._stopped.set()

    def _renew_until_lost(self) -> str:
        held, pauses = self._held, iter(_FIRST_PAUSES)
        pause = next(pauses)
        while True:
            if self._stopped.wait(min(pause, max(0.0, held.deadline - self._clock()))):
                return ""
            sent = self._clock()
            if sent >= held.deadline:
                return "the lease could not be renewed in time"
            if (silent := sent - self._beaten) > self._stuck_after:
                return f"the event loop has not run for {silent:.0f} s"
            lease, left = held.lease, held.deadline - sent
            # A connection that hangs must not take all the time that a long lease leaves.
            timeout = max(left / 2, min(left, self._ttl))
            try:
                sent, renewed = self._renew(lease, timeout)
            except LeaseLost:
                if lease != held.lease:  # revoked after it was exchanged
                    continue
                return "the lease has expired or was revoked"
            except StoreError as error:
                log.warning("cannot renew the lease: %s", error)
                pause = RETRY
                continue
            if not renewed.create_revision:
                return "the key was deleted"
            if renewed.create_revision != held.revision:
                return "another process holds the key"
            held.renewed(lease, sent + renewed.seconds - self._margin)
            pause = next(pauses, self._ttl / 3)

    def _renew(self, lease: int, timeout: float) -> tuple[float, Renewed]:
        """Renew within `timeout` seconds; when the request was sent that was answered first, in
        seconds of the clock, and its answer. Raises what `Renewal.renew` raises.

        A member of etcd forwards renewals to its leader. If that dies, a request on its way is
        never answered, but another one is as soon as there is a new leader: so a second one is
        sent while the first may still be answered by a slow store."""
        results: SimpleQueue[tuple[float, Renewed | BaseException]] = SimpleQueue()
        end = self._clock() + timeout

        def attempt(sent: float, announce: int) -> None:
            try:
                found: Renewed | BaseException = self._renewal.renew(
                    lease, self._held.key, end - sent, announce
                )
            except BaseException as error:
                found = error
            results.put((sent, found))

        failures: list[BaseException] = []
        for attempts, until in enumerate((end - timeout / 2, end + _GRACE), 1):
            announce = self._held.revision if self._announces() else 0
            sent = self._clock()
            Thread(target=attempt, args=(sent, announce), name="renewal", daemon=True).start()
            while len(failures) < attempts:
                try:
                    answered, found = results.get(timeout=max(0.0, until - self._clock()))
                except Empty:
                    break
                if isinstance(found, Renewed):
                    return answered, found
                failures.append(found)
            else:
                raise failures[-1]
        raise StoreUnavailable(f"no answer within {timeout:.1f} s")


def _settle(lost: asyncio.Future[str], reason: str) -> None:
    if not lost.done():
        lost.set_result(reason)
