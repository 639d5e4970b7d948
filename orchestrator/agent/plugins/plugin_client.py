# SPDX-License-Identifier: Apache-2.0
"""Calls to Docker plugins: HTTP over a Unix socket, TCP or TLS, with limits of time and size.

A plugin that does not respond for `SILENCE` seconds counts as hung, and its callers fail. A slow
call, such as attaching a disk, has more time, as long as the plugin responds to `/Plugin.Activate`
meanwhile. Responses are validated; errors are one line.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import (
    BadStatusLine,
    HTTPConnection,
    HTTPException,
    IncompleteRead,
    RemoteDisconnected,
)
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from orchestrator.linux.threads import KeyedThreads


class PluginError(Exception):
    """A plugin refused a call, or cannot be used; one line that says why."""


class PluginUnavailable(PluginError):
    """A plugin did not respond, or its response was invalid. It may work later."""


class UnknownCall(PluginError):
    """A plugin does not implement the call: it is older, or the call is optional."""


MEDIA_TYPE = "application/vnd.docker.plugins.v1+json"

_MOST = 4 << 20
"""Maximum size of a response in bytes."""
_threads = KeyedThreads("plugin call")
_numbers = itertools.count(1)
_UCRED = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a plugin listens."""

    socket: Path | None = None
    host: str = ""
    port: int = 0
    tls: ssl.SSLContext | None = None


