"""Calls of Docker plugins: HTTP over a Unix socket, TCP or TLS, with limits of time and size.

A plugin that answers nothing for `SILENCE` seconds counts as hung: no caller waits longer for it. A
call that takes long, such as attaching a disk, has more time, as long as the plugin answers
`/Plugin.Activate` meanwhile. Answers are checked; errors are one line.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit


class PluginError(Exception):
    """A plugin refuses, or cannot be used; one line that says why."""


class PluginUnavailable(PluginError):
    """A plugin did not answer, or what came was no answer. It may work later."""


class UnknownCall(PluginError):
    """A plugin does not know the call: it is older, or need not know it."""


MEDIA_TYPE = "application/vnd.docker.plugins.v1+json"

_MOST = 4 << 20
"""Bytes of an answer; no list that plugins give is longer."""
_MOST_HEADERS = 100
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
        raise PluginError(f"{url!r} is no plugin's address; write unix:///PATH or tcp://HOST:PORT")
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
    """Status and JSON of the answer (None when it is empty). Raises PluginAway."""
    try:
        reader, writer = await _connect(address)
    except (OSError, ssl.SSLError) as error:
        raise PluginUnavailable(_words(error)) from error
    try:
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {address.host or 'plugin'}\r\n"
            f"Accept: {MEDIA_TYPE}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + data)
        await writer.drain()
        status, answer = await _answer(reader)
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
        raise PluginUnavailable(_words(error)) from error
    finally:
        # Not waited for: it may hang as the rest may.
        writer.transport.abort()
    try:
        return status, json.loads(answer) if answer.strip() else None
    except ValueError:
        return status, {
            "Err": answer[:200].decode(errors="replace").strip()
        } if status >= 400 else ""


async def listener(address: Address) -> int:
    """The process that listens at a unix socket; 0: none that this one can see. Raises
    PluginAway."""
    if address.socket is None:
        return 0
    try:
        _, writer = await _connect(address)
    except OSError as error:
        raise PluginUnavailable(_words(error)) from error
    try:
        sock = writer.get_extra_info("socket")
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, _, _ = _UCRED.unpack(credentials)
        return int(pid)
    finally:
        writer.transport.abort()


async def _connect(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.socket is not None:
        return await asyncio.open_unix_connection(str(address.socket))
    return await asyncio.open_connection(address.host, address.port, ssl=address.tls)


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    status_line = (await reader.readuntil(b"\n")).split()
    if len(status_line) < 2 or not status_line[0].startswith(b"HTTP/1."):
        raise ValueError("it does not speak HTTP")
    status = int(status_line[1])
    headers: dict[bytes, bytes] = {}
    for _ in range(_MOST_HEADERS):
        line = (await reader.readuntil(b"\n")).strip()
        if not line:
            break
        name, _, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip().lower()
    else:
        raise ValueError("its answer has no end of headers")
    if headers.get(b"transfer-encoding", b"").endswith(b"chunked"):
        return status, await _chunks(reader)
    if (length := headers.get(b"content-length")) is not None:
        if int(length) > _MOST:
            raise ValueError("its answer is too long")
        return status, await reader.readexactly(int(length))
    body = bytearray()
    while part := await reader.read(1 << 16):
        body += part
        if len(body) > _MOST:
            raise ValueError("its answer is too long")
    return status, bytes(body)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while True:
        size = int((await reader.readuntil(b"\n")).split(b";")[0], 16)
        if size == 0:
            return bytes(body)
        if not 0 < size <= _MOST - len(body):
            raise ValueError("its answer is too long")
        body += await reader.readexactly(size)
        await reader.readuntil(b"\n")


def _words(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "it hung up in the middle of its answer"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


T = TypeVar("T")

Tell = Callable[[str], None]
"""Is told what an operation waits for; empty: for nothing any more."""

NOTICE = 2.0
"""Seconds after which whoever waits for a plugin is told so."""
SILENCE = 5.0
"""Seconds without any answer after which a plugin counts as hung."""
PATIENCE = SILENCE
"""Seconds for which a plugin that cannot be reached is tried again, with growing pauses."""
CALL_TIMEOUT = 60.0
"""Seconds that a plugin which answers other calls gets to do what it was asked."""
_FIRST_PAUSE = 0.1


async def ask(
    address: Address,
    path: str,
    body: Mapping[str, Any],
    what: str,
    timeout: float | None = None,
) -> dict[str, Any]:
    """A plugin's answer to a call within `timeout` seconds (default: `SILENCE`). `what` names the
    plugin in errors that it reports, such as `volume driver nfs`. Raises PluginError."""
    limit = SILENCE if timeout is None else timeout
    try:
        async with asyncio.timeout(limit):
            status, answer = await post(address, path, body)
    except TimeoutError:
        raise PluginUnavailable(f"no answer within {limit:g} s") from None
    if not isinstance(answer, dict | None):
        raise PluginUnavailable(f"its answer to {path} is no JSON object")
    # Those that give out addresses say it by the longer word.
    said = (answer or {}).get("Err") or (answer or {}).get("Error")
    if status >= 400 or said:
        words = " ".join(str(said or f"HTTP status {status}").split())
        kind = UnknownCall if status == 404 else PluginError
        raise kind(f"{what}: {words}")
    return answer or {}


async def work(address: Address, path: str, body: Mapping[str, Any], what: str) -> dict[str, Any]:
    """As `ask`, for a call that may take long: `CALL_TIMEOUT` seconds while the plugin answers
    other calls. Raises PluginError."""
    outcomes: list[dict[str, Any] | PluginError] = []

    async def call() -> None:
        try:
            outcomes.append(await ask(address, path, body, what, CALL_TIMEOUT))
        except PluginError as error:
            outcomes.append(error)

    async def watch() -> None:
        while True:
            await asyncio.sleep(NOTICE)
            try:
                await ask(address, "/Plugin.Activate", {}, what, SILENCE - NOTICE)
            except PluginUnavailable:
                outcomes.append(PluginUnavailable(f"no answer within {SILENCE:g} s"))
                return
            except PluginError:
                continue  # it answers

    async with asyncio.TaskGroup() as group:
        running = {group.create_task(call(), name=path), group.create_task(watch(), name="watch")}
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for each in running:
            each.cancel()
    outcome = outcomes[0]
    if isinstance(outcome, PluginError):
        raise outcome
    return outcome


async def patiently(attempt: Callable[[], Awaitable[T]]) -> T:
    """What an attempt returns; it is repeated while it raises PluginAway, for `PATIENCE` seconds.
    Raises the last one."""
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
def announced(tell: Tell, text: str) -> Iterator[None]:
    """Tell what is waited for, once the block has taken `NOTICE` seconds, until it ends."""
    told = False

    def now() -> None:
        nonlocal told
        told = True
        tell(text)

    timer = asyncio.get_running_loop().call_later(NOTICE, now)
    try:
        yield
    finally:
        timer.cancel()
        if told:
            tell("")
