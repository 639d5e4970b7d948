# SPDX-License-Identifier: Apache-2.0
"""The syslog driver: messages of RFC 5424 or RFC 3164 by UDP, TCP or a socket of the node.

On a stream each message ends with a line feed (RFC 6587, section 3.4.2), as Docker sends them.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from orchestrator.agent.logs.log_reader import Line
from orchestrator.agent.logs.log_target import (
    BATCH,
    PATIENCE,
    Container,
    SocketTarget,
    TargetError,
    need_socket,
    opened,
    send_datagram,
)
from orchestrator.linux.spawn import writable
from orchestrator.linux.threads import KeyedThreads
from orchestrator.model.formats.log_options import facility, parse_address

_ERROR, _INFO = 3, 6
_LONGEST_TAG = 48
"""Of APP-NAME in RFC 5424."""
_LONGEST_ID = 32
_MISSING = "run a syslog daemon on it, or give one with --log-opt syslog-address=udp://HOST"
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def check(address: str) -> None:
    """Check that a socket of the node exists. A network target may become reachable later. Raises
    TargetError."""
    found = parse_address(address)
    if found.path:
        need_socket(Path(found.path), "syslog", _MISSING)


class Syslog(SocketTarget):
    """Sends the lines of one container."""

    def __init__(
        self, container: Container, options: Mapping[str, str], resolving: KeyedThreads
    ) -> None:
        """`resolving` resolves host names: a slow name server delays nothing else."""
        super().__init__()
        self._resolving = resolving
        self._text = options.get("syslog-address", "")
        self._address = parse_address(self._text)
        self._facility = facility(options.get("syslog-facility", "")) << 3
        local = bool(self._address.path)
        # Daemons read from a socket of the node what libc's syslog(3) writes, and nothing newer.
        usual = "rfc3164" if local else "rfc5424"
        self._format = _formatter(options.get("syslog-format", usual), container, local)
        self._stream = False
        self._rest: tuple[bytes, int] | None = None
        """On a stream, partly sent messages, and how many of their bytes."""

    async def send(self, lines: Sequence[Line]) -> int:
        """See `Target.send`."""
        taken = 0
        try:
            async with asyncio.timeout(PATIENCE):
                await self._connect()
                if self._rest is not None:
                    await self._send(*self._rest)
                    self._rest = None
                for begin in range(0, len(lines), BATCH):
                    some = [self._message(line) for line in lines[begin : begin + BATCH]]
                    if self._stream:
                        # Counted first: when time is up, the rest of them is sent next time.
                        self._rest = (b"".join(some), 0)
                        taken += len(some)
                        await self._send(*self._rest)
                        self._rest = None
                    else:
                        for message in some:
                            await send_datagram(self._connected(), message)
                            taken += 1
                    # Let other tasks of the event loop run.
                    await asyncio.sleep(0)
        except TimeoutError:
            if self._socket is None:
                raise TargetError(f"{self._named()} (no answer)") from None
            return taken
        except OSError as error:
            self.close()
            if taken:
                return taken
            raise TargetError(f"{self._named()} ({error.strerror or error})") from error
        return taken

    def _named(self) -> str:
        where = self._address.path or f"{self._address.host}:{self._address.port}"
        return f"logging driver syslog: cannot send to {where}"

    def _connected(self) -> socket.socket:
        assert self._socket is not None
        return self._socket

    async def _send(self, messages: bytes, offset: int) -> None:
        """Send messages on a stream."""
        to = self._connected()
        while offset < len(messages):
            try:
                offset += to.send(memoryview(messages)[offset:])
                self._rest = (messages, offset)
            except BlockingIOError:
                await writable(to.fileno())

    def _hung_up(self) -> bool:
        """Whether the other side has closed a stream: what is sent then is lost."""
        if self._socket is None or not self._stream:
            return False
        try:
            return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    async def _connect(self) -> None:
        if self._hung_up():
            self.close()
        if self._socket is not None:
            return
        self._stream = False
        if self._rest is not None:
            # The connection broke within a message, which is sent as a whole on the next one.
            messages, offset = self._rest
            self._rest = (messages, messages.rfind(b"\n", 0, offset) + 1)
        address = self._address
        loop = asyncio.get_running_loop()
        if address.path:
            kinds = [socket.SOCK_DGRAM, *([socket.SOCK_STREAM] if address.scheme == "unix" else [])]
            tries: list[tuple[Any, ...]] = [
                (socket.AF_UNIX, kind, 0, address.path) for kind in kinds
            ]
        else:
            kind = socket.SOCK_STREAM if address.scheme == "tcp" else socket.SOCK_DGRAM
            found = await self._resolving.run(
                address.host, socket.getaddrinfo, address.host, address.port, type=kind
            )
            tries = [(family, kind, proto, where) for family, _, proto, _, where in found]
        failed: OSError | None = None
        for family, kind, proto, where in tries:
            made = opened(family, kind, proto)
            try:
                await loop.sock_connect(made, where)
            except OSError as error:
                made.close()
                failed = error
                continue
            except BaseException:
                made.close()
                raise
            self._socket, self._stream = made, kind == socket.SOCK_STREAM
            return
        raise failed or OSError(0, "it has no address")

    def _message(self, line: Line) -> bytes:
        severity = _ERROR if line.stream == "stderr" else _INFO
        head = self._format(self._facility | severity, line.time)
        text = line.text
        if b"\r" in text:
            # Of a terminal's line ends, and of programs that write a line again: some receivers
            # would take it for the end of the message.
            text = text.rstrip(b"\r").replace(b"\r", b" ")
        return b"%b%b%b" % (head, text, b"\n" if self._stream else b"")


def _formatter(name: str, container: Container, local: bool) -> Callable[[int, str], bytes]:
    """The header of a message, by its priority and time. As in Docker, a message of RFC 3164 to a
    socket of the node has no hostname."""
    host, pid = _word(container.source.node, 255), os.getpid()
    tag, id = _word(container.tag, _LONGEST_TAG), _word(container.tag, _LONGEST_ID)
    if name == "rfc3164":
        place = "" if local else f"{host} "

        def old(priority: int, time: str) -> bytes:
            at = datetime.fromisoformat(time[:19])
            stamp = f"{_MONTHS[at.month - 1]} {at.day:2} {at:%H:%M:%S}"
            return f"<{priority}>{stamp} {place}{tag}[{pid}]: ".encode()

        return old
    digits = 6 if name == "rfc5424micro" else 0

    def new(priority: int, time: str) -> bytes:
        stamp = time[:19] + (f"{time[19 : 20 + digits]}" if digits else "") + "Z"
        return f"<{priority}>1 {stamp} {host} {tag} {pid} {id} - ".encode()

    return new


def _word(text: str, most: int) -> str:
    """A text as a field of a header: printable, without spaces."""
    return re.sub(r"[^\x21-\x7e]", "_", text)[:most] or "-"
