"""What a manager serves over HTTPS: `/metrics` and `/sd`."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import parse_qs

from prometheus_client import CollectorRegistry

from orchestrator.manager.discovery import JOBS, Group
from orchestrator.web.https import Receive, Scope, Send
from orchestrator.web.scrape import MetricsApp, may_read, refuse, respond


class ManagerApp:
    """An ASGI application."""

    def __init__(
        self,
        registry: CollectorRegistry,
        cluster_id: str,
        token_digest: Callable[[], str],
        targets: Callable[[str], list[Group]],
    ) -> None:
        """`targets`: what `/sd` answers for a job, or for all with an empty one."""
        self._metrics = MetricsApp(registry, cluster_id, token_digest)
        self._cluster_id = cluster_id
        self._digest = token_digest
        self._targets = targets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/sd":
            await self._discovery(scope, send)
        elif scope["path"] == "/metrics":
            await self._metrics(scope, receive, send)
        else:
            await respond(send, 404, b"there are /metrics and /sd here\n")

    async def _discovery(self, scope: Scope, send: Send) -> None:
        job = parse_qs(scope["query_string"].decode("latin-1")).get("job", [""])[0]
        if not may_read(scope, self._cluster_id, self._digest()):
            await refuse(send)
        elif job and job not in JOBS:
            said = f"there is no job '{job}'; say {', '.join(JOBS[:-1])} or {JOBS[-1]}\n"
            await respond(send, 400, said.encode())
        else:
            body = json.dumps(self._targets(job)).encode()
            await respond(send, 200, body, "application/json")
