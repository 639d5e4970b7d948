# SPDX-License-Identifier: Apache-2.0
"""ASGI applications (asgi.readthedocs.io, version 3), and the caller's identity in their scope."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from orchestrator.identity.certificates import Issued
from orchestrator.identity.tls import Identity

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
"""An application."""

PEER = "orc.peer"
"""Key of the scope: the `Identity` in the caller's certificate, or None."""

_SUBJECT = {"organizationalUnitName": "cluster_id", "organizationName": "role", "commonName": "id"}


def identity_in(certificate: Any, der: bytes | None = None) -> Identity | None:
    """The holder of a certificate, by its subject as `SSLObject.getpeercert` gives it, and its DER
    form."""
    issued = Issued.of(ssl.DER_cert_to_PEM_cert(der)) if der else None
    found = {
        _SUBJECT[key]: value
        for part in (certificate or {}).get("subject", ())
        for key, value in part
        if key in _SUBJECT
    }
    return Identity(**found, certificate=issued) if len(found) == len(_SUBJECT) else None
