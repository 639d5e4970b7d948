"""Tickets and cookies: who may look, and until when, sealed so that only a manager can make one."""

from __future__ import annotations

import binascii
import json
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.manager.vault import Vault, VaultError

TICKET_LIFE = 300.0
"""Seconds in which a ticket must be used."""
SESSION_LIFE = 12 * 3600.0
"""Seconds after which one logs in again."""

_TICKET, _SESSION = "dashboard ticket", "dashboard session"


@dataclass(frozen=True, slots=True)
class Session:
    """Who looks."""

    role: str
    """`admin`, or `viewer` who may change nothing."""
    until: float
    user: str = ""
    """Name of the admin who opened the page."""
    certificate: str = ""
    """Serial number of that admin's certificate."""


class Sessions:
    """Makes and opens tickets and cookies."""

    def __init__(self, vault: Vault, now: Callable[[], float]) -> None:
        self._vault = vault
        self._now = now

    def ticket(self, role: str) -> str:
        """Text with which somebody in this role logs in, soon."""
        return self._sealed(_TICKET, role, TICKET_LIFE)

    def log_in(self, ticket: str) -> str | None:
        """The cookie for a ticket; None where it is none (any more)."""
        found = self._opened(_TICKET, ticket)
        return self._sealed(_SESSION, found.role, SESSION_LIFE) if found else None

    def session(self, cookie: str) -> Session | None:
        """Whose cookie it is; None where it is none (any more)."""
        return self._opened(_SESSION, cookie)

    def _sealed(self, purpose: str, role: str, life: float) -> str:
        return self._vault.seal(json.dumps([role, self._now() + life]), purpose)

    def _opened(self, purpose: str, text: str) -> Session | None:
        try:
            role, until = json.loads(self._vault.open(text, purpose))
        except (VaultError, binascii.Error, ValueError):
            return None
        return Session(role, until) if self._now() < until else None
