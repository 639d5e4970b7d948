# SPDX-License-Identifier: Apache-2.0
"""Access to the cluster: issued and revoked certificates, sessions of the web page."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.model.extensible import Extensible

TICKET_LIFE = 300.0
"""Seconds for which the address of the web page, with its ticket, can be opened."""
SESSION_LIFE = 12 * 3600.0
"""Maximum seconds of a session of the web page."""
IDLE = 1800.0
"""Seconds after which an unused session ends."""


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
    """Of a node, as it reported when it joined."""
    address: str = ""
    """Address that it was requested from; if issued elsewhere, that it was first used from."""
    revision: int = 0
    since: float = 0.0
    """When the first certificate of its chain of renewals was issued; 0: this is the first."""
    ca: str = ""
    """Key id of the CA that issued it; empty: recorded by an earlier version."""
    told_ca: str = ""
    """Key id of a new CA that its holder was told to trust, with this certificate."""


@dataclass(frozen=True, slots=True)
class Revocation(Extensible):
    """Revoked certificates: one, or all of a holder that were issued up to a point in time."""

    id: str = ""
    serial: str = ""
    """Serial number of the certificate; empty: all of the holder."""
    role: str = ""
    name: str = ""
    at: float = 0.0
    expires_at: float = 0.0
    """When the last of them expires, and this can be deleted."""
    reason: str = ""
    by: str = ""
    """Name of the admin who revoked them."""
    revision: int = 0


@dataclass(frozen=True, slots=True)
class PageSession(Extensible):
    """A session of the web page, with the rights of the admin who opened it."""

    id: str = ""
    role: str = ""
    """`admin`, or `viewer` (read-only)."""
    user: str = ""
    """Name of the admin."""
    certificate: str = ""
    """Serial number of that admin's certificate."""
    issued_at: float = 0.0
    """When that was issued."""
    created_at: float = 0.0
    used_at: float = 0.0
    """When it was last used, to the minute."""
    until: float = 0.0
    """When it expires."""
    ended_at: float = 0.0
    """When it was ended; 0: it was not."""
    address: str = ""
    """Address of the browser."""
    revision: int = 0

    def is_over(self, now: float) -> bool:
        """Whether it has expired or was ended."""
        return bool(self.ended_at) or now >= min(self.until, self.used_at + IDLE)

    def can_be_forgotten(self, now: float) -> bool:
        """Whether it and its ticket have expired, so that the ticket cannot open it again."""
        return self.is_over(now) and now >= self.created_at + TICKET_LIFE


@dataclass(frozen=True, slots=True)
class KeyRotation(Extensible):
    """A rotation of the data key in progress; without an id, there is none."""

    id: str = ""
    """Of the new key."""
    started_at: float = 0.0
    by: str = ""
    """Name of the admin who began it."""
    former: str = ""
    """Id of the key that it replaces."""


ADMINS_WITHIN = 7 * 86400.0
"""Seconds that admins have to renew during a rotation of the CA, by default."""


@dataclass(frozen=True, slots=True)
class ExternalCa(Extensible):
    """A CA outside of the cluster that signs its certificates; without an endpoint, there is
    none."""

    url: str = ""
    """Where managers send signing requests: an endpoint as cfssl's `/api/v1/cfssl/sign`."""
    profile: str = ""
    """The signing profile to ask for; empty: the endpoint's default."""
    root: str = ""
    """PEM of the CA that issued the endpoint's own certificate; empty: the host's CAs."""
    auth_key: str = ""
    """The key that authenticates requests, sealed with the data key; empty: none does."""


@dataclass(frozen=True, slots=True)
class CaRotation(Extensible):
    """A rotation of the CA in progress; without certificates, there is none. Certificates are
    PEM."""

    former: str = ""
    """The CA that is to be removed."""
    successor: str = ""
    """The new CA, signed by itself."""
    link: str = ""
    """The new CA, signed by the former: holders of the former alone accept what the new one
    signs. Empty if the former is an external one: then it goes on signing until all have learned
    to trust the new one."""
    key: str = ""
    """Key of the new CA, sealed with the data key; empty for an external CA."""
    started_at: float = 0.0
    signing_since: float = 0.0
    """When the new CA began to sign; 0: managers do not all trust it yet."""
    by: str = ""
    """Name of the admin who began it."""
    admins_within: float = 0.0
    """Seconds that admins have to renew, from `signing_since`; 0: the default."""
    external: ExternalCa = field(default_factory=ExternalCa)
    """Where the new CA signs, if it is an external one."""

    @property
    def admins_until(self) -> float:
        """When the rotation goes on without admins that have not renewed; 0: not known yet."""
        since = self.signing_since or (0.0 if self.link else self.started_at)
        return since + (self.admins_within or ADMINS_WITHIN) if since else 0.0
