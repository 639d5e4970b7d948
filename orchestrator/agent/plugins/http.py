"""As much of an HTTP/1.1 client as plugins need: one POST of JSON on one connection.

Over a unix socket, TCP or TLS. The answer's size is bounded; time is the caller's to bound.
Source: RFC 9112.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.agent.plugins.errors import PluginAway, PluginError

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
        raise PluginAway(_words(error)) from error
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
        raise PluginAway(_words(error)) from error
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
        raise PluginAway(_words(error)) from error
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
