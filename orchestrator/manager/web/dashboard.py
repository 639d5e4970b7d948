"""The page's requests, as an ASGI application."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from http.cookies import CookieError, SimpleCookie
from importlib import resources
from typing import Any
from urllib.parse import parse_qs

from orchestrator.daemon.background import background
from orchestrator.manager.errors import ErrorKind, RequestError
from orchestrator.manager.operations.administration.web_sessions import Session, WebSessions
from orchestrator.manager.operations.context import ManagerContext, request_error
from orchestrator.manager.operations.node_requests import send_request
from orchestrator.manager.operations.workloads.task_logs import LogOperations
from orchestrator.manager.store.kv import StoreError
from orchestrator.manager.web import dashboard_actions
from orchestrator.manager.web.dashboard_audit import AuditedRequest, client_address
from orchestrator.manager.web.live_updates import LiveUpdates, message
from orchestrator.manager.web.traffic_graph import Traffic
from orchestrator.model.access import SESSION_LIFE
from orchestrator.pb import control_pb2, dispatch_pb2, system_pb2
from orchestrator.web.asgi import Receive, Scope, Send
from orchestrator.web.scrape import header

log = logging.getLogger(__name__)

_LOOK = 1.0
"""Seconds between two looks at whether the session of a stream goes on."""
BEAT = 15.0
"""Seconds after which a stream that has nothing to tell says so, so that nobody in between hangs
up."""
_COOKIE = "orc"
_MOST_BODY = 1 << 16
_LAST_LINES = 200
_PATIENCE = 5.0
"""Seconds that a node has to tell its history."""
_KINDS = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_SCRIPT = "text/javascript; charset=utf-8"
_GUARDS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        b"img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


class Dashboard:
    """Serves the page and what it asks for."""

    def __init__(self, ctx: ManagerContext, sessions: WebSessions) -> None:
        self._ctx = ctx
        self._sessions = sessions
        self.broadcast = LiveUpdates(ctx)
        """To be followed for as long as the page is served."""
        self._files = _files()
        self._calls: dict[tuple[str, str], Callable[..., Awaitable[None]]] = {
            ("GET", "/api/session"): self._who,
            ("DELETE", "/api/session"): self._log_out,
            ("GET", "/api/events"): self._events,
            ("GET", "/api/traffic"): self._traffic,
            ("GET", "/api/logs"): self._logs,
            ("GET", "/api/history"): self._history,
            ("POST", "/api/act"): self._act,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        if method == "GET" and (found := self._files.get(path)):
            await _respond(send, 200, *found)
        elif (method, path) == ("POST", "/api/session"):
            await self._log_in(scope, receive, send)
        elif (call := self._calls.get((method, path))) is None:
            await _say(send, 404, "there is no such page")
        elif (session := self._session(scope)) is None:
            await _say(send, 401, "log in with the address that 'orc dashboard' prints")
        else:
            await self._sessions.used(session)
            await call(session, scope, receive, send)

    def _session(self, scope: Scope) -> Session | None:
        try:
            cookie = SimpleCookie(header(scope, b"cookie")).get(_COOKIE)
        except CookieError:
            return None
        return self._sessions.session(cookie.value) if cookie else None

    async def _log_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        order = await _json(receive)
        ticket = str(order.get("ticket", "")) if order else ""
        try:
            cookie = await self._sessions.log_in(ticket, client_address(scope))
        except StoreError as error:
            await _say(send, 503, f"etcd is unavailable: {error}")
            return
        session = self._sessions.session(cookie) if cookie else None
        if cookie is None or session is None:
            said = "this address was good for five minutes and one log-in; run 'orc dashboard'"
            await _say(send, 401, said)
            return
        AuditedRequest(self._ctx, session, scope, "Page.login").record("OK")
        await _tell(send, {"role": session.role}, _cookie(cookie, SESSION_LIFE))

    async def _log_out(self, session: Session, scope: Scope, receive: Receive, send: Send) -> None:
        await self._sessions.end(session.id)
        AuditedRequest(self._ctx, session, scope, "Page.logout").record("OK")
        await _tell(send, {}, _cookie("", 0))

    async def _who(self, session: Session, scope: Scope, receive: Receive, send: Send) -> None:
        await _tell(send, {"role": session.role, "until": session.until})

    async def _act(self, session: Session, scope: Scope, receive: Receive, send: Send) -> None:
        audited = AuditedRequest(self._ctx, session, scope)
        if session.role != "admin":
            audited.record("PERMISSION_DENIED")
            await _say(send, 403, "this log-in may look, and change nothing")
            return
        # A page of another origin cannot send this header without being asked first.
        if header(scope, b"content-type") != "application/json":
            await _say(send, 415, "an action is JSON")
            return
        order = await _json(receive) or {}
        audited.order(order)
        try:
            await dashboard_actions.act(self._ctx, order)
        except Exception as error:
            refused = request_error(error)
            audited.record(refused.kind.name if refused else "UNKNOWN")
            if refused is None:
                raise
            status = 503 if refused.kind is ErrorKind.UNAVAILABLE else 409
            await _say(send, status, refused.text)
        except BaseException:
            audited.record("CANCELLED")
            raise
        else:
            audited.record("OK")
            await _tell(send, {})

    async def _events(self, session: Session, scope: Scope, receive: Receive, send: Send) -> None:
        await self._stream(session, receive, send, self._pictures())

    async def _stream(
        self, session: Session, receive: Receive, send: Send, events: AsyncIterator[bytes]
    ) -> None:
        """Send events until the browser hangs up, or its session is over."""

        async def over() -> None:
            while self._sessions.counts(session):
                await asyncio.sleep(_LOOK)
                await self._sessions.used(session)

        await _stream(receive, send, events, over())

    async def _pictures(self) -> AsyncIterator[bytes]:
        """The whole, then what changes, and what happens."""
        with self.broadcast.viewer() as viewer:
            while True:
                yield await self.broadcast.next(viewer)

    async def _traffic(self, session: Session, scope: Scope, receive: Receive, send: Send) -> None:
        """Who talks to whom; nodes are asked for as long as this is."""
        traffic = Traffic(self._ctx)

        async def told() -> AsyncIterator[bytes]:
            async for picture in traffic.pictures():
                yield message("traffic", picture)

        async with background(traffic.ask()):
            await self._stream(session, receive, send, told())

    async def _logs(self, session: Session, scope: Scope, receive: Receive, send: Send) -> None:
        word = parse_qs(scope["query_string"].decode("latin-1")).get("of", [""])[0]
        await self._stream(session, receive, send, self._lines(word))

    async def _history(self, session: Session, scope: Scope, receive: Receive, send: Send) -> None:
        """The last hour of a task (`?task=`) or a node (`?node=`), as its node remembers it."""
        query = parse_qs(scope["query_string"].decode("latin-1"))
        view, task_id = self._ctx.view, query.get("task", [""])[0]
        task = view.tasks.get(task_id)
        node = view.nodes.get(task.node_id if task else query.get("node", [""])[0])
        if node is None or (task_id and task is None):
            await _say(send, 404, "there is no such task or node")
            return
        order = dispatch_pb2.OpenTunnel(history=system_pb2.HistoryOrder(task_id=task_id))
        try:
            async with asyncio.timeout(_PATIENCE):
                _, result = await send_request(self._ctx, node, order)
        except (RequestError, TimeoutError):
            await _say(send, 503, f"node {node.description.hostname} does not answer")
            return
        found = result.history
        await _tell(send, {"at": [*found.at], "cores": [*found.cores], "memory": [*found.memory]})

    async def _lines(self, word: str) -> AsyncIterator[bytes]:
        request = control_pb2.LogsRequest(service=word, follow=True, tail=_LAST_LINES)
        async with aclosing(LogOperations(self._ctx).logs(request)) as found:
            try:
                async for batch in found:
                    yield message(
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
            except RequestError as refusal:
                yield message("refused", refusal.text)


def _files() -> dict[str, tuple[bytes, str]]:
    """Path → content and type, of the page."""
    found = {}
    for file in resources.files(__package__).joinpath("page").iterdir():
        if file.is_file():
            kind = _KINDS.get(file.name, _SCRIPT)
            found["/" if file.name == "index.html" else f"/{file.name}"] = file.read_bytes(), kind
    return found


def _cookie(value: str, life: float) -> tuple[bytes, bytes]:
    text = f"{_COOKIE}={value}; Path=/; Max-Age={life:.0f}; Secure; HttpOnly; SameSite=Strict"
    return b"set-cookie", text.encode()


async def _json(receive: Receive) -> dict[str, Any] | None:
    """A request's body; None when it is no JSON object."""
    body, more = b"", True
    while more and len(body) <= _MOST_BODY:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    try:
        found = json.loads(body)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


