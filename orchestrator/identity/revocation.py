# SPDX-License-Identifier: Apache-2.0
"""Revoked certificates: refused in new calls, and their calls in progress are cancelled.

Every server of the cluster (managers, and the agents' blob servers) checks at the start of each
call, and cancels calls in progress when a certificate is revoked.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import math
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from orchestrator.identity.tls import Identity

REVOKED_SERIAL = "orc-revoked-serial"
"""Trailing metadata of a call that was refused: the serial number of the revoked certificate."""

_NEXT = {
    "admin": "ask an administrator for a new context ('orc cluster admin', on a manager's host)",
    "worker": "its agent stops its tasks and leaves; run 'orc cluster join' to join again",
}


@dataclass(frozen=True, slots=True)
class Revoked:
    """Certificates that are refused: one, or all of a holder that were issued up to `at`."""

    serial: str
    """In lower-case hexadecimal digits; empty: all of the holder."""
    role: str
    name: str
    at: float
    """Seconds since the epoch."""
    reason: str = ""

    def covers(self, role: str, name: str, serial: str, issued_at: float) -> bool:
        """Whether this certificate is among them."""
        if self.serial:
            return self.serial == serial
        # Certificates have whole seconds: all of the same second are covered.
        return (self.role, self.name) == (role, name) and issued_at <= math.floor(self.at)


class CertificateRevoked(Exception):
    """The caller's certificate was revoked; one line that says when, why, and what to do."""

    def __init__(self, role: str, found: Revoked) -> None:
        at = dt.datetime.fromtimestamp(found.at, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        why = f" ({found.reason})" if found.reason else ""
        hint = _NEXT.get(role, "see 'orc cluster certificates'")
        super().__init__(f"this certificate was revoked at {at}{why}; {hint}")


class _Call:
    def __init__(self, identity: Identity, task: asyncio.Task[object]) -> None:
        self.identity = identity
        self.task = task
        self.ended_by: Revoked | None = None


class Revocations:
    """The revoked certificates. For one event loop."""

    def __init__(self) -> None:
        self._serials: dict[str, Revoked] = {}
        self._holders: dict[tuple[str, str], Revoked] = {}
        self._calls: set[_Call] = set()
        self.refused: Callable[[Identity], None] = lambda identity: None
        """Called for each call that is refused or ended."""

    def replace(self, revoked: Iterable[Revoked]) -> None:
        """Replace the set of revoked certificates; cancel calls in progress that they concern."""
        everything = list(revoked)
        self._serials = {each.serial: each for each in everything if each.serial}
        self._holders = {(each.role, each.name): each for each in everything if not each.serial}
        for call in self._calls:
            if call.ended_by is None and (found := self.of(call.identity)) is not None:
                call.ended_by = found
                call.task.cancel()

    def of(self, identity: Identity) -> Revoked | None:
        """The revocation of the certificate; None if it is valid."""
        issued = identity.certificate
        holder = self._holders.get((identity.role, identity.id))
        if issued is None:
            return holder
        if holder and holder.covers(identity.role, identity.id, issued.serial, issued.at):
            return holder
        return self._serials.get(issued.serial)

    def check(self, identity: Identity) -> None:
        """Raise CertificateRevoked if the certificate is refused."""
        if (found := self.of(identity)) is not None:
            self.refused(identity)
            raise CertificateRevoked(identity.role, found)

    @asynccontextmanager
    async def call(self, identity: Identity) -> AsyncIterator[None]:
        """Serve a call of this caller in the body. Raises CertificateRevoked, at once or when the
        certificate is revoked during the call."""
        self.check(identity)
        task = asyncio.current_task()
        assert task is not None
        call = _Call(identity, task)
        self._calls.add(call)
        try:
            yield
        except asyncio.CancelledError:
            if call.ended_by is None or task.uncancel() > 0:
                raise  # cancelled from outside as well
            self.refused(identity)
            raise CertificateRevoked(identity.role, call.ended_by) from None
        finally:
            self._calls.discard(call)
