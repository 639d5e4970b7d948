"""Who may look at the web page, and until when.

A ticket is sealed, so that only a manager can make one, and opens one session. A session is an
object of the store, which every manager serves, lists and ends. It has the rights of the admin
whose certificate opened it, for as long as that certificate is not revoked.
"""

from __future__ import annotations

import binascii
import json
import secrets
from contextlib import suppress
from dataclasses import dataclass, replace

from orchestrator.identity.pair import Issued
from orchestrator.identity.tls import Identity
from orchestrator.manager.api.context import ApiContext
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.kv import Conflict, StoreError
from orchestrator.manager.vault import VaultError
from orchestrator.model.access import SESSION_LIFE, TICKET_LIFE, PageSession

PRECISION = 60.0
"""Seconds between two writes of when a session was used."""

_TICKET, _SESSION = "dashboard ticket", "dashboard session"


@dataclass(frozen=True, slots=True)
class Session:
    """Who looks."""

    id: str
    role: str
    """`admin`, or `viewer` who may change nothing."""
    until: float
    user: str = ""
    """Name of the admin who opened the page."""
    certificate: str = ""
    """Serial number of that admin's certificate."""


class Sessions:
    """Makes and opens tickets and cookies."""

    def __init__(self, api: ApiContext) -> None:
        self._api = api

    def ticket(self, role: str, admin: Identity) -> str:
        """Text with which somebody in this role logs in once, soon, for this admin."""
        issued = admin.certificate
        facts = [
            secrets.token_hex(8),
            role,
            self._api.now() + TICKET_LIFE,
            admin.id,
            issued.serial if issued else "",
            issued.at if issued else 0.0,
        ]
        return self._api.vault.seal(json.dumps(facts), _TICKET)

    async def log_in(self, ticket: str, address: str = "") -> str | None:
        """The cookie for a ticket; None where it is none (any more). Raises StoreError."""
        api, now = self._api, self._api.now()
        try:
            id, role, until, user, serial, issued_at = json.loads(api.vault.open(ticket, _TICKET))
        except (VaultError, binascii.Error, ValueError):
            return None
        if now >= until:
            return None
        session = PageSession(
            id=id,
            role=role,
            user=user,
            certificate=serial,
            issued_at=issued_at,
            created_at=now,
            used_at=now,
            until=now + SESSION_LIFE,
            address=address,
        )
        if self.revoked(session):
            return None
        try:
            await api.cache.wait_for(await commit(api.kv, [Change(None, session)]))
        except Conflict:
            return None  # used before
        return api.vault.seal(id, _SESSION)

    def session(self, cookie: str) -> Session | None:
        """Whose cookie it is; None where it is none (any more)."""
        try:
            id = self._api.vault.open(cookie, _SESSION)
        except (VaultError, binascii.Error, ValueError):
            return None
        found = self._alive(id)
        if found is None:
            return None
        return Session(id, found.role, found.until, found.user, found.certificate)

    def counts(self, session: Session) -> bool:
        """Whether the session goes on."""
        return self._alive(session.id) is not None

    def _alive(self, id: str) -> PageSession | None:
        found = self._api.view.page_sessions.get(id)
        if found is None or found.is_over(self._api.now()) or self.revoked(found):
            return None
        return found

    def revoked(self, session: PageSession) -> bool:
        """Whether the certificate of the admin who opened it was revoked."""
        issued = Issued(session.certificate, "", session.issued_at, 0.0)
        admin = Identity(session.user, "admin", self._api.identity.cluster_id, issued)
        return self._api.revocations.of(admin) is not None

    async def used(self, session: Session) -> None:
        """The page is open; noted now and then."""
        stored, now = self._alive(session.id), self._api.now()
        if stored is not None and now - stored.used_at >= PRECISION:
            with suppress(StoreError):  # it is noted with the next use
                await commit(self._api.kv, [Change(stored, replace(stored, used_at=now))])

    async def end(self, id: str) -> None:
        """End a session that is there. Raises StoreError."""
        while (stored := self._api.view.page_sessions.get(id)) and not stored.ended_at:
            read = self._api.cache.revision
            after = replace(stored, ended_at=self._api.now())
            try:
                revision = await commit(self._api.kv, [Change(stored, after)])
            except Conflict:
                await self._api.cache.wait_for(read + 1)  # it was used at the same time
            else:
                await self._api.cache.wait_for(revision)
