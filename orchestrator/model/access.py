"""Certificates that the cluster issued, and those that it revoked."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.model.extensible import Extensible


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
