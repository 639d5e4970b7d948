# SPDX-License-Identifier: Apache-2.0
"""gRPC interceptor that records mutating calls in the audit trail."""

from __future__ import annotations

import asyncio
import inspect
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from orchestrator.identity.tls import peer_identity
from orchestrator.manager.audit.audited_methods import MUTATING, Rule, value_at
from orchestrator.manager.audit.trail import AuditEntry, AuditTrail
from orchestrator.manager.errors import RequestError
from orchestrator.manager.object_lookup import (
    find_container,
    find_job,
    find_network,
    find_node,
    find_service,
)
from orchestrator.manager.planning.view import ClusterView

REQUEST_ID = "orc-request-id"
"""Metadata key of a call's id: chosen by the client, or returned to it."""
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_STATUS = {status.value[0]: status.name for status in grpc.StatusCode}


def subject_of(view: ClusterView, kind: str, word: str) -> tuple[str, str]:
    """Name and id of the object that a user calls `word`, as far as it exists."""
    try:
        match kind:
            case "service":
                service = find_service(view, word)
                return service.spec.name, service.id
            case "job":
                service = find_job(view, word)
                return service.spec.name, service.id
            case "node":
                node = find_node(view, word)
                return node.description.hostname, node.id
            case "network":
                network = find_network(view, word)
                return network.name, network.id
            case "container":
                task = find_container(view, word)
                return task.container_name or word, task.id
    except RequestError:
        pass
    return word, ""


class _Call:
    """A call in progress."""

    def __init__(self, trail: _Recorder, method: str, rule: Rule, context: Any) -> None:
        self._trail = trail
        self._method = method
        self._rule = rule
        self._began, self._clock = time.time(), time.monotonic()
        self._kind = rule.kind if isinstance(rule.kind, str) else ""
        self._name = self._id = ""
        self._identity = peer_identity(context)
        self._address = peer_address(context.peer())
        asked = dict(context.invocation_metadata() or ()).get(REQUEST_ID, "")
        known = isinstance(asked, str) and _ID.fullmatch(asked) is not None
        self._request_id = str(asked) if known else secrets.token_hex(8)
        context.set_trailing_metadata(((REQUEST_ID, self._request_id),))

    def request(self, message: Any) -> None:
        """Process the first message of the caller."""
        self._kind = self._rule.kind_of(message)
        word = next(filter(None, (value_at(message, path) for path in self._rule.asked)), "")
        if word:
            # Looked up before the call: afterwards it may be gone.
            self._name, self._id = subject_of(self._trail.view(), self._kind, word)
        if self._rule.lasts:
            self._record("STARTED")

    def requests(self, messages: Any) -> _InspectedRequests:
        """The caller's messages; the first one is inspected."""
        return _InspectedRequests(messages, self.request)

    def reply(self, message: Any) -> None:
        """Process a message of the reply."""
        self._name = value_at(message, self._rule.name) or self._name
        self._id = value_at(message, self._rule.id) or self._id

    @asynccontextmanager
    async def recorded(self, context: Any) -> AsyncIterator[None]:
        """Record the call when the body ends."""
        result = "UNKNOWN"
        try:
            yield
            result = _status(context)
        except grpc.aio.AbortError:
            result = _status(context)
            raise
        except asyncio.CancelledError:
            result = grpc.StatusCode.CANCELLED.name
            raise
        finally:
            self._record(result)

    def _record(self, result: str) -> None:
        identity = self._identity
        issued = identity.certificate if identity else None
        self._trail.trail.record(
            AuditEntry(
                at=self._began,
                user=identity.id if identity else "",
                role=identity.role if identity else "",
                certificate=issued.serial if issued else "",
                via="api",
                address=self._address,
                method=self._method,
                kind=self._kind,
                name=self._name,
                id=self._id,
                result=result,
                seconds=round(time.monotonic() - self._clock, 6),
                request=self._request_id,
                manager=self._trail.manager,
            )
        )


def peer_address(peer: str) -> str:
    """IP address and port in gRPC's text of a peer."""
    kind, _, rest = peer.partition(":")
    return rest.replace("%5B", "[").replace("%5D", "]") if kind in ("ipv4", "ipv6") else peer


def _status(context: Any) -> str:
    code = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else _STATUS.get(code or 0, "UNKNOWN")


class _InspectedRequests:
    """A caller's messages; the first one is inspected."""

    def __init__(self, messages: Any, first: Callable[[Any], None]) -> None:
        self._messages = aiter(messages)
        self._first: Callable[[Any], None] | None = first

    def __aiter__(self) -> _InspectedRequests:
        return self

    async def __anext__(self) -> Any:
        message = await anext(self._messages)
        if self._first is not None:
            first, self._first = self._first, None
            first(message)
        return message


class _InspectedContext:
    """A call's context; the messages of its reply are inspected."""

    def __init__(self, context: Any, shown: Callable[[Any], None]) -> None:
        self._context = context
        self._shown = shown

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: Any) -> None:
        self._shown(message)
        await self._context.write(message)


@dataclass(frozen=True, slots=True)
class _Recorder:
    """Where calls are recorded, and by which manager."""

    trail: AuditTrail
    manager: str
    view: Callable[[], ClusterView]


class AuditInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Records each mutating call when it ends, including refused ones. The outermost
    interceptor."""

    def __init__(self, trail: AuditTrail, manager: str, view: Callable[[], ClusterView]) -> None:
        self._recorder = _Recorder(trail, manager, view)

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        handler: Any = await continuation(details)
        method = str(details.method).strip("/").removeprefix("orchestrator.v1.").replace("/", ".")
        rule = MUTATING.get(method)
        if handler is None or rule is None:
            return handler
        asks, answers = handler.request_streaming, handler.response_streaming
        inner: Any = (
            (handler.stream_stream if answers else handler.stream_unary)
            if asks
            else (handler.unary_stream if answers else handler.unary_unary)
        )
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[asks, answers]

        def watched(call: _Call, request: Any) -> Any:
            if asks:
                return call.requests(request)
            call.request(request)
            return request

        async def unary(request: Any, context: Any) -> Any:
            call = _Call(self._recorder, method, rule, context)
            async with call.recorded(context):
                reply = await inner(watched(call, request), context)
                if reply is not None:
                    call.reply(reply)
                return reply

        async def stream(request: Any, context: Any) -> None:
            call = _Call(self._recorder, method, rule, context)
            async with call.recorded(context):
                shown = _InspectedContext(context, call.reply) if rule.name or rule.id else context
                answer = inner(watched(call, request), shown)
                if inspect.isasyncgen(answer):
                    async for message in answer:
                        await shown.write(message)
                else:
                    await answer

        return make(
            stream if answers else unary,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
