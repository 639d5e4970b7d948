# SPDX-License-Identifier: Apache-2.0
"""The only importer of uvicorn: a server on a given socket and TLS context.

Signals stay with the daemon, and each request's scope gets the identity in the caller's
certificate, for which ASGI has no standard place.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from orchestrator.web.asgi import PEER, App, Receive, Scope, Send, identity_in


class _Protocol(H11Protocol):
    """One connection; its requests carry the caller's identity."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        peer = identity_in(tls.getpeercert(), tls.getpeercert(binary_form=True))
        inner: App = self.app

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope[PEER] = peer
            await inner(scope, receive, send)

        self.app = app


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def run(
    app: App, listener: socket.socket, tls: ssl.SSLContext, *, most_connections: int, closing: int
) -> None:
    """Serve until cancelled; then requests in progress have `closing` seconds."""
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=most_connections,
        timeout_graceful_shutdown=closing,
    )
    config.load()
    config.ssl = tls
    server = _Server(config)
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        # A cancelled `serve` would leave its connections open: ask it to end instead.
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await serving
        raise
