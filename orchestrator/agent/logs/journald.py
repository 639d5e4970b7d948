# SPDX-License-Identifier: Apache-2.0
"""The journald driver: lines with Docker's fields, by journald's own protocol.

Source: systemd's "Native Journal Protocol" and moby's daemon/logger/journald.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Sequence
from pathlib import Path

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

SOCKET = Path("/run/systemd/journal/socket")
_ERROR, _INFO = b"3", b"6"
_MISSING = "run systemd-journald on it, or use --log-driver local or json-file"
_LONGEST_FIELD = 64


def check(path: Path = SOCKET) -> None:
    """Check that the node has journald. Raises TargetError."""
    need_socket(path, "journald", _MISSING)


class Journald(SocketTarget):
    """Sends the lines of one container."""

    def __init__(self, container: Container, path: Path = SOCKET) -> None:
        super().__init__()
        source = container.source
        self._path = path
        self._fields = b"".join(
            _field(name, text.encode())
            for name, text in {
                **{_name(key): value for key, value in container.details.items()},
                "CONTAINER_ID": source.id[:12],
                "CONTAINER_ID_FULL": source.id,
                "CONTAINER_NAME": source.name,
                "CONTAINER_TAG": container.tag,
                "IMAGE_NAME": source.image,
                "SYSLOG_IDENTIFIER": container.tag,
            }.items()
            if name
        )

    async def send(self, lines: Sequence[Line]) -> int:
        """See `Target.send`."""
        taken = 0
        try:
            async with asyncio.timeout(PATIENCE):
                connected = self._connected()
                for line in lines:
                    await send_datagram(connected, self._entry(line))
                    taken += 1
                    if taken % BATCH == 0:
                        # Let other tasks of the event loop run.
                        await asyncio.sleep(0)
        except TimeoutError:
            return taken
        except OSError as error:
            self.close()
            if taken:
                return taken
            raise TargetError(
                f"logging driver journald: cannot send to {self._path} ({error.strerror})"
            ) from error
        return taken

    def _connected(self) -> socket.socket:
        if self._socket is None:
            made = opened(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                made.connect(str(self._path))
            except BaseException:
                made.close()
                raise
            self._socket = made
        return self._socket

    def _entry(self, line: Line) -> bytes:
        priority = _ERROR if line.stream == "stderr" else _INFO
        return b"".join(
            (
                _field("MESSAGE", line.text),
                b"PRIORITY=%b\nSYSLOG_TIMESTAMP=%b\n" % (priority, line.time.encode()),
                b"CONTAINER_PARTIAL_MESSAGE=true\n" if line.partial else b"",
                self._fields,
            )
        )


def _field(name: str, value: bytes) -> bytes:
    if b"\n" in value:
        return b"%b\n%b%b\n" % (name.encode(), len(value).to_bytes(8, "little"), value)
    return b"%b=%b\n" % (name.encode(), value)


def _name(key: str) -> str:
    """The field of a label or variable; Docker's rule: capital letters, all else an underscore."""
    return re.sub(r"[^A-Z0-9_]", "_", key.upper()).lstrip("_0123456789")[:_LONGEST_FIELD]
