# SPDX-License-Identifier: Apache-2.0
"""`python -m orchestrator.nameserver SOCKET`: serve until there is neither network nor agent.

SOCKET is a path at which an agent connects. It is greeted with a line
`{"version": …, "protocol": …}`; each line that it sends is a table (`table`), and the answer is
`{"revision": …}` once names are answered by it, with a `complaint` if not at all addresses. It is
`{"behind": true}` if the table that it changes is not here, and `{"error": …}` if it is none. To
`{}` the answer is as to a change of nothing; `{"end": true}` ends the process: another version is
to take its place. The process's id stands in the file beside SOCKET that ends in `.lock`.
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


class _Desk:
    """Takes the agent's orders. A newer agent's connection ends the older."""

    def __init__(self, server: NameServer) -> None:
        self._server = server
        self._current: asyncio.StreamWriter | None = None
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hold one connection."""
        if self._current is not None:
            self._current.close()
        self._current = writer
        try:
            await _say(writer, {"version": __version__, "protocol": PROTOCOL})
            while self._current is writer and (line := await reader.readline()).endswith(b"\n"):
                await _say(writer, await self._do(json.loads(line)))
        except (OSError, ValueError) as error:
            log.warning("the agent's connection broke: %s", error)
        finally:
            writer.close()
            if self._current is writer:
                self._current = None
                if self._server.idle:
                    self.ended.set()

    async def _do(self, order: dict[str, object]) -> dict[str, object]:
        if order.get("end"):
            self.ended.set()
            return {}
        if not order:
            complaint = await self._server.listen()
        else:
            try:
                table = parse(order)
            except (KeyError, TypeError, ValueError) as error:
                return {"error": f"not an endpoint table: {error!r}"}
            if table.base is not None and table.base != self._server.revision:
                return {"behind": True}
            complaint = await self._server.apply(table)
        return {"revision": self._server.revision, "complaint": complaint}


async def _say(writer: asyncio.StreamWriter, what: dict[str, object]) -> None:
    writer.write(json.dumps(what).encode() + b"\n")
    await writer.drain()


async def serve(sock: socket.socket) -> None:
    """Serve names, and orders that come by a listening socket, until ended."""
    running: set[asyncio.Task[None]] = set()
    async with asyncio.TaskGroup() as group:

        def spawn(work: Coroutine[Any, Any, None]) -> None:
            task = group.create_task(work)
            running.add(task)
            task.add_done_callback(running.discard)

        server = NameServer(HostServers(), spawn)
        desk = _Desk(server)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, desk.ended.set)
        orders = await asyncio.start_unix_server(
            lambda reader, writer: spawn(desk.serve(reader, writer)), sock=sock, limit=_LINE_LIMIT
        )
        try:
            await desk.ended.wait()
        finally:
            orders.close()
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
