# SPDX-License-Identifier: Apache-2.0
"""gRPC interceptor that records a span for each call of a user."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from orchestrator.identity.roles import ALLOWED, within
from orchestrator.tracing.spans import HEADER, Tracer


class TracingInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Records calls of users as spans, in the caller's trace or a new one. Calls of nodes are not
    recorded: they last as long as the node."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(details)
        method = str(details.method).strip("/")
        if handler is None or "admin" not in ALLOWED.get(method.partition("/")[0], ()):
            return handler

        @asynccontextmanager
        async def traced(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
            sent = dict(context.invocation_metadata() or ())
            with self._tracer.span(method, str(sent.get(HEADER, "")), kind="server"):
                try:
                    yield
                except grpc.aio.AbortError:
                    # The error's text becomes the span's.
                    raise grpc.aio.AbortError(context.details()) from None

        return within(handler, traced)
