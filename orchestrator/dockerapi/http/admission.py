# SPDX-License-Identifier: Apache-2.0
"""Which certificates may use a gateway over TCP: those with the rights that the gateway has.

The handshake verifies that the cluster's CA issued the certificate. Nodes and managers have such,
too, and a certificate may have been revoked: both are refused here, as a manager would.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from orchestrator.dockerapi.gateway import Gateway
from orchestrator.dockerapi.http.errors import ApiError
from orchestrator.identity.certificates import Issued
from orchestrator.pb import access_pb2

ADMIN = "admin"
_FRESH = 2.0
"""Seconds for which the list of certificates is reused."""


class Admission:
    """Refuses certificates that are not of an admin, or revoked."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._lock = threading.Lock()
        self._read_at = -_FRESH
        self._rows: tuple[Any, ...] = ()

    def check(self, connection: ssl.SSLSocket) -> None:
        """Raise ApiError, CliError if this client may not make a request now."""
        shown = connection.getpeercert() or {}
        subject: Any = shown.get("subject", ())
        names = {key: value for part in subject for key, value in part}
        role, name = names.get("organizationName", ""), names.get("commonName", "")
        issued = Issued.of(ssl.DER_cert_to_PEM_cert(connection.getpeercert(True) or b""))
        if role != ADMIN or issued is None:
            raise ApiError(
                HTTPStatus.FORBIDDEN,
                f"a certificate with the role '{role}' may not use Docker's API; use an admin's",
            )
        if is_revoked(self._certificates(), name, issued.serial, issued.at):
            raise ApiError(
                HTTPStatus.FORBIDDEN,
                "this certificate was revoked; ask an administrator for a new context",
            )

    def _certificates(self) -> Iterable[Any]:
        with self._lock:
            now = time.monotonic()
            if now - self._read_at >= _FRESH:
                request = access_pb2.ListCertificatesRequest()
                reply = self._gateway.call("Access.ListCertificates", request)
                self._rows, self._read_at = tuple(reply.certificates), now
            return self._rows


def is_revoked(rows: Iterable[Any], name: str, serial: str, issued_at: float) -> bool:
    """Whether an admin's certificate was revoked, alone or with all of its holder. One that no
    manager has seen yet counts as revoked if a later revocation concerns its holder."""
    everything = list(rows)
    for row in everything:
        if row.certificate.id == serial:
            return bool(row.revoked_at)
    return any(
        row.revoked_at >= issued_at
        for row in everything
        if row.revoked_at and (row.certificate.role, row.certificate.name) == (ADMIN, name)
    )
