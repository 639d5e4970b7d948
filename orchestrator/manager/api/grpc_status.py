# SPDX-License-Identifier: Apache-2.0
"""Errors of operations as gRPC status codes, with one line for the user as the details."""

from __future__ import annotations

import functools
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from orchestrator.identity.tls import peer_identity
from orchestrator.manager.operations.context import Attempt, Caller, request_error
from orchestrator.manager.store.request_records import AlreadyApplied

log = logging.getLogger(__name__)

RETRY = "orc-retry"
"""Trailer of an error: the same manager can probably serve the call in a moment."""

REQUEST_ID = "orc-request-id"
ATTEMPT = "orc-attempt"
"""Metadata of requests; see `client_calls`."""

ServicerContext = grpc.aio.ServicerContext[Any, Any]


def caller_of(context: ServicerContext) -> Caller:
    """The caller, by the certificate that the TLS handshake verified."""
    identity = peer_identity(context)
    assert identity is not None, "the role guard admits no call without a certificate"
    return Caller(identity, context.peer())


def metadata_of(context: ServicerContext, key: str) -> str:
    """A value of the call's metadata; empty if it is absent or not text."""
    value = dict(context.invocation_metadata() or ()).get(key, "")
    return value if isinstance(value, str) else ""


def attempt_of(context: ServicerContext) -> Attempt:
    """Which attempt a call is, by its metadata; the first one of a client that sends none."""
    request_id = metadata_of(context, REQUEST_ID) or secrets.token_hex(8)
    return Attempt(request_id, metadata_of(context, ATTEMPT) not in ("", "1"))


def unary(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A handler that answers with one message: abort the call with the status of its error."""

    @functools.wraps(method)
    async def handler(self: Any, request: Any, context: ServicerContext) -> Any:
        try:
            return await method(self, request, context)
        except AlreadyApplied:
            raise  # answered from the request's record
        except Exception as error:
            await _abort(context, error)

    return handler


def streaming(method: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    """A handler that answers with a stream: abort the call with the status of its error."""

    @functools.wraps(method)
    async def handler(self: Any, request: Any, context: ServicerContext) -> AsyncIterator[Any]:
        try:
            async for reply in method(self, request, context):
                yield reply
        except Exception as error:
            await _abort(context, error)

    return handler


async def _abort(context: ServicerContext, error: Exception) -> None:
    refused = request_error(error)
    if refused is not None:
        trailers = ((RETRY, "1"),) if refused.retry else ()
        await context.abort(grpc.StatusCode[refused.kind.name], refused.text, trailers)
    log.exception("a call failed", exc_info=error)
    await context.abort(
        grpc.StatusCode.INTERNAL, f"internal error of the manager: {error!r}; see its log"
    )
