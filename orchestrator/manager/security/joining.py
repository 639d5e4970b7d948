# SPDX-License-Identifier: Apache-2.0
"""The join port: a host without a certificate gets one for its join token."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc

from orchestrator.identity import ca
from orchestrator.identity.authority import CannotSign
from orchestrator.identity.certificates import Issued, own_key_id
from orchestrator.manager.cluster.version_skew import refusal_to_join
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.reports.claims import is_hostname, with_hostname
from orchestrator.manager.security.certificates import CertificateAuthority, record
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import NODE_TURN
from orchestrator.manager.store.kv import Conflict, Guard, Kv, Put, StoreError
from orchestrator.manager.store.outages import bridge_outage
from orchestrator.model.administration.access import CaRotation, Certificate
from orchestrator.model.nodes import Node, NodeDescription
from orchestrator.pb import identity_pb2, identity_pb2_grpc

log = logging.getLogger(__name__)

_RENEWAL = 15.0
"""Seconds that a manager has to renew its certificate once another CA signs."""
_RETRY = 0.2


class JoinService(identity_pb2_grpc.JoinServicer):  # type: ignore[misc]
    """gRPC service: hands out the CA's certificate, and certificates of nodes and managers for a
    valid token."""

    def __init__(
        self,
        kv: Kv,
        cache: Cache,
        authority: CertificateAuthority,
        presented: Callable[[], str],
        managers: Callable[[], list[str]],
        now: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        """`presented` returns the key id of the CA that issued the certificate which the join port
        presents."""
        self._kv = kv
        self._cache = cache
        self._authority = authority
        self._presented = presented
        self._managers = managers
        self._now = now
        self._new_id = new_id

    async def GetCa(self, request: Any, context: Any) -> Any:
        """The CA's certificate. During a rotation, waits until the port presents a certificate of
        the CA that the token names: it may name the new one as soon as another manager knows that
        it signs."""
        cluster = self._cache.view.cluster
        rotation = cluster.ca_rotation if cluster else CaRotation()
        if not rotation.successor or not request.digest:
            return identity_pb2.GetCaReply(ca_certificate=self._authority.certificate)
        if rotation.signing_since and request.digest == ca.digest(rotation.former):
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                "this join token is from before a rotation of the cluster's CA; get the current "
                "one with 'orc cluster token worker' or 'orc cluster token manager'",
            )
        if request.digest == ca.digest(rotation.successor):
            try:
                await self._present(own_key_id(rotation.successor))
            except TimeoutError:
                await context.abort(
                    grpc.StatusCode.ABORTED,
                    "this manager has no certificate of the cluster's new CA yet; try again, or "
                    "join at another manager ('orc cluster ca status' shows who has one)",
                )
        return identity_pb2.GetCaReply(ca_certificate=self._authority.certificate)

    async def _present(self, issuer: str) -> None:
        """Wait until the port presents a certificate of this CA. Raises TimeoutError."""
        async with asyncio.timeout(_RENEWAL), self._cache.subscribe() as feed:
            while self._presented() != issuer:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_RETRY):
                        await feed.next()

    async def Sign(self, request: Any, context: Any) -> Any:
        cluster = self._cache.view.cluster
        if cluster is None:
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, "the manager is starting; try again in a moment"
            )
            return None
        if hmac.compare_digest(request.secret.encode(), cluster.manager_token.encode()):
            return await self._sign_manager(request, context, cluster.id)
        if not hmac.compare_digest(request.secret.encode(), cluster.worker_token.encode()):
            log.warning(
                "join refused",
                extra={"peer": context.peer(), "hostname": request.hostname, "reason": "token"},
            )
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                "this join token is not valid (any more); "
                "get the current one with 'orc cluster token worker'",
            )
        await _check_role("worker", request, context)
        await self._check_version(request, context)
        if not is_hostname(request.hostname):
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"{request.hostname[:64]!r} is not a hostname; set one with 'hostnamectl hostname'",
            )
        now = self._now()
        node_id = self._new_id()
        try:
            certificate = await self._authority.sign(
                request.csr, name=node_id, role="worker", cluster=cluster.id
            )
        except ca.BadRequest as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except CannotSign as error:
            log.warning("join failed", extra={"hostname": request.hostname, "reason": error})
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        node = Node(
            id=node_id,
            created_at=now,
            state_since=now,
            message="joined; its agent has not connected yet",
            description=NodeDescription(hostname=request.hostname),
            restricted=True,
        )
        facts = Issued.of(certificate)
        assert facts is not None
        issued = record(
            facts,
            role="worker",
            name=node_id,
            address=context.peer(),
            hostname=request.hostname,
        )
        try:
            other = await self._add(node, issued)
        except StoreError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"etcd is unavailable: {error}")
        if other is not None:
            log.warning(
                "join refused",
                extra={"peer": context.peer(), "hostname": request.hostname, "reason": "hostname"},
            )
            await context.abort(
                grpc.StatusCode.ALREADY_EXISTS,
                f"node {other.id} has the hostname '{request.hostname}' and is "
                f"{other.state.name.lower()}; give this host another one, or remove that node "
                f"first: orc node rm {other.id}",
            )
        log.info("node joined", extra={"node": node_id, "hostname": request.hostname})
        return identity_pb2.SignReply(
            certificate=certificate,
            node_id=node_id,
            role="worker",
            cluster_id=cluster.id,
            managers=self._managers(),
        )

    async def _check_version(self, request: Any, context: Any) -> None:
        """Refuse a host whose release does not work with the cluster's."""
        if reason := refusal_to_join(self._cache.view, request.hostname[:64], request.version):
            log.warning("join refused", extra={"peer": context.peer(), "reason": reason})
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, reason)

    async def _sign_manager(self, request: Any, context: Any, cluster: str) -> Any:
        """A manager's certificate. Nothing else is written before the host enrols with it."""
        await _check_role("manager", request, context)
        await self._check_version(request, context)
        try:
            address = str(ipaddress.ip_address(request.address))
        except ValueError:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"'{request.address[:64]}' is not an IP address",
            )
        manager_id = self._new_id()
        try:
            certificate = await self._authority.sign(
                request.csr,
                name=manager_id,
                role="manager",
                cluster=cluster,
                addresses=(address, "127.0.0.1"),
            )
        except ca.BadRequest as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except CannotSign as error:
            log.warning("join failed", extra={"hostname": request.hostname, "reason": error})
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        facts = Issued.of(certificate)
        assert facts is not None
        issued = record(
            facts,
            role="manager",
            name=manager_id,
            address=context.peer(),
            hostname=request.hostname,
        )
        try:
            await self._record(issued)
        except StoreError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"etcd is unavailable: {error}")
        log.info(
            "manager got a certificate",
            extra={"manager": manager_id, "hostname": request.hostname},
        )
        return identity_pb2.SignReply(
            certificate=certificate,
            node_id=manager_id,
            role="manager",
            cluster_id=cluster,
            managers=self._managers(),
        )

    async def _record(self, issued: Certificate) -> None:
        """Record a certificate. Raises StoreError."""

        async def attempt() -> None:
            with suppress(Conflict):  # an attempt whose answer was lost has recorded it
                await self._cache.wait_for(await commit(self._kv, [Change(None, issued)]))

        await bridge_outage(attempt)

    async def _add(self, node: Node, issued: Certificate) -> Node | None:
        """Commit a joining node and its certificate. If another node has its hostname, return that
        node and write nothing. Raises StoreError."""

        async def attempt() -> Node | None:
            while True:
                turn = await self._kv.get(NODE_TURN)
                stamp = turn.mod_revision if turn else 0
                await self._cache.wait_for(stamp)
                seen, view = self._cache.revision, self._cache.view
                if node.id in view.nodes:
                    return None  # by an attempt whose answer was lost
                if (other := with_hostname(view, node.description.hostname)) is not None:
                    return other
                with suppress(Conflict):
                    revision = await commit(
                        self._kv,
                        [Change(None, node), Change(None, issued)],
                        guards=[Guard(NODE_TURN, mod_revision=stamp)],
                        ops=[Put(NODE_TURN, node.id.encode())],
                        seen=seen,
                    )
                    await self._cache.wait_for(revision)
                    return None

        return await bridge_outage(attempt)


async def _check_role(role: str, request: Any, context: Any) -> None:
    """Abort the call if the host cannot take on the role that its token is for."""
    if role in (request.roles or ("worker",)):
        return
    what, other = ("manager", "worker") if role == "manager" else ("node", "manager")
    await context.abort(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"this token is for a {what}, and this host is one already or cannot be one; "
        f"'orc cluster token {other}' prints the other token",
    )
