"""The systemd journal, where there is one (systemd.io, "Native Journal Protocol")."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

SOCKET = Path("/run/systemd/journal/socket")


class Journal:
    """Sends lines to the journal; where there is none, nowhere."""

    def __init__(self, path: Path = SOCKET) -> None:
        self._path = str(path)
        self._socket: socket.socket | None = None
        if path.is_socket():
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    def send(self, line: str, identifier: str) -> None:
        """Send one line. A journal that is busy or gone does not hold anything up: the files have
        the entry."""
        if self._socket is None:
            return
        fields = f"MESSAGE={line}\nSYSLOG_IDENTIFIER={identifier}\nPRIORITY=6\n"
        with suppress(OSError):
            self._socket.sendto(fields.encode(), self._path)

    def close(self) -> None:
        """Send no more."""
        if self._socket is not None:
            self._socket.close()
