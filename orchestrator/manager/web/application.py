"""What a manager serves over HTTPS: `/metrics`, `/sd`, and the web page."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from orchestrator.identity.certificates import TlsFiles
from orchestrator.manager.event_loop import offload
from orchestrator.manager.operations.administration.web_sessions import WebSessions
from orchestrator.manager.operations.context import ManagerContext
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.telemetry.metrics import ClusterCollector, ManagerState
from orchestrator.manager.telemetry.service_discovery import (
    JOBS,
    WEB_PORT,
    scrape_targets,
    web_address,
)
from orchestrator.manager.web.dashboard import Dashboard
from orchestrator.web.asgi import Receive, Scope, Send
from orchestrator.web.https import listening
from orchestrator.web.scrape import MetricsApp, digest, may_read, refuse, respond


@asynccontextmanager
async def serve_web(
    ctx: ManagerContext,
    folder: Path,
    registry: CollectorRegistry,
    state: Callable[[], ManagerState],
) -> AsyncIterator[None]:
    """Serve while the body runs. `folder` has the manager's certificate; the cluster's metrics are
    added to `registry`. Raises CannotListen."""
    app = ManagerWebApp(ctx, registry, state)
    files, port = TlsFiles.of(folder, "manager"), ctx.identity.port + WEB_PORT
    async with app.following(), listening(app, ctx.identity.address, port, files):
        yield


class ManagerWebApp:
    """An ASGI application."""

    def __init__(
        self, ctx: ManagerContext, registry: CollectorRegistry, state: Callable[[], ManagerState]
    ) -> None:
        self._ctx = ctx
        self._state = state
        self._scraped = state()
        """The manager's own state as of the newest scrape: collectors run in a thread."""
        registry.register(ClusterCollector(lambda: ctx.view, lambda: self._scraped, ctx.now))
        self._metrics = MetricsApp(
            registry,
            ctx.identity.cluster_id,
            self._digest,
            revocations=ctx.revocations,
            render=self._render,
        )
        self._dashboard = Dashboard(ctx, WebSessions(ctx))
        self.following = self._dashboard.broadcast.following

    async def _render(self, registry: CollectorRegistry) -> bytes:
        self._scraped = self._state()
        return await offload(generate_latest, registry)

    def _digest(self) -> str:
        cluster = self._ctx.view.cluster
        return digest(cluster.scrape_token) if cluster and cluster.scrape_token else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["path"]:
            case "/metrics":
                await self._metrics(scope, receive, send)
            case "/sd":
                await self._discovery(scope, send)
            case _:
                await self._dashboard(scope, receive, send)

    async def _discovery(self, scope: Scope, send: Send) -> None:
        ctx = self._ctx
        job = parse_qs(scope["query_string"].decode("latin-1")).get("job", [""])[0]
        if not may_read(scope, ctx.identity.cluster_id, self._digest(), ctx.revocations):
            await refuse(send)
        elif job and job not in JOBS:
            said = f"there is no job '{job}'; say {', '.join(JOBS[:-1])} or {JOBS[-1]}\n"
            await respond(send, 400, said.encode())
        else:
            body = await offload(_targets, ctx.view, web_address(ctx.identity), job)
            await respond(send, 200, body, "application/json")


def _targets(view: ClusterView, manager: str, job: str) -> bytes:
    # Group by group: the interpreter stays with one call of the encoder until it is done.
    groups = (json.dumps(group) for group in scrape_targets(view, [manager], job))
    return f"[{', '.join(groups)}]".encode()
