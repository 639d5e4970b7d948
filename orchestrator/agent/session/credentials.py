# SPDX-License-Identifier: Apache-2.0
"""This node's certificate, renewed in time, and the certificates that it refuses as revoked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc

from orchestrator.agent.statedb import StateDb
from orchestrator.daemon.grpc_calls import ChannelClosed, answer
from orchestrator.identity.certificates import Issued, TlsFiles, issuer_key_id
from orchestrator.identity.renewal import NotRenewed, keep_renewed, request_elsewhere
from orchestrator.identity.revocation import Revocations, Revoked
from orchestrator.linux.atomicfile import write_file
from orchestrator.pb import certificates_pb2, certificates_pb2_grpc, dispatch_pb2, types_pb2

_TIMEOUT = 10.0
"""Seconds of a manager's signature."""


class NodeCertificate:
    """Keeps the certificate in `files` valid, and the CAs there as managers say."""

    def __init__(self, files: TlsFiles, channel: Callable[[], grpc.aio.Channel | None]) -> None:
        """`channel` is that of the current session, if there is one."""
        self._tls = files
        self._files = files.pair
        self._channel = channel
        self._signer = ""
        """Key id of the CA that signs; empty: not known."""
        self._wake = asyncio.Event()

    @property
    def serial(self) -> str:
        """Its serial number, in lower-case hexadecimal digits; empty if it cannot be read."""
        try:
            issued = Issued.of(self._files.read().certificate)
        except OSError:
            return ""
        return issued.serial if issued else ""

    async def run(self, unit: float) -> None:
        """Renew it whenever it is due, until cancelled; see `keep_renewed`."""
        await keep_renewed(
            self._files,
            request_elsewhere,
            self._sign,
            unit=unit,
            outdated=lambda certificate: self._signer not in ("", issuer_key_id(certificate)),
            wake=self._wake,
        )

    def trust(self, order: dispatch_pb2.Trust) -> None:
        """Trust these CAs in new connections, and renew the certificate if another one than the
        signer issued it. Raises OSError."""
        if order.ca_certificates and self._tls.ca.read_text() != order.ca_certificates:
            write_file(self._tls.ca, order.ca_certificates, mode=0o644)
        self._signer = order.signer
        self._wake.set()

    async def _sign(self, request: str) -> str:
        channel = self._channel()
        if channel is None:
            raise NotRenewed("no manager can be reached")
        try:
            reply = await answer(
                certificates_pb2_grpc.CertificatesStub(channel).Renew(
                    certificates_pb2.RenewRequest(csr=request), timeout=_TIMEOUT
                )
            )
        except ChannelClosed as error:
            raise NotRenewed(f"the session with the manager ended: {error}") from error
        except grpc.aio.AioRpcError as error:
            raise NotRenewed(error.details() or error.code().name) from error
        return str(reply.certificate)


class RevocationStore:
    """Applies lists of managers to `revocations`, and keeps them in the state file."""

    def __init__(self, db: StateDb, revocations: Revocations, now: Callable[[], float]) -> None:
        self._db = db
        self._revocations = revocations
        self._now = now
        self._known = {each.id: each for each in db.revocations().added}
        self._apply()

    def take(self, update: dispatch_pb2.RevocationList) -> None:
        """Take a complete list, or a change of it."""
        known: dict[str, types_pb2.Revocation] = {} if update.full else self._known
        known |= {each.id: each for each in update.added}
        for id in update.removed:
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
