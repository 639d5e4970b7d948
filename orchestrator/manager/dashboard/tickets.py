"""The API's call for `orc dashboard`."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path
from typing import Any

from orchestrator.identity.pair import TlsFiles
from orchestrator.manager.api.context import ApiContext, Calls, answering
from orchestrator.manager.dashboard.sessions import TICKET_LIFE, Sessions
from orchestrator.manager.discovery import web_address
from orchestrator.pb import dashboard_pb2, dashboard_pb2_grpc


class TicketCalls(Calls, dashboard_pb2_grpc.DashboardServicer):  # type: ignore[misc]
    """`orc dashboard`."""

    def __init__(self, api: ApiContext, folder: Path) -> None:
        """`folder` has the certificate that the page has."""
        super().__init__(api)
        self._sessions = Sessions(api.vault, api.now)
        self._pair = TlsFiles.of(folder, "manager").pair

    @answering
    async def OpenDashboard(self, request: Any, context: Any) -> Any:
        der = ssl.PEM_cert_to_DER_cert(self._pair.read().certificate)
        return dashboard_pb2.OpenDashboardReply(
            address=web_address(self.api.identity),
            ticket=self._sessions.ticket("viewer" if request.read_only else "admin"),
            valid_for=TICKET_LIFE,
            fingerprint=hashlib.sha256(der).digest().hex(":").upper(),
        )
