# SPDX-License-Identifier: Apache-2.0
"""Clients of two managers on one store: writes with an unknown outcome, reads of own writes, and
managers that they learn of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from managerhost import Running, manager_beside, manager_in
from test_manager import IMAGE, web

from orchestrator.cli.app.contexts import Context, load_context, save_context
from orchestrator.cli.app.errors import ManagerLost, Refused
from orchestrator.cli.rpc import retries
from orchestrator.cli.rpc.client import Client
from orchestrator.cli.service.convergence import watch_progress
from orchestrator.manager.api import client_calls
from orchestrator.manager.audit.audited_methods import MUTATING, READ_ONLY
from orchestrator.manager.audit.trail import EntryFilter
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.commit import commit
from orchestrator.pb import (
    containers_pb2,
    containers_pb2_grpc,
    control_pb2,
    control_pb2_grpc,
    documents_pb2,
    networks_pb2,
    types_pb2,
    volumes_pb2,
)


@pytest.fixture
async def leader(tmp_path: Path) -> AsyncIterator[Running]:
    async with manager_in(tmp_path / "leader", 600.0) as running:
        cache = running.manager.cache
        await cache.wait_for(await commit(running.kv, [Change(None, IMAGE)]))
        yield running


@pytest.fixture
async def follower(leader: Running, tmp_path: Path) -> AsyncIterator[Running]:
    async with manager_beside(leader, tmp_path / "follower") as running:
        yield running


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def endpoint(running: Running) -> str:
    return f"127.0.0.1:{running.identity.port}"


def context(running: Running, *endpoints: str) -> Context:
    return Context(
        "test",
        endpoints,
        running.authority.certificate,
        running.admin.certificate,
        running.admin.key,
    )


class _Way:
    """A way to a manager that can lose what the manager sends, and then breaks."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.silent = False
        self._ends: list[asyncio.StreamWriter] = []
        self._pumps: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._ends += writer, far_writer
        for source, sink, replies in (
            (reader, far_writer, False),
            (far_reader, writer, True),
        ):
            pump = asyncio.create_task(self._pump(source, sink, replies))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, replies: bool
    ) -> None:
        with suppress(ConnectionError):
            while data := await source.read(1 << 16):
                if not (self.silent and replies):
                    sink.write(data)

    def cut(self) -> None:
        for end in self._ends:
            end.close()


@asynccontextmanager
async def way_to(running: Running) -> AsyncIterator[tuple[_Way, str]]:
    way = _Way(running.identity.port)
    server = await asyncio.start_server(way.accept, "127.0.0.1", 0)
    try:
        yield way, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        way.cut()
        server.close()


async def until(running: Running, holds: Callable[[ClusterView], bool]) -> None:
    cache = running.manager.cache
    async with asyncio.timeout(60), cache.subscribe() as feed:
        while not holds(cache.view):
            await feed.next()


async def recorded(running: Running, method: str) -> None:
    """Wait until a manager has recorded a call."""
    trail = running.manager._audit
    async with asyncio.timeout(60):
        while True:
            await trail.written()
            async for chunk in trail.entries(EntryFilter()):
                if any(each["method"] == method for each in chunk):
                    return


def wanted_objects(running: Running) -> dict[str, Any]:
    """What users have created and not removed, by id."""
    view = running.manager.cache.view
    services = {id: each.spec for id, each in view.services.items() if not each.removed}
    boxes = {task.id for task in view.tasks_of_service("").values()}
    return {**services, **dict.fromkeys((*boxes, *view.networks, *view.documents, *view.volumes))}


def _service(view: ClusterView, name: str = "web") -> Any:
    return view.service_by_name(name)


def _named(name: str) -> Any:
    spec = web()
    spec.name = name
    return spec


def _update(replicas: int) -> Any:
    return control_pb2.UpdateServiceRequest(service="web", spec=web(replicas))


def _scaled(view: ClusterView) -> bool:
    return bool(_service(view).spec.replicas == 3)


