# SPDX-License-Identifier: Apache-2.0
"""Which role may call which RPC: one table, enforced before any handler runs."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc

from orchestrator.identity.revocation import REVOKED_SERIAL, CertificateRevoked, Revocations
from orchestrator.identity.tls import Identity, peer_identity

log = logging.getLogger(__name__)

ALLOWED: dict[str, frozenset[str]] = {
    "orchestrator.v1.Control": frozenset({"admin"}),
    "orchestrator.v1.Managers": frozenset({"admin"}),
    "orchestrator.v1.Security": frozenset({"admin"}),
    "orchestrator.v1.Membership": frozenset({"manager"}),
    "orchestrator.v1.Relay": frozenset({"manager"}),
    "orchestrator.v1.Interact": frozenset({"admin"}),
    "orchestrator.v1.Policies": frozenset({"admin"}),
    "orchestrator.v1.Dashboard": frozenset({"admin"}),
    "orchestrator.v1.Jobs": frozenset({"admin"}),
    "orchestrator.v1.Volumes": frozenset({"admin"}),
    "orchestrator.v1.Documents": frozenset({"admin"}),
    "orchestrator.v1.Networks": frozenset({"admin"}),
    "orchestrator.v1.Doctor": frozenset({"admin"}),
    "orchestrator.v1.Containers": frozenset({"admin"}),
    "orchestrator.v1.System": frozenset({"admin"}),
    "orchestrator.v1.Support": frozenset({"admin"}),
    "orchestrator.v1.Images": frozenset({"admin"}),
    "orchestrator.v1.Access": frozenset({"admin"}),
    "orchestrator.v1.Audit": frozenset({"admin"}),
    "orchestrator.v1.Backup": frozenset({"admin"}),
    "orchestrator.v1.Certificates": frozenset({"admin", "worker"}),
    "orchestrator.v1.Sources": frozenset({"worker"}),
    "orchestrator.v1.Dispatch": frozenset({"worker"}),
    "orchestrator.v1.Blobs": frozenset({"worker", "manager"}),
}
"""Service → roles that may call it. Other services need no certificate (see `OPEN`) or are
refused."""

OPEN = frozenset({"orchestrator.v1.Join"})
"""Services for hosts that have no certificate yet."""


def may_call(identity: Identity | None, service: str, cluster_id: str) -> str:
    """Why `identity` may not call `service`, as one line for the user; empty when it may."""
    if service in OPEN:
        return ""
    roles = ALLOWED.get(service)
    if roles is None:
        return f"no role may call {service}"
    if identity is None:
        return "this needs a certificate of the cluster"
    if identity.cluster_id != cluster_id:
        return "this certificate is of another cluster"
    if identity.role not in roles:
        return f"a certificate with the role '{identity.role}' may not call {service}"
    return ""


_LOG_AGAIN = 60.0
"""Seconds between two log entries about one revoked certificate."""
_MOST_TOLD = 1000


class RoleGuard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses each call that the table does not allow or whose certificate was revoked, and logs
    it. Cancels calls in progress when their certificates are revoked."""

    def __init__(
        self,
        cluster_id: str,
        revocations: Revocations,
        seen: Callable[[Identity, str], None] = lambda identity, peer: None,
    ) -> None:
        """`seen` is called with each permitted caller and its address."""
        self._cluster_id = cluster_id
        self._revocations = revocations
        self._seen = seen
        self._told: dict[str, float] = {}
        """Serial number of a revoked certificate → when its use was logged."""

    def _should_log(self, identity: Identity) -> bool:
        """Whether to log the use of a revoked certificate: rate-limited, since a removed node keeps
        dialing."""
        serial = identity.certificate.serial if identity.certificate else ""
        now = time.monotonic()
        if now < self._told.get(serial, -_LOG_AGAIN) + _LOG_AGAIN:
            return False
        if len(self._told) >= _MOST_TOLD:
            self._told.clear()
        self._told[serial] = now
        return True

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        handler: Any = await continuation(details)
        if handler is None:
            return None
        method = str(details.method)
        service = method.strip("/").partition("/")[0]

        @asynccontextmanager
        async def checked(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
            identity = peer_identity(context)
            facts = {
                "method": method,
                "peer": context.peer(),
                "identity": identity.id if identity else "none",
                "role": identity.role if identity else "none",
            }
            refusal = may_call(identity, service, self._cluster_id)
            if refusal:
                log.warning("call refused", extra={**facts, "reason": refusal})
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, refusal)
            if identity is None:
                yield
                return
            try:
                async with self._revocations.call(identity):
                    self._seen(identity, context.peer())
                    yield
            except CertificateRevoked as revoked:
                if self._should_log(identity):
                    log.warning("call refused", extra={**facts, "reason": revoked})
                trailing = tuple(context.trailing_metadata() or ())
                if identity.certificate is not None:
                    trailing += ((REVOKED_SERIAL, identity.certificate.serial),)
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(revoked), trailing)

        return within(handler, checked)


def within(
    handler: Any,
    block: Callable[[grpc.aio.ServicerContext[Any, Any]], AbstractAsyncContextManager[None]],
) -> Any:
    """The same handler, within a block of each call. Only whether the response is unary or
    streaming matters here."""
    streams = handler.response_streaming
    inner: Any = (
        (handler.stream_stream or handler.unary_stream)
        if streams
        else (handler.stream_unary or handler.unary_unary)
    )

    async def unary(request: Any, context: Any) -> Any:
        async with block(context):
            return await inner(request, context)

    async def stream(request: Any, context: Any) -> None:
        async with block(context):
            if inspect.isasyncgenfunction(inner):
                async for item in inner(request, context):
                    await context.write(item)
            else:
                await inner(request, context)

    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, streams]
    return make(
        stream if streams else unary,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
