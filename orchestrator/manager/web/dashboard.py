# SPDX-License-Identifier: Apache-2.0
"""The web page's files and requests, as routes of a Starlette application."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from orchestrator.manager.errors import ErrorKind, RequestError
from orchestrator.manager.operations.administration.web_sessions import Session, WebSessions
from orchestrator.manager.operations.context import ManagerContext, request_error
from orchestrator.manager.operations.node_requests import send_request
from orchestrator.manager.operations.workloads.task_logs import LogOperations
from orchestrator.manager.store.kv import StoreError
from orchestrator.manager.telemetry.service_discovery import other_pages
from orchestrator.manager.web import dashboard_actions
from orchestrator.manager.web.dashboard_actions import AuditedRequest, client_address
from orchestrator.manager.web.live_updates import LiveUpdates
from orchestrator.manager.web.manager_table import manager_table
from orchestrator.manager.web.server_sent_events import EventStream, event
from orchestrator.manager.web.traffic_graph import Traffic
from orchestrator.model.administration.access import SESSION_LIFE
from orchestrator.pb import control_pb2, dispatch_pb2, system_pb2

log = logging.getLogger(__name__)

_SESSION_CHECK = 1.0
"""Seconds between two checks that the session of a stream is still valid."""
_COOKIE = "orc"
_MAX_BODY = 1 << 16
_LOG_TAIL = 200
_MANAGERS_PERIOD = 2.0
"""Seconds between two looks at the managers while a page shows them."""
_HISTORY_TIMEOUT = 5.0
"""Seconds that a node has to answer with its history."""

Handler = Callable[[Request, Session], Awaitable[Response]]


class Dashboard:
    """Serves the page and its requests."""

    def __init__(
        self,
        ctx: ManagerContext,
        sessions: WebSessions,
        managers: Callable[[], Awaitable[Any]],
    ) -> None:
        """`managers` returns a ListManagersReply."""
        self._ctx = ctx
        self._managers = managers
        self._sessions = sessions
        self.updates = LiveUpdates(ctx)
        """To be followed for as long as the page is served."""

    @property
    def routes(self) -> list[BaseRoute]:
        """All routes; the last one matches every path."""

        def route(path: str, handler: Handler, method: str = "GET") -> Route:
            return Route(
                path, self._authenticated(handler), methods=[method], max_body_size=_MAX_BODY
            )

        return [
            Route("/api/session", self._log_in, methods=["POST"], max_body_size=_MAX_BODY),
            route("/api/session", self._log_out, "DELETE"),
            route("/api/session", self._describe_session),
            route("/api/elsewhere", self._elsewhere),
            route("/api/events", self._events),
            route("/api/traffic", self._traffic),
            route("/api/managers", self._manager_table),
            route("/api/logs", self._logs),
            route("/api/history", self._history),
            route("/api/act", self._act, "POST"),
            Mount("/", StaticFiles(packages=[(__package__, "page")], html=True)),
        ]

    def _authenticated(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """Call a handler with the session that the cookie names; 401 without one."""

        async def checked(request: Request) -> Response:
            session = self._sessions.session(request.cookies.get(_COOKIE, ""))
            if session is None:
                raise HTTPException(401, "log in with the address that 'orc dashboard' prints")
            await self._sessions.touch(session)
            return await handler(request, session)

        return checked

    async def _log_in(self, request: Request) -> Response:
        ticket = str((await _json_object(request)).get("ticket", ""))
        try:
            cookie = await self._sessions.log_in(ticket, client_address(request))
        except StoreError as error:
            raise HTTPException(503, f"etcd is unavailable: {error}") from None
        session = self._sessions.session(cookie) if cookie else None
        if cookie is None or session is None:
            raise HTTPException(
                401, "this address was good for five minutes and one log-in; run 'orc dashboard'"
            )
        AuditedRequest(self._ctx, session, request, "Page.login").record("OK")
        response = JSONResponse({"role": session.role})
        _set_cookie(response, cookie, SESSION_LIFE)
        return response

    async def _log_out(self, request: Request, session: Session) -> Response:
        await self._sessions.end(session.id)
        AuditedRequest(self._ctx, session, request, "Page.logout").record("OK")
        response = JSONResponse({})
        _set_cookie(response, "", 0)
        return response

    async def _describe_session(self, request: Request, session: Session) -> Response:
        return JSONResponse({"role": session.role, "until": session.until})

    async def _act(self, request: Request, session: Session) -> Response:
        audited = AuditedRequest(self._ctx, session, request)
        if session.role != "admin":
            audited.record("PERMISSION_DENIED")
            raise HTTPException(403, "this session is read-only")
        # A page of another origin cannot send this content type without a preflight request.
        if request.headers.get("content-type") != "application/json":
            raise HTTPException(415, "an action is JSON")
        action = await _json_object(request)
        audited.set_action(action)
        try:
            await dashboard_actions.act(self._ctx, action)
        except Exception as error:
            refused = request_error(error)
            audited.record(refused.kind.name if refused else "UNKNOWN")
            if refused is None:
                raise
            status = 503 if refused.kind is ErrorKind.UNAVAILABLE else 409
            raise HTTPException(status, refused.text) from None
        except BaseException:
            audited.record("CANCELLED")
            raise
        audited.record("OK")
        return JSONResponse({})

    def _stream(
        self,
        session: Session,
        events: AsyncIterator[bytes],
        source: Coroutine[Any, Any, None] | None = None,
    ) -> Response:
        """Send events until the browser disconnects or its session ends."""

        async def expiry() -> None:
            while self._sessions.is_valid(session):
                await asyncio.sleep(_SESSION_CHECK)
                await self._sessions.touch(session)

        return EventStream(events, expiry(), source)

    async def _elsewhere(self, request: Request, session: Session) -> Response:
        """Where the page goes when this manager is lost: HOST:PORT of other managers' pages, and a
        ticket with which the session continues there."""
        return JSONResponse(
            {
                "managers": other_pages(self._ctx.view, self._ctx.identity),
                "ticket": self._sessions.hand_over(session),
            }
        )

    async def _events(self, request: Request, session: Session) -> Response:
        """The whole cluster, then changes and events."""

        async def events() -> AsyncIterator[bytes]:
            with self.updates.viewer() as viewer:
                while True:
                    yield await self.updates.next(viewer)

        return self._stream(session, events())

    async def _traffic(self, request: Request, session: Session) -> Response:
        """Connections between services; nodes are polled for as long as the stream lasts."""
        traffic = Traffic(self._ctx)

        async def events() -> AsyncIterator[bytes]:
            async for graph in traffic.graphs():
                yield event("traffic", graph)

        return self._stream(session, events(), traffic.collect())

    async def _manager_table(self, request: Request, session: Session) -> Response:
        """The managers and their etcd members; they are asked for as long as the stream lasts."""

        async def events() -> AsyncIterator[bytes]:
            while True:
                yield event("managers", manager_table(await self._managers()))
                await asyncio.sleep(_MANAGERS_PERIOD)

        return self._stream(session, events())

    async def _logs(self, request: Request, session: Session) -> Response:
        """The last lines of a service or task (`?of=`), and new ones as they are written."""
        return self._stream(session, self._log_events(request.query_params.get("of", "")))

    async def _log_events(self, word: str) -> AsyncIterator[bytes]:
        request = control_pb2.LogsRequest(service=word, follow=True, tail=_LOG_TAIL)
        async with aclosing(LogOperations(self._ctx).logs(request)) as batches:
            try:
                async for batch in batches:
                    yield event(
                        "lines",
                        [
                            {
                                "task": batch.task_name,
                                "at": record.at,
                                "error": record.stderr,
                                "notice": record.notice,
                                "line": record.line.decode(errors="replace"),
                            }
                            for record in batch.records
                        ],
                    )
            except RequestError as error:
                yield event("refused", error.text)

    async def _history(self, request: Request, session: Session) -> Response:
        """The last hour of a task (`?task=`) or a node (`?node=`), from its node's memory."""
        query, view = request.query_params, self._ctx.view
        task_id = query.get("task", "")
        task = view.tasks.get(task_id)
        node = view.nodes.get(task.node_id if task else query.get("node", ""))
        if node is None or (task_id and task is None):
            raise HTTPException(404, "there is no such task or node")
        order = dispatch_pb2.OpenTunnel(history=system_pb2.HistoryOrder(task_id=task_id))
        try:
            async with asyncio.timeout(_HISTORY_TIMEOUT):
                _, result = await send_request(self._ctx, node, order)
        except (RequestError, TimeoutError):
            raise HTTPException(503, f"node {node.description.hostname} does not answer") from None
        found = result.history
        return JSONResponse({"at": [*found.at], "cores": [*found.cores], "memory": [*found.memory]})


def _set_cookie(response: Response, value: str, life: float) -> None:
    response.set_cookie(
        _COOKIE, value, max_age=int(life), secure=True, httponly=True, samesite="strict"
    )


async def _json_object(request: Request) -> dict[str, Any]:
    """The request's body; empty when it is not a JSON object."""
    try:
        found = json.loads(await request.body())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
