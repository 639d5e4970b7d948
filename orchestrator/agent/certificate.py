"""This node's certificate: renewed by the manager in session, before it ends."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from orchestrator.identity.certificates import Issued, PairFiles
from orchestrator.identity.renewal import NotRenewed, keep_renewed, request_elsewhere
from orchestrator.pb import certificates_pb2, certificates_pb2_grpc

_TIMEOUT = 10.0
"""Seconds that a manager may take to sign."""


class Certificate:
    """Keeps the certificate in `files` one that counts."""

    def __init__(self, files: PairFiles, channel: Callable[[], grpc.aio.Channel | None]) -> None:
        """`channel` leads to the manager in session, if one is."""
        self._files = files
        self._channel = channel

    @property
    def serial(self) -> str:
        """Its serial number, in lower-case hexadecimal digits; empty if it cannot be read."""
        try:
            issued = Issued.of(self._files.read().certificate)
        except OSError:
            return ""
        return issued.serial if issued else ""

    async def run(self, unit: float) -> None:
        """Renew it each time that its time has come, until cancelled; see `keep_renewed`."""
        await keep_renewed(self._files, request_elsewhere, self._sign, unit=unit)

    async def _sign(self, request: str) -> str:
        channel = self._channel()
        if channel is None:
            raise NotRenewed("no manager can be reached")
        try:
            reply = await certificates_pb2_grpc.CertificatesStub(channel).Renew(
                certificates_pb2.RenewRequest(csr=request), timeout=_TIMEOUT
            )
        except grpc.aio.AioRpcError as error:
            raise NotRenewed(error.details() or error.code().name) from error
        return str(reply.certificate)
