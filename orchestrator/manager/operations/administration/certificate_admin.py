# SPDX-License-Identifier: Apache-2.0
"""Listing and revoking certificates."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from orchestrator.manager.errors import (
    RequestError,
    failed_precondition,
    invalid_argument,
    not_found,
)
from orchestrator.manager.object_lookup import find_node
from orchestrator.manager.operations.administration.web_sessions import WebSessions
from orchestrator.manager.operations.context import Caller, Operations
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.security.certificates import (
    as_revoked,
    certificates_of,
    commit_serialized,
    new_revocation,
    record,
    revocation_for,
    write_record,
)
from orchestrator.model.administration.access import Certificate, Revocation
from orchestrator.model.convert import to_proto
from orchestrator.model.names import near_miss
from orchestrator.pb import access_pb2

_LISTING = "orc cluster certificates"
_SHORTEST = 4
"""Digits of a serial number or fingerprint that identify a certificate, at least."""


class CertificateOperations(Operations):
    """Operations of `orc cluster certificates|revoke`."""

    async def list_certificates(
        self, request: access_pb2.ListCertificatesRequest, caller: Caller
    ) -> access_pb2.ListCertificatesReply:
        """List issued certificates with their revocations. Records the caller's own."""
        ctx, identity = self.ctx, caller.identity
        own = ""
        if identity.certificate is not None:
            own = identity.certificate.serial
            if own not in ctx.view.certificates:
                # Used for the first time, so it is about to be recorded.
                made = record(
                    identity.certificate,
                    role=identity.role,
                    name=identity.id,
                    address=caller.peer,
                )
                await write_record(ctx.kv, ctx.cache, Change(None, made))
        view = ctx.view
        rows = []
        for each in sorted(view.certificates.values(), key=_order):
            found = revocation_for(view.revocations, each)
            rows.append(
                access_pb2.CertificateRow(
                    certificate=to_proto(each),
                    revoked_at=found.at if found else 0.0,
                    reason=found.reason if found else "",
                    revoked_by=found.by if found else "",
                    current=each.id == own,
                )
            )
        return access_pb2.ListCertificatesReply(certificates=rows)

    async def revoke(
        self, request: access_pb2.RevokeRequest, caller: Caller
    ) -> access_pb2.RevokeReply:
        """Revoke certificates of a node, manager or admin, or end a session of the web page."""
        ctx, identity = self.ctx, caller.identity
        if request.kind == "session":
            return await self._end_session(request.name)
        affected: list[Certificate] = []

        def revoked(view: ClusterView) -> list[Change]:
            made = self._revocation(view, request, identity.id)
            affected[:] = [
                each
                for each in view.certificates.values()
                if revocation_for({made.id: made}, each) is made
            ]
            issued = identity.certificate
            if not request.force and (
                issued is None
                or as_revoked(made).covers(identity.role, identity.id, issued.serial, issued.at)
            ):
                raise failed_precondition(
                    "this is the certificate of your own context; create another one first with "
                    "'orc cluster admin', or use --force to lock yourself out"
                )
            return [Change(view.revocations.get(made.id), made)]

        [change] = await commit_serialized(ctx.kv, ctx.cache, revoked)
        made = change.after
        assert isinstance(made, Revocation)
        if not made.serial:
            # Certificates have a resolution of one second. One that is issued after this call
            # returns must be valid.
            await asyncio.sleep(min(1.0, max(0.0, math.floor(made.at) + 1 - ctx.now())))
        return access_pb2.RevokeReply(
            revocation=to_proto(made), certificates=[to_proto(each) for each in affected]
        )

    async def _end_session(self, word: str) -> Any:
        view, now = self.ctx.view, self.ctx.now()
        found = [
            each
            for each in view.page_sessions.values()
            if word and each.id.startswith(word) and not each.is_over(now)
        ]
        if not found:
            raise not_found(f"no session '{word}' of the web page; see 'orc cluster sessions'")
        if len(found) > 1:
            raise invalid_argument(
                f"'{word}' is a prefix of {len(found)} session ids; use a longer one"
            )
        await WebSessions(self.ctx).end(found[0].id)
        return access_pb2.RevokeReply()

    def _revocation(self, view: ClusterView, request: Any, by: str) -> Revocation:
        name, now = request.name, self.ctx.now()
        if not name:
            raise invalid_argument(f"specify whose certificates to revoke; see '{_LISTING}'")
        match request.kind:
            case "certificate":
                found = _certificate(view, name)
                return Revocation(
                    id=found.id,
                    serial=found.id,
                    role=found.role,
                    name=found.name,
                    at=now,
                    expires_at=found.expires_at,
                    reason=request.reason,
                    by=by,
                )
            case "node":
                role, holder = "worker", _node(view, name)
            case "manager":
                self._check_manager(name)
                role, holder = "manager", _holder(view, "manager", name)
            case "admin":
                role, holder = "admin", _holder(view, "admin", name)
            case other:
                raise invalid_argument(
                    f"'{other}' cannot be revoked; say node, manager, admin, certificate or session"
                )
        return new_revocation(view, role=role, name=holder, now=now, reason=request.reason, by=by)

    def _check_manager(self, name: str) -> None:
        if name == self.ctx.identity.manager_id:
            raise failed_precondition(
                f"manager {name} serves this cluster, and has the CA's key: it could issue itself "
                "another certificate; move the cluster to another host, and revoke this one then"
            )


def _order(certificate: Certificate) -> tuple[str, str, float]:
    return certificate.role, certificate.hostname or certificate.name, certificate.issued_at


def _certificate(view: ClusterView, word: str) -> Certificate:
    """The certificate whose serial number or fingerprint begins with `word`; colons are ignored."""
    digits = word.lower().replace(":", "").removeprefix("0x")
    serial = digits.lstrip("0")
    found = [
        each
        for each in view.certificates.values()
        if len(digits) >= _SHORTEST
        and (each.id.startswith(serial) or each.fingerprint.startswith(digits))
    ]
    if not found:
        raise not_found(f"no certificate with the serial number '{word}'; see '{_LISTING}'")
    if len(found) > 1:
        raise invalid_argument(
            f"'{word}' is a prefix of {len(found)} certificates; use a longer one ('{_LISTING}')"
        )
    return found[0]


def _node(view: ClusterView, word: str) -> str:
    """The id of a node, including removed ones."""
    try:
        return find_node(view, word).id
    except RequestError as refusal:
        removed = {
            each.name
            for each in view.certificates.values()
            if each.role == "worker" and word in (each.name, each.hostname)
        }
        if len(removed) > 1:
            raise invalid_argument(
                f"{len(removed)} removed nodes were named '{word}'; use the id ('{_LISTING}')"
            ) from None
        if not removed:
            raise refusal
        return removed.pop()


def _holder(view: ClusterView, role: str, name: str) -> str:
    if certificates_of(view, role, name):
        return name
    names = sorted({each.name for each in view.certificates.values() if each.role == role})
    guess = near_miss(name, names)
    hint = f"did you mean '{guess}'?" if guess else f"see '{_LISTING}'"
    raise not_found(f"no {role} '{name}' has a certificate; {hint}")
