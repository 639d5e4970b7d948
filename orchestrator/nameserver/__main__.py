# SPDX-License-Identifier: Apache-2.0
"""`python -m orchestrator.nameserver SOCKET`: serve until there is neither network nor agent.

SOCKET is the path of the Unix socket for the agent. On connection the server sends a line
`{"version": …, "protocol": …}`. Each line from the agent is a table (`feed`); the response is
`{"revision": …}` once it is in effect, with a `complaint` if an address cannot be listened on,
`{"behind": true}` if the table that it changes is missing, or `{"error": …}` if it is invalid. `{}`
is an empty change; `{"end": true}` ends the process, for an upgrade. The file beside SOCKET that
ends in `.lock` has the process's id.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from orchestrator import __version__
from orchestrator.nameserver.feed import PROTOCOL, parse
from orchestrator.nameserver.listeners import NameServer
from orchestrator.nameserver.upstream import HostServers

_LINE_LIMIT = 256 << 20

log = logging.getLogger(__name__)


class _ControlServer:
    """Serves the agent's connection. A new connection replaces the previous one."""

    def __init__(self, server: NameServer) -> None:
        self._server = server
        self._current: asyncio.StreamWriter | None = None
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        if self._current is not None:
            self._current.close()
        self._current = writer
        try:
            await _send(writer, {"version": __version__, "protocol": PROTOCOL})
            while self._current is writer and (line := await reader.readline()).endswith(b"\n"):
                await _send(writer, await self._handle(json.loads(line)))
        except (OSError, ValueError) as error:
            log.warning("the agent's connection broke: %s", error)
        finally:
            writer.close()
            if self._current is writer:
                self._current = None
                if self._server.idle:
                    self.ended.set()

    async def _handle(self, request: dict[str, object]) -> dict[str, object]:
        if request.get("end"):
            self.ended.set()
            return {}
        if not request:
            complaint = await self._server.listen()
        else:
            try:
                table = parse(request)
            except (KeyError, TypeError, ValueError) as error:
                return {"error": f"not an endpoint table: {error!r}"}
            if table.base is not None and table.base != self._server.revision:
                return {"behind": True}
            complaint = await self._server.apply(table)
        return {"revision": self._server.revision, "complaint": complaint}


async def _send(writer: asyncio.StreamWriter, message: dict[str, object]) -> None:
    writer.write(json.dumps(message).encode() + b"\n")
    await writer.drain()


async def serve(sock: socket.socket) -> None:
    """Serve DNS, and the agent on a listening socket, until ended."""
    running: set[asyncio.Task[None]] = set()
    async with asyncio.TaskGroup() as group:

        def spawn(work: Coroutine[Any, Any, None]) -> None:
            task = group.create_task(work)
            running.add(task)
            task.add_done_callback(running.discard)

        server = NameServer(HostServers(), spawn)
        control = _ControlServer(server)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, control.ended.set)
        agents = await asyncio.start_unix_server(
            lambda reader, writer: spawn(control.serve(reader, writer)),
            sock=sock,
            limit=_LINE_LIMIT,
        )
        try:
            await control.ended.wait()
        finally:
            agents.close()
            server.close()
            for task in running:
                task.cancel()


def main() -> int:
    """Serve, unless another process does."""
    logging.basicConfig(level=logging.INFO, format="name server: %(message)s")
    path = Path(sys.argv[1])
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.warning("another name server runs at %s", path)
        return 1
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as sock:
        os.umask(0o077)
        sock.bind(str(path))
        sock.listen()
        asyncio.run(serve(sock))
    path.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
