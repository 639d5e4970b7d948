# SPDX-License-Identifier: Apache-2.0
"""Targets of logging drivers: the interface, and a base for those that send over a socket."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from orchestrator.agent.logs.log_reader import Line
from orchestrator.linux.spawn import writable
from orchestrator.model.formats.log_options import Source

BATCH = 32
"""Messages sent before the event loop runs other tasks."""
PATIENCE = 1.0
"""Seconds that a target may take for a batch of lines before waiting lines are counted again."""


class TargetError(Exception):
    """The target is unavailable or refuses lines; the text is one line for the user."""


@dataclass(frozen=True, slots=True)
class Container:
    """The container whose lines are sent."""

    source: Source
    tag: str
    details: Mapping[str, str] = field(default_factory=dict)
    """Labels and variables in its lines."""
    tagged: bool = False
    """Whether the user gave the tag."""


class Target(Protocol):
    """Takes the lines of one container, in order, from one caller."""

    async def send(self, lines: Sequence[Line]) -> int:
        """Send lines; return how many it took within `PATIENCE` seconds. Raises TargetError."""
        ...

    def record(self) -> dict[str, Any]:
        """State of the target to restore after a restart; empty for most."""
        ...

    def close(self) -> None:
        """Close files and sockets; a later `send` opens them again."""
        ...


class SocketTarget:
    """A target over a socket, without state to restore."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def record(self) -> dict[str, Any]:
        """See `Target.record`."""
        return {}

    def close(self) -> None:
        """See `Target.close`."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def opened(family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A non-blocking socket."""
    return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)


async def send_datagram(to: socket.socket, message: bytes) -> None:
    """Send a message, once the receiver's buffer has room. Raises OSError."""
    while True:
        try:
            to.send(message)
        except BlockingIOError:
            await writable(to.fileno())
        else:
            return


def need_socket(path: Path, driver: str, missing: str) -> None:
    """Check that a socket of the node exists; `missing` says what to do. Raises TargetError."""
    if not path.is_socket():
        raise TargetError(f"logging driver {driver}: this node has no socket {path}; {missing}")
