# SPDX-License-Identifier: Apache-2.0
"""Calls bridge a moment in which their only manager, or its etcd, does not serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from managerhost import Running, manager_again, manager_in
from test_clients_of_several_managers import context, endpoint, until, way_to

from orchestrator.cli.app.errors import ManagerLost, Refused
from orchestrator.cli.rpc import client as client_module
from orchestrator.cli.rpc.client import Client
from orchestrator.manager.store.kv import Conflict, StoreFull, StoreUnavailable
from orchestrator.model.documents import DocumentKind
from orchestrator.pb import control_pb2, documents_pb2, networks_pb2, volumes_pb2
from tests.freeports import free_ports

CREATE = networks_pb2.CreateNetworkRequest(name="net")
CONFIG: dict[str, Any] = {"kind": DocumentKind.CONFIG.value, "document": "settings"}
LIST = control_pb2.ListNetworksRequest()


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(client_module, "RECONNECT_PAUSE", 0.02)
    # How long a restart takes is not what is tested.
    monkeypatch.setattr(client_module, "REPEAT_WITHIN", 60.0)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with manager_in(tmp_path / "m", 600.0) as running:
        yield running


def networks(running: Running) -> list[str]:
    return [each.name for each in running.manager.cache.view.networks.values()]


@pytest.mark.parametrize("connected", [True, False])
async def test_calls_go_on_when_their_manager_has_restarted(
    tmp_path: Path, connected: bool
) -> None:
    async with AsyncExitStack() as stack:
        first = AsyncExitStack()
        before = await first.enter_async_context(manager_in(tmp_path / "m", 600.0))
        with Client(context(before, endpoint(before)), reach=60.0) as client:
            if connected:
                await asyncio.to_thread(client.call, "ListNetworks", LIST)
            await first.aclose()
            calls = [asyncio.create_task(asyncio.to_thread(client.call, "ListNetworks", LIST))]
            await asyncio.wait(calls, timeout=0.3)
            after = await stack.enter_async_context(manager_again(before))
            listed = await calls[0]
            await asyncio.to_thread(client.call, "Networks.CreateNetwork", CREATE)
        assert "net" not in [each.name for each in listed.networks]
        assert networks(after).count("net") == 1


async def test_a_write_is_repeated_until_etcd_answers(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    txn, failures = running.manager._kv.txn, 0

    async def leaderless(guards: Any, actions: Any) -> Any:
        nonlocal failures
        if not any("/net" in str(each) for each in actions) or failures == 3:
            return await txn(guards, actions)
        failures += 1
        raise StoreUnavailable("etcdserver: no leader")

    monkeypatch.setattr(running.manager._kv, "txn", leaderless)
    with Client(context(running, endpoint(running))) as client:
        made = await asyncio.to_thread(client.call, "Networks.CreateNetwork", CREATE)
    assert (made.name, failures) == ("net", 3)


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        (
            "Documents.UpdateDocument",
            documents_pb2.UpdateDocumentRequest(**CONFIG, label_add={"tier": "web"}),
        ),
        ("Documents.RemoveDocument", documents_pb2.RemoveDocumentRequest(**CONFIG)),
        ("Volumes.RemoveVolume", volumes_pb2.RemoveVolumeRequest(name="data", force=True)),
        ("Control.UpdateCluster", control_pb2.UpdateClusterRequest(rebalance_every=60.0)),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
async def test_a_write_is_repeated_though_its_first_attempt_is_applied_late(
    running: Running, monkeypatch: pytest.MonkeyPatch, method: str, request_: Any
) -> None:
    kv = running.manager._kv
    txn = kv.txn
    late: list[tuple[Any, Any]] = []

    async def slow(guards: Any, ops: Any) -> Any:
        if late:
            monkeypatch.undo()
            with suppress(Conflict):
                await txn(*late.pop())
            return await txn(guards, ops)
        late.append((guards, ops))
        raise StoreUnavailable("no answer within 2 s")

    with Client(context(running, endpoint(running))) as client:
        create = documents_pb2.CreateDocumentRequest(
            kind=CONFIG["kind"], name="settings", data=b"x"
        )
        await asyncio.to_thread(client.call, "Documents.CreateDocument", create)
        volume = volumes_pb2.CreateVolumeRequest(name="data")
        await asyncio.to_thread(client.call, "Volumes.CreateVolume", volume)
        monkeypatch.setattr(kv, "txn", slow)
        await asyncio.to_thread(client.call, method, request_)
    view = running.manager.cache.view
    config = view.document_by_name(DocumentKind.CONFIG, "settings")
    match method:
        case "Documents.UpdateDocument":
            assert config is not None
            assert config.labels == {"tier": "web"}
        case "Documents.RemoveDocument":
            assert config is None
        case "Volumes.RemoveVolume":
            assert "data" not in view.volumes
        case _:
            assert view.cluster is not None
            assert view.cluster.rebalance_every == 60.0


async def test_a_write_whose_reply_is_lost_is_repeated_at_the_same_manager(
    running: Running,
) -> None:
    async with way_to(running) as (way, only):
        with Client(context(running, only)) as client:
            await asyncio.to_thread(client.call, "ListNetworks", LIST)
            way.silent = True
            call = asyncio.create_task(
                asyncio.to_thread(client.call, "Networks.CreateNetwork", CREATE)
            )
            await until(running, lambda view: view.network_by_name("net") is not None)
            way.silent = False
            way.cut()
            assert (await call).name == "net"
    assert networks(running).count("net") == 1


async def test_etcd_that_stays_unavailable_is_named(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unavailable(*args: Any) -> Any:
        raise StoreUnavailable("no etcd endpoint answered in time")

    monkeypatch.setattr(running.manager._kv, "txn", unavailable)
    monkeypatch.setattr(client_module, "REPEAT_WITHIN", 0.1)
    with (
        Client(context(running, endpoint(running))) as client,
        pytest.raises(ManagerLost, match=r"^etcd is unavailable: no etcd endpoint"),
    ):
        await asyncio.to_thread(client.call, "Networks.CreateNetwork", CREATE)


async def test_a_full_store_is_refused_at_once(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*args: Any) -> Any:
        raise StoreFull("etcd's database is full")

    for verb in ("txn", "grant"):
        monkeypatch.setattr(running.manager._kv, verb, full)
    with (
        Client(context(running, endpoint(running))) as client,
        pytest.raises(Refused, match=r"^etcd's database is full"),
    ):
        await asyncio.to_thread(client.call, "Networks.CreateNetwork", CREATE)


async def test_a_manager_that_stays_down_is_named_with_the_reason(running: Running) -> None:
    port = free_ports(1)
    with (
        Client(context(running, f"127.0.0.1:{port}"), reach=0.1) as client,
        pytest.raises(ManagerLost, match=f":{port}: connection refused; is "),
    ):
        await asyncio.to_thread(client.call, "ListNetworks", LIST)
