# SPDX-License-Identifier: Apache-2.0
"""The cluster's certificates: issuing, renewal, records and revocation.

Each certificate that the CA issues is recorded in the store (`Certificate`) until it expires. Those
issued without a manager (`orc cluster init`, `orc cluster admin`), or by an earlier version, are
recorded at their first use.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import grpc

from orchestrator.identity import ca
from orchestrator.identity.authority import Authority, CannotSign
from orchestrator.identity.certificates import (
    Issued,
    TlsFiles,
    issuer_key_id,
    own_key_id,
)
from orchestrator.identity.host_identity import ManagerIdentity
from orchestrator.identity.renewal import NotRenewed, keep_renewed
from orchestrator.identity.revocation import CertificateRevoked, Revocations, Revoked
from orchestrator.identity.tls import Identity, host_of, peer_identity
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import CERTIFICATE_TURN
from orchestrator.manager.store.kv import Conflict, Guard, Kv, Put, StoreError
from orchestrator.model.administration.access import CaRotation, Certificate, Revocation
from orchestrator.model.objects import Cluster
from orchestrator.pb import certificates_pb2, certificates_pb2_grpc

log = logging.getLogger(__name__)

ADMIN_RENEWAL = 365 * 86400.0
"""Seconds during which an admin's certificate can be renewed, so that a copied context expires even
if the copy goes unnoticed. Certificates of nodes can be renewed for as long as they are nodes."""
_FOLLOWING = 10.0
"""Seconds for a manager to use another CA, once the store says so."""
_SWEEP = 600.0
"""Seconds between deletions of expired records."""
_MAX_UNRECORDED = 10_000
"""Certificates waiting to be recorded, at most."""


class CertificateAuthority:
    """The cluster's CA: signs certificates with the cluster's lifetime."""

    def __init__(
        self, authority: Authority, view: Callable[[], ClusterView], now: Callable[[], float]
    ) -> None:
        self._authority = authority
        self._link = ""
        self._used = asyncio.Event()
        """Set when another CA signs."""
        self._view = view
        self._now = now

    @property
    def certificate(self) -> str:
        """The CA's own certificate, PEM."""
        return self._authority.certificate

    @property
    def key_id(self) -> str:
        """Key id of the CA, as in what it signs."""
        return own_key_id(self._authority.certificate)

    def use(self, authority: Authority, link: str = "") -> None:
        """Sign with this CA from now on. `link` (PEM) is added to what is signed: the CA's
        certificate, signed by the former one."""
        self._authority, self._link = authority, link
        self._used.set()
        self._used = asyncio.Event()

    async def _follow(self, cluster: Cluster | None) -> None:
        """Wait until this manager signs with the CA that the cluster says. Raises CannotSign."""
        try:
            async with asyncio.timeout(_FOLLOWING):
                while cluster and own_key_id(cluster.ca_certificate) != self.key_id:
                    await self._used.wait()
                    cluster = self._view().cluster
        except TimeoutError:
            raise CannotSign(
                "this manager cannot sign with the cluster's CA yet; its log says why"
            ) from None

    async def sign(
        self,
        request: str,
        *,
        name: str,
        role: str,
        cluster: str,
        addresses: tuple[str, ...] = (),
        until: float = float("inf"),
    ) -> str:
        """Sign a certificate with the cluster's lifetime, but not beyond `until`; an external CA
        decides on that itself. Raises `ca.BadRequest`, CannotSign."""
        await self._follow(self._view().cluster)
        stored, now = self._view().cluster, self._now()
        most = lifetime(stored.certificate_lifetime if stored else 0.0)
        if until - now < most.total_seconds():
            most = dt.timedelta(seconds=until - now)
        authority, link = self._authority, self._link
        sign = partial(
            authority.sign,
            request,
            common_name=name,
            role=role,
            cluster_id=cluster,
            now=dt.datetime.fromtimestamp(now, dt.UTC),
            addresses=addresses,
            lifetime=most,
        )
        return (await asyncio.to_thread(sign) if authority.external.url else sign()) + link


def lifetime(seconds: float) -> dt.timedelta:
    """Lifetime of certificates for the cluster's setting in seconds; 0: the default."""
    return dt.timedelta(seconds=seconds) if seconds else ca.LIFETIME


def record(
    issued: Issued, *, role: str, name: str, address: str, hostname: str = "", since: float = 0.0
) -> Certificate:
    """The record of a certificate; `address` is gRPC's text of the peer."""
    return Certificate(
        id=issued.serial,
        role=role,
        name=name,
        issued_at=issued.at,
        expires_at=issued.ends,
        fingerprint=issued.fingerprint,
        hostname=hostname,
        address=host_of(address) or address,
        since=since,
        ca=issued.ca,
    )


