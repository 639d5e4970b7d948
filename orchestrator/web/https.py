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
from typing import Any

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


class _FollowingContext(ssl.SSLContext):
    """TLS 1.3 by a host's files; each connection gets them as they were last loaded. A client may
    show a certificate; one that another CA signed ends the handshake.

    A context cannot drop a CA that it trusts, so each load makes another one, which begins
    connections in place of this one.
    """

    _files: TlsFiles
    _loaded: ssl.SSLContext

    @classmethod
    def of(cls, files: TlsFiles) -> _FollowingContext:
        """A context with the files as they are now. Raises OSError."""
        context = cls(ssl.PROTOCOL_TLS_SERVER)
        context._files = files
        context.load()
        return context

    def load(self) -> None:
        """Load the files for new connections. Raises OSError."""
        fresh = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        fresh.minimum_version = ssl.TLSVersion.TLSv1_3
        fresh.verify_mode = ssl.CERT_OPTIONAL
        fresh.load_verify_locations(self._files.ca)
        pair = self._files.pair.read()
        # The library takes files only, and the two of the pair may be about to be replaced.
        with tempfile.NamedTemporaryFile("w", dir=self._files.ca.parent) as both:
            both.write(pair.certificate + pair.key)
            both.flush()
            fresh.load_cert_chain(both.name)
        self._loaded = fresh

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        """Begin a connection."""
        return self._loaded.wrap_bio(*arguments, **named)

    async def follow(self) -> None:
        """Load the files whenever they change, until cancelled."""

        def stamped() -> tuple[object, ...]:
            return self._files.pair.stamp(), self._files.ca.stat().st_mtime_ns

        shown: object = None
        while True:
            try:
                if (found := stamped()) != shown:
                    self.load()
                    shown = found
            except OSError:
                log.exception("cannot load the renewed certificate")
            await asyncio.sleep(_CHECK_PERIOD)


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

    context = _FollowingContext.of(files)
    async with background(context.follow()):
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
