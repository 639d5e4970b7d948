# SPDX-License-Identifier: Apache-2.0
"""Entries in the audit trail for the web page's requests."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from orchestrator.manager.audit.audit_interceptor import subject_of
from orchestrator.manager.audit.audited_methods import MAX_NAME_LENGTH
from orchestrator.manager.audit.trail import AuditEntry
from orchestrator.manager.operations.administration.web_sessions import Session
from orchestrator.manager.operations.context import ManagerContext
from orchestrator.manager.web.dashboard_actions import KINDS


def client_address(request: Request) -> str:
    """IP address and port of the caller."""
    host, port = request.client or ("", 0)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class AuditedRequest:
    """A request of the web page that changes something."""

    def __init__(
        self, ctx: ManagerContext, session: Session, request: Request, method: str = "Page.act"
    ) -> None:
        self._ctx = ctx
        self._session = session
        self._address = client_address(request)
        self._began, self._clock = time.time(), time.monotonic()
        self._method, self._kind, self._name, self._id = method, "session", "", session.id

    def set_action(self, fields: Mapping[str, Any]) -> None:
        """The action that is requested, see `dashboard_actions.act`."""
        action = str(fields.get("do"))
        if action not in KINDS:
            return
        self._method, self._kind = f"Page.{action}", KINDS[action]
        # JSON can hold lone surrogates, which other texts cannot.
        word = str(fields.get("to", ""))[:MAX_NAME_LENGTH].encode(errors="replace").decode()
        if word:
            self._name, self._id = subject_of(self._ctx.view, self._kind, word)

    def record(self, result: str) -> None:
        """Record the request with its result, a gRPC status."""
        self._ctx.record(
            AuditEntry(
                at=self._began,
                user=self._session.user,
                role=self._session.role,
                certificate=self._session.certificate,
                via="page",
                address=self._address,
                method=self._method,
                kind=self._kind,
                name=self._name,
                id=self._id,
                result=result,
                seconds=round(time.monotonic() - self._clock, 6),
                request=secrets.token_hex(8),
                manager=self._ctx.identity.manager_id,
            )
        )