def as_revoked(revocation: Revocation) -> Revoked:
    """A revocation as servers check it."""
    return Revoked(
        revocation.serial, revocation.role, revocation.name, revocation.at, revocation.reason
    )


def new_revocation(
    view: ClusterView, *, role: str, name: str, now: float, reason: str, by: str
) -> Revocation:
    """The revocation of all certificates of a holder, including unknown ones. Replaces an earlier
    one of the same holder."""
    known = certificates_of(view, role, name)
    longest = max(ca.LIFETIME, lifetime(view.cluster.certificate_lifetime if view.cluster else 0))
    before = view.revocations.get(f"{role}.{name}")
    return Revocation(
        id=f"{role}.{name}",
        role=role,
        name=name,
        # The clocks of hosts that issue certificates may be ahead.
        at=max([now, *(each.issued_at for each in known)]),
        expires_at=max(
            now + longest.total_seconds(),
            *(each.expires_at for each in known),
            before.expires_at if before else 0.0,
        ),
        reason=reason,
        by=by,
        revision=before.revision if before else 0,
    )


def certificates_of(view: ClusterView, role: str, name: str) -> list[Certificate]:
    """The recorded certificates of a holder."""
    return [each for each in view.certificates.values() if (each.role, each.name) == (role, name)]


def revocation_for(
    revocations: Mapping[str, Revocation], certificate: Certificate
) -> Revocation | None:
    """The revocation of a certificate; None if it is valid."""
    for id in (certificate.id, f"{certificate.role}.{certificate.name}"):
        found = revocations.get(id)
        if found is not None and as_revoked(found).covers(
            certificate.role, certificate.name, certificate.id, certificate.issued_at
        ):
            return found
    return None


async def commit_serialized(
    kv: Kv, cache: Cache, choose: Callable[[ClusterView], Sequence[Change]]
) -> Sequence[Change]:
    """Commit the changes that `choose` returns for a view that has every renewal and revocation so
    far. Retried after a concurrent one. Raises StoreError, and what `choose` raises."""
    while True:
        turn = await kv.get(CERTIFICATE_TURN)
        stamp = turn.mod_revision if turn else 0
        await cache.wait_for(stamp)
        read = cache.revision
        changes = choose(cache.view)
        try:
            revision = await commit(
                kv,
                changes,
                guards=[Guard(CERTIFICATE_TURN, mod_revision=stamp)],
                ops=[Put(CERTIFICATE_TURN, b"")],
            )
        except Conflict as conflict:
            log.debug("certificates changed concurrently", extra={"keys": conflict.keys})
            await cache.wait_for(read + 1)
            continue
        await cache.wait_for(revision)
        return changes


class CertificateRenewal(certificates_pb2_grpc.CertificatesServicer):  # type: ignore[misc]
    """gRPC service: issues the next certificate to a holder, for the same name and role."""

    def __init__(self, authority: CertificateAuthority, kv: Kv, cache: Cache) -> None:
        self._authority = authority
        self._kv = kv
        self._cache = cache
        self._turn = asyncio.Lock()

    async def Renew(self, request: Any, context: Any) -> Any:
        caller = peer_identity(context)
        assert caller is not None, "the role guard admits no call without a certificate"
        had = caller.certificate
        made = trusted = ""

        def allowed(view: ClusterView) -> tuple[str, float]:
            """Hostname in the caller's record, and when its first certificate was issued. Raises
            CertificateRevoked, _Removed."""
            refuse_revoked(view, caller)
            if caller.role == "worker" and caller.id not in view.nodes:
                raise _Removed
            own = view.certificates.get(had.serial) if had else None
            since = (own.since if own else 0.0) or (had.at if had else 0.0)
            return own.hostname if own else "", since

        def recorded(view: ClusterView) -> list[Change]:
            nonlocal trusted
            # It may have been revoked while an external CA signed.
            hostname, since = allowed(view)
            issued = Issued.of(made)
            assert issued is not None
            made_now = record(
                issued,
                role=caller.role,
                name=caller.id,
                address=context.peer(),
                hostname=hostname,
                since=since,
            )
            rotation = view.cluster.ca_rotation if view.cluster else CaRotation()
            trusted = view.cluster.trusted_cas if view.cluster else ""
            return [Change(None, replace(made_now, told_ca=own_key_id(rotation.successor)))]

        try:
            _, since = allowed(self._cache.view)
            until = since + ADMIN_RENEWAL if caller.role == "admin" else float("inf")
            if had is not None and until <= had.ends:
                stored = self._cache.view.cluster
                if stored is None or not stored.ca_rotation.successor:
                    raise _RenewedForLong
                until = had.ends  # the same again, of the new CA
            made = await self._authority.sign(
                request.csr,
                name=caller.id,
                role=caller.role,
                cluster=caller.cluster_id,
                until=until,
            )
            async with self._turn:
                await commit_serialized(self._kv, self._cache, recorded)
        except CertificateRevoked as revoked:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(revoked))
        except _Removed:
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                "this node was removed from the cluster; it can join again",
            )
        except _RenewedForLong:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                "an admin's certificate is renewed for a year",
            )
        except ca.BadRequest as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except CannotSign as error:
            log.warning("cannot renew a certificate", extra={"holder": caller.id, "reason": error})
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        except StoreError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the store is unavailable: {error}")
        log.info("certificate renewed", extra={"holder": caller.id, "role": caller.role})
        return certificates_pb2.RenewReply(certificate=made, ca_certificates=trusted)


