"""What a logging driver sends lines to, as its shipper knows it."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from orchestrator.agent.logs.log_reader import Line
from orchestrator.linux.spawn import writable
from orchestrator.model.formats.log_options import Source

AT_ONCE = 32
"""Messages sent before others on the event loop have their turn."""
PATIENCE = 1.0
"""Seconds that a target may take for some lines before what waits is looked at again."""


class TargetError(Exception):
    """The target is gone or refuses lines; the text is one line for the user."""


@dataclass(frozen=True, slots=True)
class Container:
    """The container whose lines are sent."""

    source: Source
    tag: str
    details: Mapping[str, str] = field(default_factory=dict)
    """Labels and variables that its lines carry."""
    tagged: bool = False
    """Whether the user gave the tag."""


class Target(Protocol):
    """Takes the lines of one container, in order, from one caller."""

    async def send(self, lines: Sequence[Line]) -> int:
        """Send lines; how many it took within `PATIENCE`. Raises TargetError."""
        ...

    def record(self) -> dict[str, Any]:
        """What the target has to know after a restart; empty for most."""
        ...

    def close(self) -> None:
        """Let go of files and sockets; a later `send` opens them again."""
        ...


def opened(family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket that does not block."""
    return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)


async def send_datagram(to: socket.socket, message: bytes) -> None:
    """Send a message, once its receiver has room. Raises OSError."""
    while True:
        try:
            to.send(message)
        except BlockingIOError:
            await writable(to.fileno())
        else:
            return


def need_socket(path: Path, driver: str, missing: str) -> None:
    """Refuse a socket of the node that is not there; `missing` says what to do. Raises
    TargetError."""
    if not path.is_socket():
        raise TargetError(f"logging driver {driver}: this node has no socket {path}; {missing}")
