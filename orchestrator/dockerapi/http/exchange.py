# SPDX-License-Identifier: Apache-2.0
"""A request and its answer, without sockets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol

from orchestrator.dockerapi.http.errors import bad_parameter

MOST_BODY = 16 << 20
"""Maximum bytes of a JSON document; archives are streamed."""

RAW, MULTIPLEXED = "application/vnd.docker.raw-stream", "application/vnd.docker.multiplexed-stream"
"""Types of hijacked streams: a terminal's output, and frames of stdout and stderr (since 1.42)."""


class Body(Protocol):
    """The bytes that a client sends after its headers."""

    def read(self, most: int) -> bytes:
        """The next bytes, at most this many; empty at the end. Raises ApiError, OSError."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request for one route."""

    method: str
    path: str
    """Without the version."""
    version: tuple[int, int]
    """API version that the client speaks."""
    captured: Mapping[str, str]
    """The variable parts of the path."""
    query: Mapping[str, Sequence[str]]
    headers: Mapping[str, str]
    """By lower-case name."""
    body: Body

    def __getitem__(self, name: str) -> str:
        """A variable part of the path."""
        return self.captured[name]

    def text(self, name: str, default: str = "") -> str:
        """A parameter of the query."""
        values = self.query.get(name)
        return values[0] if values else default

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean, as dockerd reads it: anything but these words is true."""
        value = self.text(name).strip().lower()
        return default if name not in self.query else value not in ("", "0", "no", "false", "none")

    def number(self, name: str, default: int = 0) -> int:
        """An integer. Raises ApiError."""
        value = self.text(name)
        if not value:
            return default
        try:
            found = int(value)
        except ValueError:
            raise bad_parameter(
                f"invalid value {value!r} for the parameter {name}: not a number"
            ) from None
        if not -(1 << 63) <= found < 1 << 63:
            raise bad_parameter(f"invalid value {value!r} for the parameter {name}: out of range")
        return found

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; an empty body is an empty one. Raises ApiError."""
        parts, size = [], 0
        while data := self.body.read(1 << 16):
            size += len(data)
            if size > MOST_BODY:
                raise bad_parameter(f"the request body has more than {MOST_BODY} bytes")
            parts.append(data)
        text = b"".join(parts)
        if not text.strip():
            return {}
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise bad_parameter(f"invalid JSON: {error}") from None
        if not isinstance(found, dict):
            raise bad_parameter("invalid JSON: the request body must be an object")
        return found

    @property
    def upgrades(self) -> bool:
        """Whether the client asks for a hijacked connection by an upgrade."""
        return self.headers.get("upgrade", "").lower() == "tcp"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with a document, or with no body."""

    document: Any = None
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        """The encoded document."""
        if self.document is None:
            return b""
        return json.dumps(self.document, separators=(",", ":")).encode() + b"\n"


NO_CONTENT = Reply(status=HTTPStatus.NO_CONTENT)
NOT_MODIFIED = Reply(status=HTTPStatus.NOT_MODIFIED)


@dataclass(frozen=True, slots=True)
class Text:
    """An answer of plain text."""

    text: str


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer of chunks, sent as they come. The headers are sent at once."""

    chunks: Iterable[bytes]
    content_type: str = "application/json"
    cancel: Callable[[], None] = lambda: None
    """Called from another thread when the client has gone."""
    headers: Mapping[str, str] = field(default_factory=dict)


class Duplex(Protocol):
    """A hijacked connection: bytes of a process's stdin, and of its output."""

    def read(self) -> bytes:
        """The client's next bytes; empty once it has closed its side. Raises OSError."""

    def write(self, data: bytes) -> None:
        """Send it. Raises OSError."""


@dataclass(frozen=True, slots=True)
class Hijack:
    """An answer that turns the connection into a raw stream, which `serve` uses until it ends."""

    serve: Callable[[Duplex], None]
    content_type: str = RAW