class _RenewedForLong(Exception):
    """The next certificate would not be valid longer than the current one."""


class _Removed(Exception):
    """The certificate belongs to a node that was removed."""


def refuse_revoked(view: ClusterView, caller: Identity) -> None:
    """Raise CertificateRevoked if the caller's certificate is revoked in this view."""
    issued = caller.certificate
    for each in view.revocations.values():
        found = as_revoked(each)
        if issued is not None and found.covers(caller.role, caller.id, issued.serial, issued.at):
            raise CertificateRevoked(caller.role, found)


class CertificateRegistry:
    """Maintains the records of certificates. Updates `revocations`, records certificates at their
    first use, and deletes expired records."""

    def __init__(
        self, kv: Kv, cache: Cache, revocations: Revocations, now: Callable[[], float]
    ) -> None:
        self._kv = kv
        self._cache = cache
        self._revocations = revocations
        self._now = now
        self._seen: dict[str, Certificate] = {}
        """By serial number: used, and not recorded yet."""
        self._wake = asyncio.Event()

    def seen(self, identity: Identity, peer: str) -> None:
        """A caller with this identity was admitted."""
        issued = identity.certificate
        if (
            issued is None
            or issued.serial in self._cache.view.certificates
            or issued.serial in self._seen
            or len(self._seen) >= _MAX_UNRECORDED
        ):
            return
        self._seen[issued.serial] = record(
            issued, role=identity.role, name=identity.id, address=peer
        )
        self._wake.set()

    async def run(self) -> None:
        """Maintain the records until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._record())
            group.create_task(self._sweep())

    async def _follow(self) -> None:
        async with self._cache.subscribe() as feed:
            told: Mapping[str, Revocation] | None = None
            while True:
                revoked = self._cache.view.revocations
                if revoked is not told:
                    told = revoked
                    self._revocations.replace(map(as_revoked, revoked.values()))
                await feed.next()

    async def _record(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            for serial, certificate in list(self._seen.items()):
                if serial not in self._cache.view.certificates:
                    await self._write(Change(None, certificate))
                del self._seen[serial]

    async def _sweep(self) -> None:
        while True:
            now, view = self._now(), self._cache.view
            recorded: list[Certificate | Revocation] = [*view.certificates.values()]
            recorded += view.revocations.values()
            for each in recorded:
                if each.expires_at < now:
                    await self._write(Change(each, None))
            for session in view.page_sessions.values():
                if session.can_be_forgotten(now):
                    await self._write(Change(session, None))
            await asyncio.sleep(_SWEEP)

    async def _write(self, change: Change) -> None:
        try:
            await write_record(self._kv, self._cache, change)
        except StoreError as error:
            log.warning("a certificate's record cannot be written", extra={"error": error})


async def write_record(kv: Kv, cache: Cache, change: Change) -> None:
    """Commit a record that other managers may write concurrently. Raises StoreError."""
    with suppress(Conflict):
        await cache.wait_for(await commit(kv, [change]))


async def maintain_own_certificate(
    authority: CertificateAuthority,
    identity: ManagerIdentity,
    files: TlsFiles,
    unit: float,
    records: CertificateRegistry,
    wake: asyncio.Event,
) -> None:
    """Record this manager's certificate, and renew it whenever it is due, until cancelled. `wake`
    is set when another CA signs."""

    def note(certificate: str) -> None:
        own = Identity(identity.manager_id, "manager", identity.cluster_id, Issued.of(certificate))
        records.seen(own, identity.address)

    async def request() -> tuple[str, str]:
        return ca.new_request()

    async def sign(asked: str) -> str:
        try:
            certificate = await authority.sign(
                asked,
                name=identity.manager_id,
                role="manager",
                cluster=identity.cluster_id,
                addresses=(identity.address, "127.0.0.1"),
            )
        except CannotSign as error:
            raise NotRenewed(str(error)) from error
        note(certificate)
        return certificate

    note(files.pair.read().certificate)
    await keep_renewed(
        files.pair,
        request,
        sign,
        unit=unit,
        outdated=lambda certificate: issuer_key_id(certificate) != authority.key_id,
        wake=wake,
    )
