# SPDX-License-Identifier: Apache-2.0
"""A scripted volume plugin with folders, which hangs, dies or lies on demand."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any


class ScriptedPlugin:
    """Speaks Docker's volume plugin protocol on a unix socket or a TCP port."""

    def __init__(self, folder: Path, scope: str = "local") -> None:
        self.folder = folder
        self.scope = scope
        self.volumes: dict[str, dict[str, str]] = {}
        self.mounts: dict[str, set[str]] = {}
        """Volume → the callers that have it mounted."""
        self.calls: list[str] = []
        self.hang: set[str] = set()
        """Calls that are never answered; `*` is any."""
        self.busy: dict[str, asyncio.Event] = {}
        """Calls that are answered once this is set."""
        self.hang_up: dict[str, int] = {}
        """Calls that end without an answer, so many times."""
        self.answers: dict[str, bytes] = {}
        """Calls that are answered with just these bytes."""
        self.chunked = False
        self.asked = asyncio.Event()
        """Set by a call that hangs."""
        self.port = 0

    @asynccontextmanager
    async def on_socket(self, path: Path) -> AsyncIterator[None]:
        """Serve on a unix socket for as long as the block lasts."""
        path.parent.mkdir(parents=True, exist_ok=True)
        server = await asyncio.start_unix_server(self._serve, path)
        try:
            yield
        finally:
            server.close()
            with suppress(FileNotFoundError):  # Python 3.13's server removes it
                os.unlink(path)

    @asynccontextmanager
    async def on_tcp(self) -> AsyncIterator[None]:
        """Serve on a port of loopback."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(head.lower().partition("content-length:")[2].split()[0])
            body = json.loads(await reader.readexactly(length))
            call = head.split()[1].rpartition(".")[2]
            self.calls.append(call)
            if call in self.busy:
                await self.busy[call].wait()
            if call in self.hang or "*" in self.hang:
                self.asked.set()
                await reader.read()
                return
            if self.hang_up.get(call, 0) > 0:
                self.hang_up[call] -= 1
                return
            writer.write(self.answers.get(call) or self._response(self._do(call, body)))
            await writer.drain()
        finally:
            writer.close()

    def _response(self, answer: dict[str, Any]) -> bytes:
        data = json.dumps(answer).encode()
        status = "500 Internal Server Error" if answer.get("Err") else "200 OK"
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
        if self.chunked:
            half = len(data) // 2
            parts = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (data[:half], data[half:]) if p)
            return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + parts + b"0\r\n\r\n"
        return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data

    def _do(self, call: str, body: dict[str, Any]) -> dict[str, Any]:
        name = body.get("Name", "")
        if call == "Activate":
            return {"Implements": ["VolumeDriver"]}
        if call == "Capabilities":
            return {"Capabilities": {"Scope": self.scope}}
        if call == "List":
            return {"Volumes": [{"Name": each} for each in sorted(self.volumes)]}
        if call == "Create":
            if body["Opts"].get("colour") == "none":
                return {"Err": "there is no such colour"}
            self.volumes[name] = body["Opts"]
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            return {"Err": ""}
        if name not in self.volumes:
            return {"Err": f"no volume {name}"}
        if call == "Mount":
            self.mounts.setdefault(name, set()).add(body["ID"])
        elif call == "Unmount":
            self.mounts[name].discard(body["ID"])
        elif call == "Remove":
            del self.volumes[name]
        elif call == "Get":
            return {"Volume": {"Name": name}, "Err": ""}
        return {"Mountpoint": str(self.folder / name), "Err": ""}
