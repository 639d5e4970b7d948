# SPDX-License-Identifier: Apache-2.0
"""Calls of the API while the store fails: what a user is told, and what is there afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from managerhost import Running, manager_beside, manager_in

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import CERTIFICATE_TURN
from orchestrator.manager.store.kv import Entry, Guard, Op, StoreFull, StoreUnavailable
from orchestrator.model.convert import to_proto
from orchestrator.model.objects import Image
from orchestrator.model.specs import ContainerSpec, ServiceSpec, TaskSpec
from orchestrator.pb import (
    containers_pb2,
    containers_pb2_grpc,
    control_pb2,
    control_pb2_grpc,
    managers_pb2,
    managers_pb2_grpc,
)

IMAGE = Image(id="sha256:" + "a" * 64, names=("hello:1",), nodes=("n1",))


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with manager_in(tmp_path / "manager", 600.0) as running:
        yield running


def lose_the_answer(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store applies the next write that takes a name, and its answer is lost."""
    txn = running.kv.txn

    async def losing(guards: Sequence[Guard], ops: Sequence[Op]) -> int:
        revision = await txn(guards, ops)
        if any(op.key.startswith("/orc/names/") for op in ops):
            monkeypatch.undo()
            raise StoreUnavailable("no answer")
        return revision

    monkeypatch.setattr(running.kv, "txn", losing)


async def test_a_service_whose_creation_got_no_answer_is_not_created_twice(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = to_proto(ServiceSpec(name="web", task=TaskSpec(container=ContainerSpec("hello:1"))))
    request = control_pb2.CreateServiceRequest(spec=task, no_resolve_image=True)
    async with running.channel(running.admin) as channel:
        control = control_pb2_grpc.ControlStub(channel)
        lose_the_answer(running, monkeypatch)
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await control.CreateService(request)
        assert unknown.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError) as taken:
            await control.CreateService(request)
        assert taken.value.code() is grpc.StatusCode.ALREADY_EXISTS
        rows = (await control.ListServices(control_pb2.ListServicesRequest())).services
        assert [row.service.spec.name for row in rows] == ["web"]


async def test_a_container_whose_creation_got_no_answer_is_not_created_twice(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = to_proto(TaskSpec(container=ContainerSpec("hello:1")))
    request = containers_pb2.CreateContainerRequest(name="box", spec=spec)
    await commit(running.kv, [Change(None, IMAGE)])
    async with running.channel(running.admin) as channel:
        containers = containers_pb2_grpc.ContainersStub(channel)
        lose_the_answer(running, monkeypatch)
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await containers.CreateContainer(request)
        assert unknown.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError) as taken:
            await containers.CreateContainer(request)
        assert taken.value.code() is grpc.StatusCode.ALREADY_EXISTS
    tasks = running.manager.cache.view.tasks.values()
    assert [task.container_name for task in tasks] == ["box"]


async def test_full_store_names_the_remedy_and_stays_readable(running: Running) -> None:
    def fault(verb: str, phase: str) -> None:
        if verb == "txn" and phase == "before":
            raise StoreFull("etcd's database is full: compact and defragment it")

    spec: Any = to_proto(ServiceSpec(name="web", task=TaskSpec(container=ContainerSpec("hello:1"))))
    async with running.channel(running.admin) as channel:
        control = control_pb2_grpc.ControlStub(channel)
        running.kv.fault = fault
        with pytest.raises(grpc.aio.AioRpcError) as full:
            await control.CreateService(
                control_pb2.CreateServiceRequest(spec=spec, no_resolve_image=True)
            )
        assert full.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert full.value.details() == "etcd's database is full: compact and defragment it"
        assert not (await control.ListServices(control_pb2.ListServicesRequest())).services


@pytest.mark.parametrize("applied", [True, False])
async def test_a_host_joins_although_etcd_does_not_answer_for_a_moment(
    running: Running, monkeypatch: pytest.MonkeyPatch, applied: bool
) -> None:
    kv = running.manager._kv
    txn, failures = kv.txn, 0
    wanted = 1 if applied else 3

    async def silent(guards: Sequence[Guard], ops: Sequence[Op]) -> int:
        nonlocal failures
        if failures == wanted or not any("/nodes/" in op.key for op in ops):
            return await txn(guards, ops)
        failures += 1
        if applied:
            await txn(guards, ops)
        raise StoreUnavailable("no answer within 2 s")

    monkeypatch.setattr(kv, "txn", silent)
    joined = await running.join(running.token, "n1")
    assert failures == wanted
    nodes = running.manager.cache.view.nodes
    assert [(each.id, each.description.hostname) for each in nodes.values()] == [
        (joined.node_id, "n1")
    ]


async def test_a_manager_is_removed_although_etcd_elects_a_leader(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kv, view = running.manager._kv, lambda: running.manager.cache.view
    get, failures = kv.get, 0

    async def leaderless(key: str) -> Entry | None:
        nonlocal failures
        if key == CERTIFICATE_TURN and failures < 3:
            failures += 1
            raise StoreUnavailable("no answer within 2 s")
        return await get(key)

    async with manager_beside(running, tmp_path / "other") as other:
        async with running.manager.cache.subscribe() as feed:
            while other.identity.manager_id not in view().managers:
                await feed.next()
        monkeypatch.setattr(kv, "get", leaderless)
        async with running.channel(running.admin) as channel:
            request = managers_pb2.RemoveManagerRequest(manager=other.identity.manager_id)
            await managers_pb2_grpc.ManagersStub(channel).RemoveManager(request)
    assert failures == 3
    assert view().managers.keys() == {running.identity.manager_id}
