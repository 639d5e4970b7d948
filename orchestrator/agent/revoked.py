"""Certificates that this node refuses, as the managers tell it, kept over restarts."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.agent.statedb import StateDb
from orchestrator.identity.revocation import Revocations, Revoked
from orchestrator.pb import dispatch_pb2, types_pb2


class KeptRevocations:
    """Applies what sessions tell to `revocations`, and to the state file."""

    def __init__(self, db: StateDb, revocations: Revocations, now: Callable[[], float]) -> None:
        self._db = db
        self._revocations = revocations
        self._now = now
        self._known = {each.id: each for each in db.revocations().added}
        self._apply()

    def take(self, news: dispatch_pb2.RevocationList) -> None:
        """Take a complete list, or a change of it."""
        known: dict[str, types_pb2.Revocation] = {} if news.full else self._known
        known |= {each.id: each for each in news.added}
        for id in news.removed:
            known.pop(id, None)
        now = self._now()
        self._known = {id: each for id, each in known.items() if each.expires_at > now}
        self._db.put_revocations(dispatch_pb2.RevocationList(full=True, added=self._known.values()))
        self._apply()

    def _apply(self) -> None:
        self._revocations.replace(
            Revoked(each.serial, each.role, each.name, each.at, each.reason)
            for each in self._known.values()
        )
