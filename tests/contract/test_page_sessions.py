# SPDX-License-Identifier: Apache-2.0
"""Sessions of the web page on a real manager: who has one, until when, and how it ends."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import grpc
import pytest
from managerhost import Running, manager_beside, manager_in

from orchestrator.identity.authority import Authority
from orchestrator.identity.bootstrap import new_admin
from orchestrator.identity.certificates import KeyPair
from orchestrator.manager.audit.trail import EntryFilter
from orchestrator.manager.operations.administration import web_sessions as sessions_module
from orchestrator.manager.security import certificates as certificates_module
from orchestrator.model.administration.access import IDLE, SESSION_LIFE, TICKET_LIFE, PageSession
from orchestrator.model.convert import to_proto
from orchestrator.model.nodes import Availability
from orchestrator.model.specs import ContainerSpec, ServiceSpec, TaskSpec
from orchestrator.pb import (
    access_pb2,
    access_pb2_grpc,
    control_pb2,
    control_pb2_grpc,
    dashboard_pb2,
    dashboard_pb2_grpc,
)

OVER = 401


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with manager_in(tmp_path / "manager", node_timeout=30.0) as running:
        yield running


def admin(running: Running, name: str) -> KeyPair:
    now = dt.datetime.now(dt.UTC)
    return new_admin(
        Authority.local(running.authority), running.identity.cluster_id, now, name=name
    )


async def ticket(running: Running, by: KeyPair | None = None, read_only: bool = False) -> str:
    async with running.channel(by or running.admin) as channel:
        reply = await dashboard_pb2_grpc.DashboardStub(channel).OpenDashboard(
            dashboard_pb2.OpenDashboardRequest(read_only=read_only)
        )
    return str(reply.ticket)


async def sessions(running: Running) -> list[Any]:
    async with running.channel(running.admin) as channel:
        reply = await dashboard_pb2_grpc.DashboardStub(channel).ListSessions(
            dashboard_pb2.ListSessionsRequest()
        )
    return list(reply.sessions)


async def revoke(running: Running, kind: str, name: str) -> None:
    async with running.channel(running.admin) as channel:
        await access_pb2_grpc.AccessStub(channel).Revoke(
            access_pb2.RevokeRequest(kind=kind, name=name)
        )


@dataclass
class Browser:
    """Speaks with a manager's web server as the page does."""

    running: Running
    cookie: str = ""

    def _ask(self, method: str, path: str, body: Any, stream: bool) -> tuple[int, Any]:
        context = ssl.create_default_context(cafile=self.running.folder / "ca.pem")
        context.check_hostname = False
        port = self.running.identity.port + 2
        page = HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
        headers = {"Cookie": self.cookie, "Content-Type": "application/json"}
        page.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = page.getresponse()
        if set_cookie := answer.headers["Set-Cookie"]:
            self.cookie = set_cookie.partition(";")[0]
        if stream:
            return answer.status, answer
        text = answer.read()
        page.close()
        return answer.status, json.loads(text)

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return await asyncio.to_thread(self._ask, method, path, body, False)

    async def stream(self, path: str) -> Any:
        status, answer = await asyncio.to_thread(self._ask, "GET", path, None, True)
        assert status == 200
        await asyncio.to_thread(answer.readline)
        return answer

    async def log_in(self, text: str) -> int:
        return (await self.ask("POST", "/api/session", {"ticket": text}))[0]

    async def status(self) -> int:
        return (await self.ask("GET", "/api/session"))[0]


async def ended(answer: Any) -> None:
    """Wait until the manager ends a stream."""
    async with asyncio.timeout(60):
        await asyncio.to_thread(answer.read)


async def test_a_ticket_opens_one_session(running: Running) -> None:
    browser, other = Browser(running), Browser(running)
    text = await ticket(running)
    assert await browser.log_in(text) == 200
    assert await browser.ask("GET", "/api/session") == (
        200,
        {"role": "admin", "until": (await sessions(running))[0].until},
    )
    # Whoever reads the address over somebody's shoulder comes too late.
    assert await other.log_in(text) == OVER
    assert await other.status() == OVER
    # Nor does it work again once the session was ended.
    assert (await browser.ask("DELETE", "/api/session"))[0] == 200
    assert await other.log_in(text) == OVER


