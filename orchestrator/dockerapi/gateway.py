# SPDX-License-Identifier: Apache-2.0
"""What the endpoints share: connections to managers, and the processes started by `exec`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from orchestrator import __version__
from orchestrator.cli.app.contexts import Context, load_context
from orchestrator.cli.app.errors import CliError, Refused
from orchestrator.cli.rpc.client import CALL_TIMEOUT, Client
from orchestrator.dockerapi.containers.processes import Execs, FirstSizes, Sessions

_MOST_IDLE = 16
"""Connections that are kept for the next requests."""

_REFRESH_EVERY = 60.0
"""Seconds between two looks at the context's file."""


class Clients:
    """Clients of one cluster. A client serves one request at a time; idle ones are kept, since a
    new connection costs a TLS handshake."""

    def __init__(self, context: Context, now: Callable[[], float] = time.monotonic) -> None:
        """`now`: a monotonic clock."""
        self._context = context
        self._now = now
        self._refresh_at = now() + _REFRESH_EVERY
        self._lock = threading.Lock()
        self._idle: list[Client] = []
        self._revision = 0
        """Newest store revision that a reply has shown: what a request wrote, the next ones
        read, whichever managers answer."""

    @contextmanager
    def borrow(self) -> Iterator[Client]:
        """A client for the body."""
        with self._lock:
            client = self._idle.pop() if self._idle else Client(self._context)
            client.revision = max(client.revision, self._revision)
        kept = True
        try:
            yield client
            self._refresh(client)
        except BaseException as error:
            kept = isinstance(error, CliError | GeneratorExit)
            raise
        finally:
            with self._lock:
                self._revision = max(client.revision, self._revision)
                kept = kept and len(self._idle) < _MOST_IDLE
                kept = kept and client.context == self._context
                if kept:
                    self._idle.append(client)
            if not kept:
                client.close()

    @property
    def context(self) -> Context:
        """With the certificate that is shown now."""
        return self._context

    def _refresh(self, client: Client) -> None:
        """Renew the certificate if that is due, and take over what the context's file has: a
        gateway runs for longer than a certificate is valid."""
        with self._lock:
            now = self._now()
            if now < self._refresh_at:
                return
            self._refresh_at = now + _REFRESH_EVERY
        with suppress(CliError, OSError):  # the context in use stays good for a while
            client.renew()
            context = load_context(self._context.name)
            with self._lock:
                if context != self._context:
                    self._context = context
                    outdated, self._idle = self._idle, []
                    for each in outdated:
                        each.close()


class Gateway:
    """A gateway with the rights of one context. Its methods can be called from all threads."""

    def __init__(self, context: Context) -> None:
        self._clients = Clients(context)
        self.engine_version = __version__
        self.sessions = Sessions()
        self.execs = Execs()
        self.first_sizes = FirstSizes()

    @property
    def context(self) -> Context:
        """Whose rights it has, with the certificate in use."""
        return self._clients.context

    def call(self, method: str, request: Any, timeout: float = CALL_TIMEOUT) -> Any:
        """Call a manager. Raises CliError."""
        with self._clients.borrow() as client:
            return client.call(method, request, timeout)

    def client(self) -> Any:
        """A context manager: a client for several calls."""
        return self._clients.borrow()

    def stream(
        self, method: str, request: Any, opened: Callable[[Any], None] = lambda call: None
    ) -> Streamed:
        """Call a method of a manager that streams its answer; `opened` is given the call."""
        return Streamed(self._clients, method, request, opened)


def remove_or_defer(gateway: Gateway, method: str, request: Any) -> None:
    """Remove an object at once; if tasks that are about to end still use it, when they have ended,
    as the clients that remove a stack expect. Raises CliError."""
    try:
        gateway.call(method, request)
    except Refused as refused:
        if refused.missing:
            raise
        request.when_unused = True
        gateway.call(method, request)


class Streamed:
    """The messages of a streaming call; other threads may cancel it. Iterate it once."""

    def __init__(
        self, clients: Clients, method: str, request: Any, opened: Callable[[Any], None]
    ) -> None:
        self._clients = clients
        self._tell = opened
        self._method = method
        self._request = request
        self._lock = threading.Lock()
        self._cancel: Callable[[], None] | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """End it, from any thread: the iteration ends without an error."""
        with self._lock:
            self._cancelled = True
            cancel = self._cancel
        if cancel is not None:
            cancel()

    def __iter__(self) -> Generator[Any]:
        with self._clients.borrow() as client:
            messages = client.stream(self._method, self._request, opened=self._opened)
            try:
                yield from messages
            except CliError:
                if not self._cancelled:
                    raise
            finally:
                messages.close()

    def _opened(self, call: Any) -> None:
        self._tell(call)
        with self._lock:
            self._cancel = call.cancel
            cancelled = self._cancelled
        if cancelled:
            with suppress(CliError):
                call.cancel()