def parse_address(url: str, tls: Mapping[str, Any] | None = None) -> Address:
    """Of `unix:///run/x.sock`, `tcp://127.0.0.1:9000`, `http://…` or `https://…`; `tls` is the
    `TLSConfig` of a plugin's JSON file. Raises PluginError."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return Address(socket=Path(parts.path or parts.netloc))
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if parts.scheme not in ("tcp", "http", "https") or not host or not port:
        raise PluginError(f"{url!r} is not a plugin's address; use unix:///PATH or tcp://HOST:PORT")
    if not tls and parts.scheme != "https":
        return Address(host=host, port=port)
    return Address(host=host, port=port, tls=_tls(tls or {}))


def _tls(config: Mapping[str, Any]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=config.get("CAFile") or None)
        if config.get("CertFile"):
            context.load_cert_chain(config["CertFile"], config.get("KeyFile") or None)
    except (OSError, ssl.SSLError) as error:
        raise PluginError(f"the plugin's TLS files cannot be used: {error}") from error
    if config.get("InsecureSkipVerify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def post(address: Address, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
    """Status and JSON of the response (None when it is empty). Raises PluginUnavailable. The
    caller limits the time: cancelling it ends the connection."""
    exchange = _Exchange(address, path, json.dumps(body).encode())
    try:
        status, answer = await _threads.run(f"{next(_numbers)}", exchange.run)
    except (OSError, ValueError, HTTPException) as error:
        raise PluginUnavailable(_error_message(error)) from error
    finally:
        exchange.abort()
    try:
        return status, json.loads(answer) if answer.strip() else None
    except ValueError:
        text = answer[:200].decode(errors="replace").strip()
        return status, {"Err": text} if status >= 400 else ""


class _Exchange:
    """One request and its response on a separate connection, in a thread that `abort` ends."""

    def __init__(self, address: Address, path: str, data: bytes) -> None:
        self._connection = _Connection(address)
        self._path = path
        self._data = data
        self._socket: socket.socket | None = None
        self._aborted = False

    def run(self) -> tuple[int, bytes]:
        """Status and content of the response; blocks. Raises OSError, ValueError,
        HTTPException."""
        with closing(self._connection) as connection:
            connection.connect()
            self._socket = connection.sock
            if self._aborted:
                return 0, b""
            headers = {
                "Accept": MEDIA_TYPE,
                "Content-Type": "application/json",
                "Connection": "close",
            }
            connection.request("POST", self._path, self._data, headers)
            with connection.getresponse() as response:
                content = response.read(_MOST + 1)
                if len(content) > _MOST:
                    raise ValueError("its response is too long")
                if response.length:  # http.client returns what came before a disconnection
                    raise IncompleteRead(content, response.length)
                return response.status, content

    def abort(self) -> None:
        """Make `run` return, also while it blocks."""
        self._aborted = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


class _Connection(HTTPConnection):
    """To the address of a plugin."""

    def __init__(self, address: Address) -> None:
        super().__init__(address.host or "plugin", address.port or None, timeout=CALL_TIMEOUT)
        self._address = address

    def connect(self) -> None:
        if self._address.socket is not None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(self.timeout)
            self.sock.connect(str(self._address.socket))
            return
        super().connect()
        if self._address.tls is not None:
            self.sock = self._address.tls.wrap_socket(self.sock, server_hostname=self.host)


async def listener(address: Address) -> int:
    """The pid of the process that listens at a Unix socket; 0: not visible in this PID namespace.
    Raises PluginUnavailable."""
    if address.socket is None:
        return 0
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, str(address.socket))
        except OSError as error:
            raise PluginUnavailable(_error_message(error)) from error
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, _, _ = _UCRED.unpack(credentials)
        return int(pid)


def _error_message(error: Exception) -> str:
    if isinstance(error, RemoteDisconnected | IncompleteRead):
        return "it closed the connection during its response"
    if isinstance(error, BadStatusLine):
        return "it does not speak HTTP"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


T = TypeVar("T")

OnWait = Callable[[str], None]
"""Called with what an operation waits for; empty: it no longer waits."""

NOTICE = 2.0
"""Seconds after which a status reports that an operation waits for a plugin."""
SILENCE = 5.0
"""Seconds without a response after which a plugin counts as hung."""
PATIENCE = SILENCE
"""Seconds for which calls to an unreachable plugin are retried, with backoff."""
CALL_TIMEOUT = 60.0
"""Maximum seconds of a call while the plugin responds to other calls."""
_FIRST_PAUSE = 0.1


async def call_plugin(
    address: Address,
    path: str,
    body: Mapping[str, Any],
    what: str,
    timeout: float | None = None,
) -> dict[str, Any]:
    """A plugin's response to a call within `timeout` seconds (default: `SILENCE`). `what` names the
    plugin in errors, such as `volume driver nfs`. Raises PluginError."""
    limit = SILENCE if timeout is None else timeout
    try:
        async with asyncio.timeout(limit):
            status, answer = await post(address, path, body)
    except TimeoutError:
        raise PluginUnavailable(f"no answer within {limit:g} s") from None
    if not isinstance(answer, dict | None):
        raise PluginUnavailable(f"its response to {path} is not a JSON object")
    # IPAM plugins use the longer key.
    message = (answer or {}).get("Err") or (answer or {}).get("Error")
    if status >= 400 or message:
        words = " ".join(str(message or f"HTTP status {status}").split())
        kind = UnknownCall if status == 404 else PluginError
        raise kind(f"{what}: {words}")
    return answer or {}


async def call_long(
    address: Address, path: str, body: Mapping[str, Any], what: str
) -> dict[str, Any]:
    """As `call_plugin`, for a slow call: `CALL_TIMEOUT` seconds while the plugin responds to other
    calls. Raises PluginError."""
    outcomes: list[dict[str, Any] | PluginError] = []

    async def call() -> None:
        try:
            outcomes.append(await call_plugin(address, path, body, what, CALL_TIMEOUT))
        except PluginError as error:
            outcomes.append(error)

    async def watch() -> None:
        while True:
            await asyncio.sleep(NOTICE)
            try:
                await call_plugin(address, "/Plugin.Activate", {}, what, SILENCE - NOTICE)
            except PluginUnavailable:
                outcomes.append(PluginUnavailable(f"no answer within {SILENCE:g} s"))
                return
            except PluginError:
                continue  # it responds

    async with asyncio.TaskGroup() as group:
        running = {group.create_task(call(), name=path), group.create_task(watch(), name="watch")}
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for each in running:
            each.cancel()
    outcome = outcomes[0]
    if isinstance(outcome, PluginError):
        raise outcome
    return outcome


async def with_retries(attempt: Callable[[], Awaitable[T]]) -> T:
    """The result of an attempt, which is repeated while it raises PluginUnavailable, for `PATIENCE`
    seconds. Raises the last PluginUnavailable."""
    loop = asyncio.get_running_loop()
    give_up, pause = loop.time() + PATIENCE, _FIRST_PAUSE
    while True:
        try:
            return await attempt()
        except PluginUnavailable:
            if loop.time() + pause > give_up:
                raise
        await asyncio.sleep(pause)
        pause *= 2


@contextmanager
def report_if_slow(on_wait: OnWait, text: str) -> Iterator[None]:
    """Call `on_wait` with `text` once the block has taken `NOTICE` seconds, and with an empty text
    when it ends after that."""
    reported = False

    def now() -> None:
        nonlocal reported
        reported = True
        on_wait(text)

    timer = asyncio.get_running_loop().call_later(NOTICE, now)
    try:
        yield
    finally:
        timer.cancel()
        if reported:
            on_wait("")
