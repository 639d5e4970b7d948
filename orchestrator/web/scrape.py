# SPDX-License-Identifier: Apache-2.0
"""`/metrics` for Prometheus, and its authorisation.

Prometheus shows the cluster's scrape token (`orc cluster token scrape`) as a bearer token, or a
certificate of the cluster. A host knows only the token's digest, so a leak from a node reveals no
token.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable

from prometheus_client import (
    CollectorRegistry,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from orchestrator.identity.revocation import Revocations
from orchestrator.web.asgi import PEER, Receive, Scope, Send


def process_registry() -> CollectorRegistry:
    """A registry that has the process itself, and shows no `_created` beside each counter."""
    disable_created_metrics()  # type: ignore[no-untyped-call]
    made = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=made)
    PlatformCollector(registry=made)
    return made


def digest(token: str) -> str:
    """The digest of a token that hosts get: SHA-256, in hexadecimal digits."""
    return hashlib.sha256(token.encode()).hexdigest()


def may_read(scope: Scope, cluster_id: str, token_digest: str, revocations: Revocations) -> bool:
    """Whether the request may read the metrics."""
    peer = scope.get(PEER)
    if peer is not None and peer.cluster_id == cluster_id:
        if revocations.of(peer) is None:
            return True
        revocations.refused(peer)
    kind, _, token = header(scope, b"authorization").partition(" ")
    return (
        bool(token_digest)
        and kind.lower() == "bearer"
        and hmac.compare_digest(digest(token.strip()), token_digest)
    )


def header(scope: Scope, name: bytes) -> str:
    """A request's header; empty when there is none."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


class MetricsApp:
    """An ASGI application that answers `GET /metrics`, in Prometheus' text format."""

    def __init__(
        self,
        registry: CollectorRegistry,
        cluster_id: str,
        token_digest: Callable[[], str],
        more: Callable[[], str] = str,
        revocations: Revocations | None = None,
        render: Callable[[CollectorRegistry], Awaitable[bytes]] | None = None,
    ) -> None:
        """`more` writes whatever is not in the registry, in the same format. `render` makes the
        text of a registry that takes long to collect."""
        self._more = more
        self._render = render or _rendered
        self._registry = registry
        self._cluster_id = cluster_id
        self._digest = token_digest
        self._revocations = revocations or Revocations()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/metrics":
            await respond(send, 404, b"there is only /metrics here\n")
        elif scope["method"] not in ("GET", "HEAD"):
            await respond(send, 405, b"/metrics is read with GET\n")
        elif not may_read(scope, self._cluster_id, self._digest(), self._revocations):
            await refuse(send)
        else:
            body = await self._render(self._registry) + self._more().encode()
            await respond(send, 200, body, CONTENT_TYPE_PLAIN_0_0_4)


async def _rendered(registry: CollectorRegistry) -> bytes:
    return generate_latest(registry)


async def refuse(send: Send) -> None:
    """Answer 401: the caller is unknown."""
    await respond(
        send,
        401,
        b"show the token that 'orc cluster token scrape' prints as a bearer token, or a "
        b"certificate of the cluster\n",
        authenticate=True,
    )


async def respond(
    send: Send,
    status: int,
    body: bytes,
    kind: str = "text/plain; charset=utf-8",
    *,
    authenticate: bool = False,
) -> None:
    """Send a whole response."""
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    if authenticate:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