@pytest.mark.parametrize("text", ["", "x", "%%%", "eyJhbGciOiJub25lIn0"])
async def test_malformed_ticket_opens_no_session(running: Running, text: str) -> None:
    browser = Browser(running)
    assert await browser.log_in(text) == OVER
    browser.cookie = f"orc={text}"
    assert await browser.status() == OVER
    assert await sessions(running) == []


async def test_a_ticket_is_no_cookie_and_a_cookie_no_ticket(running: Running) -> None:
    browser = Browser(running)
    text = await ticket(running)
    browser.cookie = f"orc={text}"
    assert await browser.status() == OVER
    assert await browser.log_in(text) == 200
    assert await Browser(running).log_in(browser.cookie.removeprefix("orc=")) == OVER


async def test_sessions_are_listed_and_ended_with_their_streams(running: Running) -> None:
    anna, bob = Browser(running), Browser(running)
    await anna.log_in(await ticket(running, admin(running, "anna")))
    await bob.log_in(await ticket(running, admin(running, "bob"), read_only=True))
    listed = await sessions(running)
    assert [(each.user, each.role) for each in listed] == [("anna", "admin"), ("bob", "viewer")]
    assert all(each.address.startswith("127.0.0.1:") for each in listed)
    stream = await anna.stream("/api/events")
    await revoke(running, "session", listed[0].id[:6])
    await ended(stream)
    assert await anna.status() == OVER
    assert await bob.status() == 200
    assert [each.user for each in await sessions(running)] == ["bob"]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await revoke(running, "session", listed[0].id)
    assert "see 'orc cluster sessions'" in (refused.value.details() or "")


async def test_sessions_end_with_the_certificate_of_the_admin(running: Running) -> None:
    browser = Browser(running)
    by = admin(running, "anna")
    unused = await ticket(running, by)
    await browser.log_in(await ticket(running, by))
    stream = await browser.stream("/api/events")
    await revoke(running, "admin", "anna")
    await ended(stream)
    assert await browser.status() == OVER
    assert await Browser(running).log_in(unused) == OVER
    assert await sessions(running) == []


async def test_another_manager_knows_and_ends_them_too(running: Running, tmp_path: Path) -> None:
    async with manager_beside(running, tmp_path / "other") as other:
        browser = Browser(other)
        await browser.log_in(await ticket(running))
        here = Browser(running, browser.cookie)
        await running.manager.cache.wait_for(other.manager.cache.revision)
        assert await here.status() == 200
        stream = await browser.stream("/api/events")
        await revoke(running, "session", (await sessions(running))[0].id)
        await ended(stream)


async def test_a_session_continues_at_another_manager(running: Running, tmp_path: Path) -> None:
    async with manager_beside(running, tmp_path / "other") as other:
        browser, there, late = Browser(running), Browser(other), Browser(other)
        await browser.log_in(await ticket(running, read_only=True))
        cache = running.manager.cache
        async with asyncio.timeout(60), cache.subscribe() as feed:
            while len(cache.view.manager_presence) < 2:
                await feed.next()
        status, found = await browser.ask("GET", "/api/elsewhere")
        assert (status, found["managers"]) == (200, [f"127.0.0.1:{other.identity.port + 2}"])
        unused = (await browser.ask("GET", "/api/elsewhere"))[1]["ticket"]
        assert await there.log_in(found["ticket"]) == 200
        first, second = await sessions(running)
        assert (second.role, second.user, second.until) == ("viewer", first.user, first.until)
        # Once the session has ended, its tickets open nothing.
        await revoke(running, "session", first.id)
        await other.manager.cache.wait_for(cache.revision)
        assert await late.log_in(unused) == OVER


