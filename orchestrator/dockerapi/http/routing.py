# SPDX-License-Identifier: Apache-2.0
"""The table of endpoints: paths, handlers, and how far each parameter does what Docker's does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from orchestrator.dockerapi.http.errors import ApiError
from orchestrator.dockerapi.http.exchange import Hijack, Reply, Request, Stream, Text

if TYPE_CHECKING:
    from orchestrator.dockerapi.gateway import Gateway

NEWEST, OLDEST = (1, 45), (1, 24)
"""API versions. Clients negotiate the newest that both sides speak."""

_VERSIONED = re.compile(r"/v(\d{1,3})\.(\d{1,3})(?=/|$)")

Answer = Reply | Text | Stream | Hijack
Handler = Callable[["Gateway", Request], Answer]

SAME = "same"
"""A parameter that does what Docker's does. Other notes say what differs, or why it is refused."""


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint."""

    method: str
    path: str
    """As in Docker's specification, such as `/containers/{id}/json`."""
    handler: Handler
    summary: str
    notes: Mapping[str, str] = field(default_factory=dict)
    """Parameter → `SAME` or a note for users."""


class Routes:
    """The endpoints of one module."""

    def __init__(self) -> None:
        self._routes: list[Route] = []

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes)

    def route(
        self, method: str, path: str, summary: str = "", /, **notes: str
    ) -> Callable[[Handler], Handler]:
        """Decorate the handler of an endpoint. `summary`: what differs from Docker's, if anything
        does. `notes`: its parameters."""

        def add(handler: Handler) -> Handler:
            self._routes.append(Route(method, path, handler, summary or SAME, notes))
            return handler

        return add


class Router:
    """Finds the endpoint of a path."""

    def __init__(self, *modules: Routes) -> None:
        self.routes = [route for routes in modules for route in routes]
        self._compiled = [(_pattern(route.path), route) for route in self.routes]

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """The endpoint and the variable parts of its path. Raises ApiError."""
        wanted = "GET" if method == "HEAD" else method
        allowed = []
        for pattern, route in self._compiled:
            if (found := pattern.fullmatch(path)) is None:
                continue
            if route.method in (method, wanted):
                return route, found.groupdict()
            allowed.append(route.method)
        if allowed:
            raise ApiError(HTTPStatus.METHOD_NOT_ALLOWED, "method not allowed")
        raise ApiError(HTTPStatus.NOT_FOUND, "page not found")


def split_version(path: str) -> tuple[tuple[int, int], str]:
    """The API version and the path without it. Raises ApiError for one that is not served."""
    found = _VERSIONED.match(path)
    if found is None:
        return NEWEST, path
    version = (int(found[1]), int(found[2]))
    if version > NEWEST:
        raise ApiError(
            HTTPStatus.BAD_REQUEST,
            f"client version {found[1]}.{found[2]} is too new. "
            f"Maximum supported API version is {NEWEST[0]}.{NEWEST[1]}",
        )
    if version < OLDEST:
        raise ApiError(
            HTTPStatus.BAD_REQUEST,
            f"client version {found[1]}.{found[2]} is too old. Minimum supported API version is "
            f"{OLDEST[0]}.{OLDEST[1]}, please upgrade your client to a newer version",
        )
    return version, path[found.end() :] or "/"


def _pattern(path: str) -> re.Pattern[str]:
    """`{name}` may have slashes, as names of images do; other parts have none."""
    parts: list[Any] = re.split(r"\{(\w+)\}", path)
    return re.compile(
        "".join(
            (f"(?P<{part}>.+)" if part == "name" else f"(?P<{part}>[^/]+)")
            if number % 2
            else re.escape(part)
            for number, part in enumerate(parts)
        )
    )
