"""The API's calls for `orc dashboard` and `orc cluster sessions`."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path
from typing import Any

from orchestrator.identity.pair import TlsFiles
from orchestrator.identity.tls import peer_identity
from orchestrator.manager.api.context import ApiContext, Calls, answering
from orchestrator.manager.dashboard.sessions import Sessions
from orchestrator.manager.discovery import web_address
from orchestrator.model.access import IDLE, TICKET_LIFE
from orchestrator.model.convert import to_proto
from orchestrator.pb import dashboard_pb2, dashboard_pb2_grpc


class TicketCalls(Calls, dashboard_pb2_grpc.DashboardServicer):  # type: ignore[misc]
    """`orc dashboard`, `orc cluster sessions`."""

    def __init__(self, api: ApiContext, folder: Path) -> None:
        """`folder` has the certificate that the page has."""
        super().__init__(api)
        self._sessions = Sessions(api)
        self._pair = TlsFiles.of(folder, "manager").pair

    @answering
    async def OpenDashboard(self, request: Any, context: Any) -> Any:
        caller = peer_identity(context)
        assert caller is not None, "the guard lets nobody in without one"
        der = ssl.PEM_cert_to_DER_cert(self._pair.read().certificate)
        return dashboard_pb2.OpenDashboardReply(
            address=web_address(self.api.identity),
            ticket=self._sessions.ticket("viewer" if request.read_only else "admin", caller),
            valid_for=TICKET_LIFE,
            fingerprint=hashlib.sha256(der).digest().hex(":").upper(),
        )

    @answering
    async def ListSessions(self, request: Any, context: Any) -> Any:
        now = self.api.now()
        alive = [
            each
            for each in self.api.view.page_sessions.values()
            if not each.is_over(now) and not self._sessions.revoked(each)
        ]
        alive.sort(key=lambda each: (each.created_at, each.id))
        return dashboard_pb2.ListSessionsReply(
            sessions=[to_proto(each) for each in alive], idle=IDLE
        )
