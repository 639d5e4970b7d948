# SPDX-License-Identifier: Apache-2.0
"""The manager's HTTPS server: `/metrics`, `/sd` (service discovery), and the web page."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.identity.certificates import TlsFiles
from orchestrator.identity.host_identity import ManagerIdentity
from orchestrator.manager.event_loop import offload
from orchestrator.manager.operations.administration.web_sessions import WebSessions
from orchestrator.manager.operations.context import ManagerContext
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.telemetry.metrics import (
    ClusterCollector,
    ManagerState,
    WithDeprecatedNames,
)
from orchestrator.manager.telemetry.service_discovery import (
    JOBS,
    WEB_PORT,
    manager_targets,
    scrape_targets,
    web_address,
)
from orchestrator.manager.web.dashboard import Dashboard
from orchestrator.web.https import listening
from orchestrator.web.scrape import MetricsApp, digest, may_read, refuse

_SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


@asynccontextmanager
async def serve_web(
    ctx: ManagerContext,
    data_dir: Path,
    registry: CollectorRegistry,
    state: Callable[[], ManagerState],
    refresh: Callable[[], Awaitable[None]],
    managers: Callable[[], Awaitable[Any]],
) -> AsyncIterator[None]:
    """Serve while the body runs. `data_dir` has the manager's certificate; the cluster's metrics
    are added to `registry`. `refresh` reads, before each scrape, what collectors cannot read in a
    thread. `managers` returns a ListManagersReply. Raises CannotListen."""
    dashboard = Dashboard(ctx, WebSessions(ctx), managers)
    scraping = _Scraping(ctx, registry, state, refresh)
    app = web_application([*scraping.routes, *dashboard.routes], lambda: manager_targets(ctx.view))
    files, port = TlsFiles.of(data_dir, "manager"), ctx.identity.port + WEB_PORT
    async with (
        dashboard.updates.following(),
        listening(app, ctx.identity.address, port, files),
    ):
        yield


def web_application(
    routes: Sequence[BaseRoute], managers: Callable[[], Sequence[str]] = tuple
) -> Starlette:
    """An application with security headers on all responses, and errors as JSON. `managers`:
    HOST:PORT of the managers' HTTPS servers, which the page may try to reach."""
    return Starlette(
        routes=routes,
        middleware=[Middleware(_SecurityHeaders, managers=managers)],
        exception_handlers={HTTPException: _json_error},
    )


async def _json_error(request: Request, error: Exception) -> Response:
    """`{"error": …}`, one line that the page shows."""
    assert isinstance(error, HTTPException)
    text = "there is no such page" if error.detail == "Not Found" else error.detail
    # A request's JSON can hold lone surrogates, which only escapes can repeat.
    body = json.dumps({"error": text})
    return Response(body, error.status_code, error.headers, "application/json")


class _SecurityHeaders:
    """Middleware that adds the headers which confine the page."""

    def __init__(self, app: ASGIApp, managers: Callable[[], Sequence[str]]) -> None:
        self._app = app
        self._managers = managers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_SECURITY_HEADERS)
                headers["content-security-policy"] = _content_policy(self._managers())
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _content_policy(managers: Sequence[str]) -> str:
    reachable = " ".join(["'self'", *(f"https://{each}" for each in managers)])
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self'; connect-src {reachable}; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class _Scraping:
    """What Prometheus reads: metrics, and where to find more of them."""

    def __init__(
        self,
        ctx: ManagerContext,
        registry: CollectorRegistry,
        state: Callable[[], ManagerState],
        refresh: Callable[[], Awaitable[None]],
    ) -> None:
        self._ctx = ctx
        self._refresh = refresh
        self._state = state
        self._scraped = state()
        """The manager's own state as of the newest scrape: collectors run in a thread."""
        registry.register(ClusterCollector(lambda: ctx.view, lambda: self._scraped, ctx.now))
        metrics = MetricsApp(
            registry,
            ctx.identity.cluster_id,
            self._digest,
            revocations=ctx.revocations,
            render=self._render,
        )
        self.routes: list[BaseRoute] = [
            Route("/metrics", metrics),
            Route("/sd", self._discovery),
        ]

    async def _render(self, registry: CollectorRegistry) -> bytes:
        self._scraped = self._state()
        await self._refresh()
        return await offload(generate_latest, WithDeprecatedNames(registry))

    def _digest(self) -> str:
        cluster = self._ctx.view.cluster
        return digest(cluster.scrape_token) if cluster and cluster.scrape_token else ""

    async def _discovery(self, request: Request) -> Response:
        ctx, job = self._ctx, request.query_params.get("job", "")
        if not may_read(request.scope, ctx.identity.cluster_id, self._digest(), ctx.revocations):
            return _Unauthorized()
        if job and job not in JOBS:
            return PlainTextResponse(
                f"there is no job '{job}'; say {', '.join(JOBS[:-1])} or {JOBS[-1]}\n", 400
            )
        body = await offload(_targets_json, ctx.view, ctx.identity, job)
        return Response(body, media_type="application/json")


class _Unauthorized(Response):
    """The answer to a scraper without the token or a certificate."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await refuse(send)


def _targets_json(view: ClusterView, identity: ManagerIdentity, job: str) -> bytes:
    managers = manager_targets(view) or [web_address(identity)]
    # Group by group: one call of the encoder holds the interpreter until it is done.
    groups = (json.dumps(group) for group in scrape_targets(view, managers, job))
    return f"[{', '.join(groups)}]".encode()
