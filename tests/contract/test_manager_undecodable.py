# SPDX-License-Identifier: Apache-2.0
"""Objects in etcd that nobody can decode: a manager that starts with them does all else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from managerhost import Running, manager_again, manager_in
from test_manager import Agent, agent, deploy, web

from orchestrator.manager.store.etcd import EtcdKv
from orchestrator.manager.store.etcd_member import EtcdMember
from orchestrator.manager.store.keys import object_key
from orchestrator.manager.store.kv import Delete, Kv, Put
from orchestrator.model.convert import encode, from_proto, to_proto
from orchestrator.model.specs import NetworkAttachment
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task
from orchestrator.pb import (
    containers_pb2,
    containers_pb2_grpc,
    control_pb2,
    control_pb2_grpc,
    networks_pb2,
    networks_pb2_grpc,
)

GARBAGE = b"\xff\xffgarbage"


@pytest.fixture
async def kv(tmp_path: Path) -> AsyncIterator[Kv]:
    async with (
        EtcdMember(tmp_path / "etcd") as member,
        EtcdKv(member.endpoints, member.tls) as kv,
    ):
        yield kv


def service(name: str, replicas: int) -> Any:
    return to_proto(replace(from_proto(web()), name=name, replicas=replicas))


async def tasks_run(node: Agent, count: int) -> None:
    """Until the node is to run so many tasks, and has said that it does."""
    await node.until(lambda: len(node.tasks) == count)
    await node.report(*node.tasks, state=TaskState.RUNNING)
    await node.until(lambda: node.acknowledged == node.sequence)


def of(running: Running, name: str) -> list[Task]:
    tasks = running.manager.cache.view.tasks.values()
    return [task for task in tasks if task.service_name == name]


async def test_an_undecodable_task_holds_its_own_service_and_no_other(
    kv: Kv, tmp_path: Path
) -> None:
    async with manager_in(tmp_path / "manager", 600.0, kv) as running:
        joined = await running.join(running.token)
        async with (
            agent(running, "one", joined) as node,
            running.channel(running.admin) as channel,
        ):
            control = control_pb2_grpc.ControlStub(channel)
            await deploy(running, control, service("web", 2))
            await deploy(running, control, service("other", 1))
            await deploy(running, control, service("broken", 1))
            await tasks_run(node, 4)
        # A second one that has joined, and is away.
        await running.join(running.token)
        view = running.manager.cache.view
        broken = view.service_by_name("broken")
        away = next(each for each in view.nodes.values() if each.description.hostname != "one")
        lost, kept = of(running, "web")
    assert broken is not None
    keys = [object_key(each) for each in (broken, away, lost)]
    await kv.txn([], [Put(key, GARBAGE) for key in [*keys, "/orc/gadgets/x"]])

    async with (
        manager_again(running) as running,
        agent(running, "one", joined) as node,
        running.channel(running.admin) as channel,
    ):
        control = control_pb2_grpc.ControlStub(channel)
        update = control_pb2.UpdateServiceRequest(service="other", spec=service("other", 2))
        await control.UpdateService(update)
        await deploy(running, control, service("newer", 1))
        running_now = {"web": 1, "other": 2, "broken": 1, "newer": 1}
        await tasks_run(node, sum(running_now.values()))
        assert {name: len(of(running, name)) for name in running_now} == running_now
        assert of(running, "web")[0].id == kept.id
        # A service that is held is not planned, whatever its user wants of it.
        update = control_pb2.UpdateServiceRequest(service="web", spec=service("web", 3))
        await control.UpdateService(update)
        await deploy(running, control, service("newest", 1))
        await tasks_run(node, 6)
        assert len(of(running, "web")) == 1
        rows = (await control.ListNodes(control_pb2.ListNodesRequest())).nodes
        assert {row.node.description.hostname for row in rows} == {"one", away.id[:12]}
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await control.RemoveNode(control_pb2.RemoveNodeRequest(node=away.id))
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert f"/orc/nodes/{away.id} cannot be decoded" in (refused.value.details() or "")
        assert await undecodable(channel) == {*keys, "/orc/gadgets/x"}
        about = (await control.GetCluster(control_pb2.GetClusterRequest())).undecodable
        assert {each.key: list(each.held_services) for each in about} == {
            "/orc/gadgets/x": [],
            object_key(away): [],
            object_key(broken): [broken.id],
            object_key(lost): ["web"],
        }
        for key in keys:
            entry = await kv.get(key)
            assert entry is not None
            assert entry.value == GARBAGE
        # What is restored, or taken away, is planned again: web gets what it was to have.
        await kv.txn([], [Put(object_key(lost), encode(lost)), Delete(object_key(away))])
        await tasks_run(node, 8)
        assert len(of(running, "web")) == 3
        assert lost.id in node.tasks


async def test_addresses_of_an_undecodable_service_are_taken(kv: Kv, tmp_path: Path) -> None:
    """All addresses of a small network are used up: the last service gets none, and creating it
    ends."""

    def member(name: str) -> Any:
        spec = from_proto(service(name, 1))
        attached = replace(spec.task, networks=(NetworkAttachment("small"),))
        return to_proto(replace(spec, task=attached))

    async with manager_in(tmp_path / "manager", 600.0, kv) as running:
        joined = await running.join(running.token)
        async with (
            agent(running, "one", joined),
            running.channel(running.admin) as channel,
        ):
            control = control_pb2_grpc.ControlStub(channel)
            await networks_pb2_grpc.NetworksStub(channel).CreateNetwork(
                networks_pb2.CreateNetworkRequest(name="small", subnets=["10.99.0.0/27"])
            )
            await deploy(running, control, member("broken"))
            broken = running.manager.cache.view.service_by_name("broken")
    assert broken is not None
    (vip,) = broken.vips.values()
    await kv.txn([], [Put(object_key(broken), GARBAGE)])

    async with (
        manager_again(running) as running,
        agent(running, "one", joined),
        running.channel(running.admin) as channel,
    ):
        control = control_pb2_grpc.ControlStub(channel)
        found: list[str] = []
        async with asyncio.timeout(30):
            for number in range(32):
                created = await deploy(running, control, member(f"next{number}"))
                found += created.vips.values()
        view = running.manager.cache.view
        assert view.quarantined[object_key(broken)].addresses == {vip}
        assert len({*found, vip}) == len(found) + 1, found
        assert not created.vips  # all are in use


async def undecodable(channel: grpc.aio.Channel) -> set[str]:
    """The keys that events name."""
    events = containers_pb2_grpc.ContainersStub(channel).Events(
        containers_pb2.EventsRequest(since=1.0, until=1e12)
    )
    found: set[str] = set()
    async with asyncio.timeout(30):
        async for event in events:
            if event.action == "undecodable":
                found.add(event.name)
                if len(found) == 4:
                    break
    events.cancel()
    return found
