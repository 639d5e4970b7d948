# SPDX-License-Identifier: Apache-2.0
"""Who may open the web page, and until when.

A ticket is sealed, so that only a manager can make one, and opens one session. A session is an
object in the store, which every manager serves, lists and ends. It has the rights of the admin
whose certificate opened it, for as long as that certificate is not revoked.
"""

from __future__ import annotations

import binascii
import hashlib
import json
import secrets
import ssl
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.identity.certificates import Issued, TlsFiles
from orchestrator.identity.tls import Identity
from orchestrator.manager.operations.context import Caller, ManagerContext, Operations
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.security.vault import VaultError
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.kv import Conflict, StoreError
from orchestrator.manager.telemetry.service_discovery import web_address
from orchestrator.model.administration.access import IDLE, SESSION_LIFE, TICKET_LIFE, PageSession
from orchestrator.model.convert import to_proto
from orchestrator.pb import dashboard_pb2

LAST_USE_PRECISION = 60.0
"""Seconds between two writes of a session's last use."""

_TICKET, _SESSION = "dashboard ticket", "dashboard session"


@dataclass(frozen=True, slots=True)
class Session:
    """An open session."""

    id: str
    role: str
    """`admin`, or `viewer`, which is read-only."""
    until: float
    user: str = ""
    """Name of the admin who opened the page."""
    certificate: str = ""
    """Serial number of that admin's certificate."""


class WebSessions:
    """Issues and checks tickets and cookies."""

    def __init__(self, ctx: ManagerContext) -> None:
        self._ctx = ctx

    def ticket(self, role: str, admin: Identity) -> str:
        """A sealed ticket with which one browser can log in once, within `TICKET_LIFE`, for this
        admin."""
        issued = admin.certificate
        facts = [
            secrets.token_hex(8),
            role,
            self._ctx.now() + TICKET_LIFE,
            admin.id,
            issued.serial if issued else "",
            issued.at if issued else 0.0,
        ]
        return self._ctx.vault.seal(json.dumps(facts), _TICKET)

    def hand_over(self, session: Session) -> str:
        """A ticket with which the session's browser can log in at another manager, until this
        session ends: cookies belong to one host."""
        stored = self._ctx.view.page_sessions.get(session.id)
        facts = [
            secrets.token_hex(8),
            session.role,
            self._ctx.now() + TICKET_LIFE,
            session.user,
            session.certificate,
            stored.issued_at if stored else 0.0,
            session.id,
        ]
        return self._ctx.vault.seal(json.dumps(facts), _TICKET)

    async def log_in(self, ticket: str, address: str = "") -> str | None:
        """The cookie for a ticket; None if the ticket is invalid, expired or used. Raises
        StoreError."""
        ctx, now = self._ctx, self._ctx.now()
        try:
            facts = json.loads(ctx.vault.open(ticket, _TICKET))
            id, role, until, user, serial, issued_at, *former = facts
        except (VaultError, binascii.Error, ValueError):
            return None
        if now >= until:
            return None
        # A session that moves to another manager lasts as long as it would have.
        moved = [self._valid(each) for each in former]
        if None in moved:
            return None
        session = PageSession(
            id=id,
            role=role,
            user=user,
            certificate=serial,
            issued_at=issued_at,
            created_at=now,
            used_at=now,
            until=min([now + SESSION_LIFE, *(each.until for each in moved if each)]),
            address=address,
        )
        if self.revoked(session):
            return None
        try:
            await ctx.cache.wait_for(await commit(ctx.kv, [Change(None, session)]))
        except Conflict:
            return None  # used before
        return ctx.vault.seal(id, _SESSION)

    def session(self, cookie: str) -> Session | None:
        """The session of a cookie; None if the cookie is invalid or the session has ended."""
        try:
            id = self._ctx.vault.open(cookie, _SESSION)
        except (VaultError, binascii.Error, ValueError):
            return None
        found = self._valid(id)
        if found is None:
            return None
        return Session(id, found.role, found.until, found.user, found.certificate)

    def is_valid(self, session: Session) -> bool:
        """Whether the session is still valid."""
        return self._valid(session.id) is not None

    def _valid(self, id: str) -> PageSession | None:
        found = self._ctx.view.page_sessions.get(id)
        if found is None or found.is_over(self._ctx.now()) or self.revoked(found):
            return None
        return found

    def revoked(self, session: PageSession) -> bool:
        """Whether the certificate of the admin who opened it is revoked."""
        issued = Issued(session.certificate, "", session.issued_at, 0.0)
        admin = Identity(session.user, "admin", self._ctx.identity.cluster_id, issued)
        return self._ctx.revocations.of(admin) is not None

    async def touch(self, session: Session) -> None:
        """Record the use of a session, at most once per `LAST_USE_PRECISION`."""
        stored, now = self._valid(session.id), self._ctx.now()
        if stored is not None and now - stored.used_at >= LAST_USE_PRECISION:
            with suppress(StoreError):  # recorded at the next use
                await commit(self._ctx.kv, [Change(stored, replace(stored, used_at=now))])

    async def end(self, id: str) -> None:
        """End a session if it exists. Raises StoreError."""
        while (stored := self._ctx.view.page_sessions.get(id)) and not stored.ended_at:
            read = self._ctx.cache.revision
            after = replace(stored, ended_at=self._ctx.now())
            try:
                revision = await commit(self._ctx.kv, [Change(stored, after)])
            except Conflict:
                await self._ctx.cache.wait_for(read + 1)  # its use was recorded concurrently
            else:
                await self._ctx.cache.wait_for(revision)


class WebSessionOperations(Operations):
    """Operations of `orc dashboard`, `orc cluster sessions`."""

    def __init__(self, ctx: ManagerContext, folder: Path) -> None:
        """`folder` has the certificate of the HTTPS server."""
        super().__init__(ctx)
        self._sessions = WebSessions(ctx)
        self._pair = TlsFiles.of(folder, "manager").pair

    async def open_dashboard(
        self, request: dashboard_pb2.OpenDashboardRequest, caller: Caller
    ) -> dashboard_pb2.OpenDashboardReply:
        """Issue a ticket for the web page to the calling admin."""
        der = ssl.PEM_cert_to_DER_cert(self._pair.read().certificate)
        return dashboard_pb2.OpenDashboardReply(
            address=web_address(self.ctx.identity),
            ticket=self._sessions.ticket(
                "viewer" if request.read_only else "admin", caller.identity
            ),
            valid_for=TICKET_LIFE,
            fingerprint=hashlib.sha256(der).digest().hex(":").upper(),
        )

    async def list_sessions(
        self, request: dashboard_pb2.ListSessionsRequest
    ) -> dashboard_pb2.ListSessionsReply:
        """List open sessions of the web page."""
        now = self.ctx.now()
        alive = [
            each
            for each in self.ctx.view.page_sessions.values()
            if not each.is_over(now) and not self._sessions.revoked(each)
        ]
        alive.sort(key=lambda each: (each.created_at, each.id))
        return dashboard_pb2.ListSessionsReply(
            sessions=[to_proto(each) for each in alive], idle=IDLE
        )
