"""Who may speak with the cluster: issued and revoked certificates, sessions of the web page."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.model.extensible import Extensible

TICKET_LIFE = 300.0
"""Seconds in which the address of the web page must be opened."""
SESSION_LIFE = 12 * 3600.0
"""Seconds after which a session of the web page ends, however much it was used."""
IDLE = 1800.0
"""Seconds after which one ends whose page is not open."""


@dataclass(frozen=True, slots=True)
class Certificate(Extensible):
    """A certificate that the cluster's CA issued."""

    id: str = ""
    """Its serial number, in lower-case hexadecimal digits."""
    role: str = ""
    name: str = ""
    """The subject's common name: the id of a node or manager, the name of an admin."""
    issued_at: float = 0.0
    expires_at: float = 0.0
    fingerprint: str = ""
    """SHA-256 of the DER form, in lower-case hexadecimal digits."""
    hostname: str = ""
    """Of a node, as it said when it joined."""
    address: str = ""
    """From where it was requested; for one that was issued elsewhere, from where it was used
    first."""
    revision: int = 0
    since: float = 0.0
    """When the first certificate was issued of those that were renewed by one another; 0: this
    is it."""


@dataclass(frozen=True, slots=True)
class Revocation(Extensible):
    """Certificates that are refused: one, or all of a holder that were issued up to a moment."""

    id: str = ""
    serial: str = ""
    """Of the one certificate; empty: all of the holder."""
    role: str = ""
    name: str = ""
    at: float = 0.0
    expires_at: float = 0.0
    """When the last of them has expired, and this can be forgotten."""
    reason: str = ""
    by: str = ""
    """Name of the admin who revoked them."""
    revision: int = 0


@dataclass(frozen=True, slots=True)
class PageSession(Extensible):
    """Somebody who looks at the web page, with the rights of the admin who opened it."""

    id: str = ""
    role: str = ""
    """`admin`, or `viewer` who may change nothing."""
    user: str = ""
    """Name of the admin."""
    certificate: str = ""
    """Serial number of that admin's certificate."""
    issued_at: float = 0.0
    """When that was issued."""
    created_at: float = 0.0
    used_at: float = 0.0
    """When it was used, with the precision of a minute."""
    until: float = 0.0
    """When it ends at the latest."""
    ended_at: float = 0.0
    """When somebody ended it; 0: nobody did."""
    address: str = ""
    """Of the browser."""
    revision: int = 0

    def is_over(self, now: float) -> bool:
        """Whether it has ended by itself or was ended."""
        return bool(self.ended_at) or now >= min(self.until, self.used_at + IDLE)

    def can_be_forgotten(self, now: float) -> bool:
        """Whether it is over, and its ticket, too: that must not open it once more."""
        return self.is_over(now) and now >= self.created_at + TICKET_LIFE