async def _stream(
    receive: Receive,
    send: Send,
    events: AsyncIterator[bytes],
    over: Coroutine[Any, Any, None],
) -> None:
    """Send server-sent events until the browser hangs up, or `over` has come to its end."""
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"text/event-stream; charset=utf-8"), *_GUARDS],
        }
    )
    await _chunk(send, b"retry: 1000\n\n")
    quiet = asyncio.Event()

    async def pump() -> None:
        async for text in events:
            quiet.clear()
            await _chunk(send, text)

    async def beat() -> None:
        while True:
            quiet.set()
            await asyncio.sleep(BEAT)
            if quiet.is_set():
                await _chunk(send, b": still here\n\n")

    async with asyncio.TaskGroup() as group:
        others = [group.create_task(beat()), group.create_task(pump())]
        ends = [group.create_task(_hung_up(receive)), group.create_task(over)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for task in (*others, *ends):
            task.cancel()
    await send({"type": "http.response.body", "body": b""})


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _chunk(send: Send, text: bytes) -> None:
    await send({"type": "http.response.body", "body": text, "more_body": True})


async def _tell(send: Send, data: Any, *headers: tuple[bytes, bytes]) -> None:
    await _respond(send, 200, json.dumps(data).encode(), "application/json", *headers)


async def _say(send: Send, status: int, text: str) -> None:
    """Refuse, in a line that the page shows."""
    await _respond(send, status, json.dumps({"error": text}).encode(), "application/json")


async def _respond(
    send: Send, status: int, body: bytes, kind: str, *headers: tuple[bytes, bytes]
) -> None:
    fixed = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [*fixed, *_GUARDS, *headers],
        }
    )
    await send({"type": "http.response.body", "body": body})
