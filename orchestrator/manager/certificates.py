"""Certificates are renewed: for nodes and people who ask with the one they have, and one's own."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable
from typing import Any

import grpc

from orchestrator.identity import ca
from orchestrator.identity.files import ManagerIdentity
from orchestrator.identity.pair import KeyPair, TlsFiles
from orchestrator.identity.renewal import keep_renewed
from orchestrator.identity.tls import peer_identity
from orchestrator.manager.planning.views import ClusterView
from orchestrator.pb import certificates_pb2, certificates_pb2_grpc

log = logging.getLogger(__name__)


class Authority:
    """What the CA of the cluster signs, and for how long."""

    def __init__(
        self, pair: KeyPair, view: Callable[[], ClusterView], now: Callable[[], float]
    ) -> None:
        self._pair = pair
        self._view = view
        self._now = now

    @property
    def certificate(self) -> str:
        """The CA's own, PEM."""
        return self._pair.certificate

    def sign(
        self, request: str, *, name: str, role: str, cluster: str, addresses: tuple[str, ...] = ()
    ) -> str:
        """A certificate for the cluster's time. Raises `ca.BadRequest`."""
        stored = self._view().cluster
        return ca.sign(
            self._pair,
            request,
            common_name=name,
            role=role,
            cluster_id=cluster,
            now=dt.datetime.fromtimestamp(self._now(), dt.UTC),
            addresses=addresses,
            lifetime=lifetime(stored.certificate_lifetime if stored else 0.0),
        )


def lifetime(seconds: float) -> dt.timedelta:
    """Of certificates, where a cluster says so many seconds; 0: it says nothing."""
    return dt.timedelta(seconds=seconds) if seconds else ca.LIFETIME


class Certificates(certificates_pb2_grpc.CertificatesServicer):  # type: ignore[misc]
    """Who has a certificate of the cluster gets the next one: for the same name and role."""

    def __init__(self, authority: Authority, view: Callable[[], ClusterView]) -> None:
        self._authority = authority
        self._view = view

    async def Renew(self, request: Any, context: Any) -> Any:
        caller = peer_identity(context)
        assert caller is not None, "the guard lets nobody in without one"
        if caller.role == "worker" and caller.id not in self._view().nodes:
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                "this node was removed from the cluster; it can join anew",
            )
        try:
            certificate = self._authority.sign(
                request.csr, name=caller.id, role=caller.role, cluster=caller.cluster_id
            )
        except ca.BadRequest as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        log.info("certificate renewed", extra={"holder": caller.id, "role": caller.role})
        return certificates_pb2.RenewReply(certificate=certificate)


async def keep_own(
    authority: Authority, identity: ManagerIdentity, files: TlsFiles, unit: float
) -> None:
    """Renew this manager's certificate whenever its time has come, until cancelled."""

    async def request() -> tuple[str, str]:
        return ca.new_request()

    async def sign(asked: str) -> str:
        return authority.sign(
            asked,
            name=identity.manager_id,
            role="manager",
            cluster=identity.cluster_id,
            addresses=(identity.address, "127.0.0.1"),
        )

    await keep_renewed(files.pair, request, sign, unit=unit)
