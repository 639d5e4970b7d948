# SPDX-License-Identifier: Apache-2.0
"""An HTTPS listener inside a daemon's event loop.

The server's library is imported at the first connection: an agent without a scraper does not pay
for it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orchestrator.daemon.background import background
from orchestrator.identity.certificates import TlsFiles
from orchestrator.web.asgi import App

log = logging.getLogger(__name__)

_BACKLOG = 64
_MOST_CONNECTIONS = 256
_CHECK_PERIOD = 2.0
"""Seconds between checks of the certificate's files."""
_CLOSING = 1
"""Seconds that requests in progress have when the listener closes."""


class CannotListen(Exception):
    """Cannot listen on the address; the text is one line with the cause."""


def _tls(files: TlsFiles) -> ssl.SSLContext:
    """TLS 1.3. A client may show a certificate; one that another CA signed ends the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(files.ca)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


async def _follow_certificate(context: ssl.SSLContext, files: TlsFiles) -> None:
    """Reload the certificate for new connections when the files change. CAs are added to those that
    are trusted; one that was removed is trusted until the daemon restarts."""

    def stamped() -> tuple[object, ...]:
        return files.pair.stamp(), files.ca.stat().st_mtime_ns

    shown = stamped()
    while True:
        await asyncio.sleep(_CHECK_PERIOD)
        try:
            if (found := stamped()) != shown:
                context.load_verify_locations(files.ca)
                _load(context, files)
                shown = found
        except OSError:
            log.exception("cannot load the renewed certificate")


def _load(context: ssl.SSLContext, files: TlsFiles) -> None:
    """The library takes files only, and the two of the pair may be about to be replaced."""
    pair = files.pair.read()
    with tempfile.NamedTemporaryFile("w", dir=files.ca.parent) as both:
        both.write(pair.certificate + pair.key)
        both.flush()
        context.load_cert_chain(both.name)


@asynccontextmanager
async def listening(app: App, address: str, port: int, files: TlsFiles) -> AsyncIterator[int]:
    """Serve `app` at an address of this host while the body runs; the port (0 takes any free one).

    Raises CannotListen.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        try:
            listener.bind((address, port))
        except OSError as error:
            raise CannotListen(
                f"cannot listen on {address}:{port} ({error.strerror}): is another one running, or "
                "is that not this host's address?"
            ) from error
        listener.listen(_BACKLOG)
        async with background(_serve(app, listener, files)):
            yield int(listener.getsockname()[1])


async def _serve(app: App, listener: socket.socket, files: TlsFiles) -> None:
    await _first_connection(listener)
    from orchestrator.web.uvicornserver import run

    context = _tls(files)
    _load(context, files)
    async with background(_follow_certificate(context, files)):
        await run(app, listener, context, most_connections=_MOST_CONNECTIONS, closing=_CLOSING)


async def _first_connection(listener: socket.socket) -> None:
    """Wait until a client connects."""
    loop = asyncio.get_running_loop()
    connected = loop.create_future()
    loop.add_reader(listener, lambda: None if connected.done() else connected.set_result(None))
    try:
        await connected
    finally:
        loop.remove_reader(listener)