WRITES: list[tuple[str, Any, Callable[[ClusterView], bool], Callable[[Any], Any], Any]] = [
    (
        "CreateService",
        control_pb2.CreateServiceRequest(spec=_named("other")),
        lambda view: _service(view, "other") is not None,
        lambda reply: reply.spec.name,
        "other",
    ),
    ("UpdateService", _update(3), _scaled, lambda reply: reply.spec.replicas, 3),
    (
        "RemoveService",
        control_pb2.RemoveServiceRequest(service="web"),
        lambda view: all(service.removed for service in view.services.values()),
        lambda reply: bool(reply.id),
        True,
    ),
    (
        "Networks.CreateNetwork",
        networks_pb2.CreateNetworkRequest(name="net"),
        lambda view: view.network_by_name("net") is not None,
        lambda reply: reply.name,
        "net",
    ),
    (
        "Networks.RemoveNetwork",
        networks_pb2.RemoveNetworkRequest(network="old"),
        lambda view: view.network_by_name("old") is None,
        lambda reply: reply.name,
        "old",
    ),
    (
        "Containers.CreateContainer",
        containers_pb2.CreateContainerRequest(name="box", spec=web().task),
        lambda view: any(task.container_name == "box" for task in view.tasks.values()),
        lambda reply: reply.container_name,
        "box",
    ),
    (
        "Documents.CreateDocument",
        documents_pb2.CreateDocumentRequest(kind=types_pb2.DOCUMENT_CONFIG, name="conf", data=b"x"),
        lambda view: any(each.name == "conf" for each in view.documents.values()),
        lambda reply: reply.name,
        "conf",
    ),
    (
        "Volumes.CreateVolume",
        volumes_pb2.CreateVolumeRequest(name="data"),
        lambda view: "data" in view.volumes,
        lambda reply: reply.id,
        "data",
    ),
]


@pytest.mark.parametrize(
    ("method", "request_", "applied", "shown", "wanted"), WRITES, ids=[each[0] for each in WRITES]
)
async def test_a_write_whose_reply_is_lost_is_applied_once(
    leader: Running,
    follower: Running,
    method: str,
    request_: Any,
    applied: Callable[[ClusterView], bool],
    shown: Callable[[Any], Any],
    wanted: Any,
) -> None:
    async with way_to(leader) as (way, first):
        with Client(context(leader, first, endpoint(follower))) as client:
            create = control_pb2.CreateServiceRequest(spec=web())
            await asyncio.to_thread(client.call, "CreateService", create)
            old = networks_pb2.CreateNetworkRequest(name="old")
            await asyncio.to_thread(client.call, "Networks.CreateNetwork", old)
            way.silent = True
            call = asyncio.create_task(asyncio.to_thread(client.call, method, request_))
            await until(leader, applied)
            before = wanted_objects(leader)
            way.cut()
            reply = await call
            assert shown(reply) == wanted
            assert client.endpoint == endpoint(follower)
    assert wanted_objects(follower) == wanted_objects(leader) == before


async def test_a_further_attempt_of_a_write_that_was_not_applied_applies_it(
    leader: Running, follower: Running
) -> None:
    async with way_to(leader) as (way, first):
        with Client(context(leader, first, endpoint(follower))) as client:
            await asyncio.to_thread(client.call, "ListNodes", control_pb2.ListNodesRequest())
            way.cut()
            create = control_pb2.CreateServiceRequest(spec=web())
            made = await asyncio.to_thread(client.call, "CreateService", create)
    assert list(leader.manager.cache.view.services) == [made.id]


async def test_a_refusal_is_not_taken_for_an_earlier_success(
    leader: Running, follower: Running
) -> None:
    with Client(context(leader, endpoint(leader), endpoint(follower))) as client:
        create = control_pb2.CreateServiceRequest(spec=web())
        await asyncio.to_thread(client.call, "CreateService", create)
        for _ in range(2):
            with pytest.raises(Refused, match="already exists"):
                await asyncio.to_thread(client.call, "CreateService", create)


async def test_two_managers_that_process_one_request_apply_it_once(
    leader: Running, follower: Running
) -> None:
    async def attempt(running: Running, number: int) -> Any:
        async with running.channel(running.admin) as channel:
            return await control_pb2_grpc.ControlStub(channel).CreateService(
                control_pb2.CreateServiceRequest(spec=web()),
                metadata=(("orc-request-id", "same"), ("orc-attempt", str(number))),
            )

    replies = await asyncio.gather(*(attempt(r, n) for n, r in enumerate((leader, follower), 1)))
    assert len({reply.id for reply in replies}) == 1
    assert len(leader.manager.cache.view.services) == 1


async def test_a_further_attempt_of_a_removal_succeeds_once_the_container_is_gone(
    leader: Running, follower: Running
) -> None:
    async def attempt(running: Running, number: int) -> Any:
        async with running.channel(running.admin) as channel:
            return await containers_pb2_grpc.ContainersStub(channel).RemoveContainer(
                containers_pb2.RemoveContainerRequest(container="box", force=True),
                metadata=(("orc-request-id", "same"), ("orc-attempt", str(number))),
            )

    with Client(context(leader, endpoint(leader))) as client:
        create = containers_pb2.CreateContainerRequest(name="box", spec=web().task)
        made = await asyncio.to_thread(client.call, "Containers.CreateContainer", create)
    assert (await attempt(leader, 1)).id == made.id
    await until(follower, lambda view: not view.tasks)
    again = await attempt(follower, 2)
    assert (again.id, again.container_name) == (made.id, "box")