class Clock:
    """The time as the manager's sessions see it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return dt.datetime.now(dt.UTC).timestamp() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("orchestrator.manager.daemon.time.time", clock)
    return clock


def at(clock: Clock, seconds: float) -> None:
    clock.ahead = seconds


async def test_a_closed_page_ends_its_session_and_an_open_one_keeps_it(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "LAST_USE_PRECISION", 0.01)
    async with manager_in(tmp_path / "manager", node_timeout=30.0) as running:
        browser = Browser(running)
        await browser.log_in(await ticket(running))
        at(clock, IDLE - 60)
        assert await browser.status() == 200
        at(clock, 2 * IDLE - 120)  # from that use on
        assert await browser.status() == 200
        at(clock, 3 * IDLE)
        assert await browser.status() == OVER
        assert await sessions(running) == []


async def test_a_session_ends_after_hours_of_use(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "LAST_USE_PRECISION", 0.01)
    async with manager_in(tmp_path / "manager", node_timeout=30.0) as running:
        browser = Browser(running)
        await browser.log_in(await ticket(running))
        for turn in range(1, int(SESSION_LIFE / (IDLE / 2))):
            at(clock, turn * IDLE / 2)
            assert await browser.status() == 200
        at(clock, SESSION_LIFE + 1)
        assert await browser.status() == OVER


async def test_an_old_ticket_opens_nothing(clock: Clock, tmp_path: Path) -> None:
    async with manager_in(tmp_path / "manager", node_timeout=30.0) as running:
        text = await ticket(running)
        at(clock, TICKET_LIFE + 1)
        assert await Browser(running).log_in(text) == OVER


@pytest.mark.parametrize(
    ("session", "now", "over", "forgotten"),
    [
        (PageSession(created_at=0, used_at=0, until=9000), IDLE - 1, False, False),
        (PageSession(created_at=0, used_at=0, until=9000), IDLE, True, True),
        (PageSession(created_at=0, used_at=0, until=9000, ended_at=1), 2, True, False),
        (PageSession(created_at=0, used_at=0, until=9000, ended_at=1), TICKET_LIFE, True, True),
        (PageSession(created_at=0, used_at=8990, until=9000), 9000, True, True),
    ],
)
def test_when_a_session_is_over(
    session: PageSession, now: float, over: bool, forgotten: bool
) -> None:
    assert session.is_over(now) is over
    assert session.can_be_forgotten(now) is forgotten


async def test_sessions_that_are_over_are_forgotten(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates_module, "_SWEEP", 0.01)
    async with manager_in(tmp_path / "manager", node_timeout=30.0) as running:
        await Browser(running).log_in(await ticket(running))
        cache = running.manager.cache
        async with asyncio.timeout(60), cache.subscribe() as feed:
            while not cache.view.page_sessions:
                await feed.next()
            at(clock, SESSION_LIFE + 1)
            while cache.view.page_sessions:
                await feed.next()


async def test_actions_of_the_page_are_in_the_audit_trail(running: Running) -> None:
    anna, viewer = Browser(running), Browser(running)
    by = admin(running, "anna")
    joined = await running.join(running.token)
    async with running.channel(by) as channel:
        spec = ServiceSpec(name="web", task=TaskSpec(container=ContainerSpec(image="hello:1")))
        service = await control_pb2_grpc.ControlStub(channel).CreateService(
            control_pb2.CreateServiceRequest(spec=to_proto(spec), no_resolve_image=True)
        )
    await anna.log_in(await ticket(running, by))
    await viewer.log_in(await ticket(running, by, read_only=True))
    scale = {"do": "scale", "to": service.id, "replicas": 3}
    assert (await anna.ask("POST", "/api/act", scale))[0] == 200
    assert (await anna.ask("POST", "/api/act", {"do": "drain", "to": joined.node_id}))[0] == 200
    assert (await anna.ask("POST", "/api/act", {**scale, "to": "n\ud800ne\n"}))[0] == 409
    assert (await viewer.ask("POST", "/api/act", scale))[0] == 403
    assert (await anna.ask("DELETE", "/api/session"))[0] == 200
    node = running.manager.cache.view.nodes[joined.node_id]
    assert node.availability is Availability.DRAIN
    trail = running.manager._audit
    await trail.written()
    found = [each async for chunk in trail.entries(EntryFilter()) for each in chunk]
    pages = [each for each in found if each["via"] == "page"]
    assert {each["user"] for each in pages} == {"anna"}
    assert [(each["method"], each["kind"], each["id"], each["result"]) for each in pages] == [
        ("Page.login", "session", pages[0]["id"], "OK"),
        ("Page.login", "session", pages[1]["id"], "OK"),
        ("Page.scale", "service", service.id, "OK"),
        ("Page.drain", "node", joined.node_id, "OK"),
        ("Page.scale", "service", "", "NOT_FOUND"),
        ("Page.act", "session", pages[1]["id"], "PERMISSION_DENIED"),
        ("Page.logout", "session", pages[0]["id"], "OK"),
    ]
    written = "".join(path.read_text() for path in (running.folder / "audit").iterdir())
    for cookie in (anna.cookie, viewer.cookie):
        secret = cookie.partition("=")[2].strip('"')
        assert not secret or secret not in written