async def test_a_call_that_must_not_be_repeated_is_not(leader: Running, follower: Running) -> None:
    async with way_to(leader) as (way, first):
        with Client(context(leader, first, endpoint(follower))) as client:
            await asyncio.to_thread(client.call, "ListNodes", control_pb2.ListNodesRequest())
            way.silent = True
            kill = containers_pb2.KillContainerRequest(container="box", signal="SIGHUP")
            call = asyncio.create_task(
                asyncio.to_thread(client.call, "Containers.KillContainer", kill)
            )
            await recorded(leader, "Containers.KillContainer")
            way.cut()
            with pytest.raises(ManagerLost, match="broke"):
                await call


async def test_lagging_manager_answers_once_it_has_the_clients_write(
    leader: Running, follower: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = follower.manager.cache
    apply, held = cache._apply, asyncio.Event()

    async def delayed(*batch: Any) -> None:
        await held.wait()
        await apply(*batch)

    monkeypatch.setattr(cache, "_apply", delayed)
    with Client(context(leader, endpoint(leader))) as client:
        create = control_pb2.CreateServiceRequest(spec=web())
        await asyncio.to_thread(client.call, "CreateService", create)
        client._endpoints = [endpoint(follower)]
        client.close()
        ask = asyncio.create_task(
            asyncio.to_thread(client.call, "ListServices", control_pb2.ListServicesRequest())
        )
        done, _ = await asyncio.wait([ask], timeout=0.3)
        assert not done
        held.set()
        assert [row.service.spec.name for row in (await ask).services] == ["web"]


async def test_a_manager_that_stays_behind_is_left_for_another(
    leader: Running, follower: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_calls, "CATCH_UP_WITHIN", 0.1)
    with Client(context(leader, endpoint(leader))) as client:
        create = control_pb2.CreateServiceRequest(spec=web())
        await asyncio.to_thread(client.call, "CreateService", create)
        await until(follower, lambda view: _service(view) is not None)

        async def lost(*batch: Any) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(follower.manager.cache, "_apply", lost)
        await asyncio.to_thread(client.call, "UpdateService", _update(3))
        client._endpoints = [endpoint(follower), endpoint(leader)]
        client.close()
        listed = await asyncio.to_thread(
            client.call, "ListServices", control_pb2.ListServicesRequest()
        )
        assert [row.service.spec.replicas for row in listed.services] == [3]
        assert client.endpoint == endpoint(leader)


async def test_a_restored_store_is_read_although_its_revisions_are_lower(
    leader: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_calls, "CATCH_UP_WITHIN", 0.1)
    with Client(context(leader, endpoint(leader))) as client:
        client._revision = 10**9
        await asyncio.to_thread(client.call, "ListNodes", control_pb2.ListNodesRequest())
        assert client._revision < 10**9


def test_every_rpc_is_repeated_as_the_manager_handles_it() -> None:
    unary = {
        f"{service}.{name}"
        for service, name in (method.split(".") for method in (*MUTATING, *READ_ONLY))
    }
    assert client_calls.RECORDED.keys() == retries.RECORDED
    assert retries.READS <= READ_ONLY
    assert MUTATING.keys() >= retries.RECORDED
    assert MUTATING.keys() >= retries.IDEMPOTENT
    assert not retries.RECORDED & retries.IDEMPOTENT
    assert unary >= retries.READS | retries.RECORDED | retries.IDEMPOTENT


async def test_a_context_learns_the_managers_from_replies(
    leader: Running, follower: Running
) -> None:
    async with way_to(leader) as (_, balancer):
        first = context(leader, balancer)
        save_context(first)
        with Client(load_context("test")) as client:
            await asyncio.to_thread(client.call, "ListNodes", control_pb2.ListNodesRequest())
        expected = {endpoint(leader), endpoint(follower)}
        assert set(load_context("test").endpoints) == {balancer, *expected}
        assert load_context("test").endpoints[0] == balancer


async def test_a_wait_for_a_service_goes_on_at_another_manager(
    leader: Running, follower: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    async with way_to(leader) as (way, first):
        with Client(context(leader, first, endpoint(follower))) as client:
            create = control_pb2.CreateServiceRequest(spec=web())
            await asyncio.to_thread(client.call, "CreateService", create)
            progress = watch_progress(client, "web", time.monotonic() + 60)
            shown = await asyncio.to_thread(next, progress)
            assert shown.service.spec.replicas == 1
            way.cut()

            def until_scaled() -> None:
                while next(progress).service.spec.replicas != 3:
                    pass

            wait = asyncio.create_task(asyncio.to_thread(until_scaled))
            async with follower.channel(follower.admin) as channel:
                await control_pb2_grpc.ControlStub(channel).UpdateService(_update(3))
            await wait
            assert client.endpoint == endpoint(follower)
    assert capsys.readouterr().err == ""
