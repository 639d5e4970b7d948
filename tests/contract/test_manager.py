# SPDX-License-Identifier: Apache-2.0
"""A manager and scripted agents over real gRPC: what is declared is assigned, and what is
reported is seen."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import grpc
import pytest
from managerhost import Running, manager_in

from orchestrator.identity.certificates import KeyPair
from orchestrator.manager.operations.node_requests import assign_image_names
from orchestrator.manager.planning import pipeline
from orchestrator.manager.store.keys import LEADER
from orchestrator.manager.store.kv import Conflict, Delete, Guard, Put
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.documents import DocumentKind, FileReference
from orchestrator.model.nodes import NodeDescription
from orchestrator.model.objects import Image
from orchestrator.model.services import UpdateState
from orchestrator.model.specs import ContainerSpec, Resources, ServiceSpec, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import TaskStatus
from orchestrator.pb import (
    control_pb2,
    control_pb2_grpc,
    dispatch_pb2,
    dispatch_pb2_grpc,
    documents_pb2,
    documents_pb2_grpc,
)

_ADDRESSES = itertools.count(1)
"""Of nodes."""
SECRET: Any = DocumentKind.SECRET
IMAGE = Image(id="sha256:" + "a" * 64, names=("hello:1",))


@pytest.fixture
def node_timeout() -> float:
    """Longer than any test, whose nodes say only what they must."""
    return 600.0


@pytest.fixture
async def running(tmp_path: Path, node_timeout: float) -> AsyncIterator[Running]:
    async with manager_in(tmp_path / "manager", node_timeout) as running:
        yield running


@pytest.fixture
async def control(running: Running) -> AsyncIterator[Any]:
    async with running.channel(running.admin) as channel:
        yield control_pb2_grpc.ControlStub(channel)


class Agent:
    """A node that does as it is told, and keeps what it was told."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.tasks: dict[str, Any] = {}
        self.networks: list[Any] = []
        self.follows = True
        """It acknowledges endpoint tables as they come."""
        self.ready: set[str] = set()
        """Ids of the tasks that are ready by the newest table."""
        self.revision = 0
        self.sequence = 0
        self.acknowledged = 0
        self.full_sets = 0

    @property
    def addresses(self) -> dict[str, str]:
        """The first address that a task of it can have in each network, by the network's name."""
        return {each.name: str(IPv4Network(each.subnet)[2]) for each in self.networks}

    async def say(self, **message: Any) -> None:
        await self._call.write(dispatch_pb2.AgentMessage(**message))

    async def report(self, *task_ids: str, state: TaskState, **more: Any) -> None:
        self.sequence += 1
        status = to_proto(TaskStatus(state=state, at=float(self.sequence), **more))
        report = dispatch_pb2.StatusReport(
            sequence=self.sequence, statuses=dict.fromkeys(task_ids, status)
        )
        await self.say(statuses=report)

    async def hear(self) -> str:
        """Take one message in; its kind."""
        message = await self._call.read()
        assert message is not grpc.aio.EOF, "the manager ended the session"
        kind = str(message.WhichOneof("kind"))
        if kind == "assignments":
            change = message.assignments
            if change.full:
                self.full_sets += 1
                self.tasks = {}
            for assigned in change.tasks:
                self.tasks[assigned.task.id] = from_proto(assigned.task)
            for task_id in change.removed_tasks:
                del self.tasks[task_id]
            self.networks = list(change.networks) or self.networks
        elif kind == "endpoints":
            await self._take(message.endpoints)
        elif kind == "ack":
            self.acknowledged = message.ack.sequence
        return kind

    async def _take(self, table: Any) -> None:
        if table.full:
            self.ready = set()
        for entry in table.changed:
            self.ready -= {*entry.gone, *(each.task_id for each in entry.endpoints)}
            self.ready |= {each.task_id for each in entry.endpoints if each.ready}
        self.revision = table.revision
        if self.follows:
            await self.follow()

    async def follow(self) -> None:
        """Acknowledge the newest endpoint table."""
        applied = dispatch_pb2.EndpointsApplied(revision=self.revision)
        await self.say(endpoints_applied=applied)

    async def ended(self) -> grpc.StatusCode:
        """Wait until the manager ends the session; its status."""
        async with asyncio.timeout(60):
            with suppress(grpc.aio.AioRpcError):  # a status that is no OK, also as `code` has it
                while await self._call.read() is not grpc.aio.EOF:
                    pass
            status: grpc.StatusCode = await self._call.code()
            return status

    async def until(self, holds: Any) -> None:
        """Hear until something holds."""
        async with asyncio.timeout(60):
            while not holds():
                await self.hear()


@asynccontextmanager
async def agent(running: Running, hostname: str, joined: Any = None) -> AsyncIterator[Agent]:
    joined = joined or await running.join(running.token)
    async with running.channel(KeyPair(joined.certificate, joined.key)) as channel:
        call = dispatch_pb2_grpc.DispatchStub(channel).Session()
        agent = Agent(call)
        description = NodeDescription(
            hostname=hostname,
            address=f"10.0.0.{next(_ADDRESSES)}",
            resources=Resources(shares=2048, memory=4 << 30),
            blob_port=7423,
        )
        await agent.say(hello=dispatch_pb2.Hello(description=to_proto(description)))
        await agent.say(images=dispatch_pb2.ImageReport(images=[to_proto(IMAGE)]))
        await agent.until(lambda: agent.networks)
        yield agent
        call.cancel()


def web(replicas: int = 1, **task: Any) -> Any:
    container = ContainerSpec(image="hello:1", **task)
    spec = ServiceSpec(name="web", replicas=replicas, task=TaskSpec(container=container))
    return to_proto(spec)


async def pictures(control: Any, holds: Any) -> Any:
    """Watch service `web` until its picture is as wanted."""
    request = control_pb2.WatchServiceRequest(service="web", monitor=0.0)
    watch = control.WatchService(request)
    async with asyncio.timeout(60):
        async for picture in watch:
            if holds(picture):
                watch.cancel()
                return picture
    raise AssertionError("the watch ended")


async def deploy(running: Running, control: Any, spec: Any) -> Any:
    """Create a service as soon as its image is known in the cluster, by the name that a user gave
    it."""
    cache = running.manager.cache
    async with asyncio.timeout(60), cache.subscribe() as feed:
        while not cache.view.images:
            await feed.next()
    if cache.view.image_by_name("hello:1") is None:
        await assign_image_names(running.kv, cache, cache.view.images[IMAGE.id].nodes[0], IMAGE)
    return await control.CreateService(control_pb2.CreateServiceRequest(spec=spec))


async def test_a_service_is_assigned_run_and_seen_to_converge(
    running: Running, control: Any
) -> None:
    async with agent(running, "one") as node:
        await deploy(running, control, web(replicas=3))
        await node.until(lambda: len(node.tasks) == 3)
        assert {task.slot for task in node.tasks.values()} == {1, 2, 3}
        assert {task.image_digest for task in node.tasks.values()} == {IMAGE.id}
        await node.report(*node.tasks, state=TaskState.RUNNING, pid=7)
        picture = await pictures(control, lambda picture: picture.converged)
        assert [task.status.pid for task in picture.tasks] == [7, 7, 7]
        await node.until(lambda: node.acknowledged == node.sequence)


async def test_a_node_learns_its_subnet_and_its_peers(running: Running) -> None:
    async with agent(running, "one") as first, agent(running, "two") as second:
        await first.until(lambda: first.networks[0].peers)
        assert second.networks[0].peers[0].subnet == first.networks[0].subnet
        assert first.networks[0].peers[0].subnet == second.networks[0].subnet
        assert first.networks[0].cluster_cidr == "10.128.0.0/14"


async def test_a_node_without_an_image_learns_its_sources(running: Running, control: Any) -> None:
    async with agent(running, "one"), agent(running, "two") as second:
        await second.say(images=dispatch_pb2.ImageReport())
        await deploy(running, control, web(replicas=2))
        await second.until(lambda: second.tasks)


@pytest.mark.parametrize("node_timeout", [2.0])
async def test_a_silent_node_is_down_and_its_tasks_go_elsewhere(
    running: Running, control: Any
) -> None:
    joined = await running.join(running.token)
    async with agent(running, "one", joined) as first:
        await deploy(running, control, web())
        await first.until(lambda: first.tasks)
        (lost,) = first.tasks
        await first.report(lost, state=TaskState.RUNNING)
        await first.until(lambda: first.acknowledged == first.sequence)

        async def beat(node: Agent) -> None:
            while True:
                await node.say(heartbeat=dispatch_pb2.Heartbeat())
                await asyncio.sleep(0.2)

        async with agent(running, "two") as second:
            beating = asyncio.create_task(beat(second))
            # The first keeps its connection but says nothing.
            await second.until(lambda: second.tasks)
            beating.cancel()
            (task,) = second.tasks.values()
            assert task.slot == 1
            assert task.id != lost
        # What comes over it now is no sign of life: it has to say hello.
        with pytest.raises(AssertionError, match="ended the session"):
            await first.until(lambda: False)
    # It is back with a new session: its full set is without the task that was given up.
    async with agent(running, "one", joined) as again:
        assert lost not in again.tasks


async def test_a_newer_session_ends_the_older(running: Running) -> None:
    joined = await running.join(running.token)
    async with agent(running, "one", joined) as older, agent(running, "one", joined):
        with pytest.raises(AssertionError, match="ended the session"):
            await older.until(lambda: False)


async def term_after(running: Running, revision: int) -> int:
    """Wait for another term; the revision at which it began."""
    async with asyncio.timeout(60), running.kv.watch(LEADER, revision + 1) as batches:
        async for batch in batches:
            for event in batch.events:
                if event.entry is not None:
                    return event.mod_revision
    raise AssertionError("the watch ended")


async def test_sessions_and_reports_outlive_a_lost_term(running: Running, control: Any) -> None:
    async with agent(running, "one") as node:
        await deploy(running, control, web())
        await node.until(lambda: node.tasks)
        (task_id,) = node.tasks
        # The leader's key goes: whatever it writes now is fenced off.
        revision = await running.kv.txn([], [Delete(LEADER)])
        await node.report(task_id, state=TaskState.STARTING)
        await term_after(running, revision)
        await node.report(task_id, state=TaskState.RUNNING)
        await node.until(lambda: node.acknowledged == node.sequence)
        await pictures(control, lambda picture: picture.converged)
        assert node.full_sets == 1
        assert list(node.tasks) == [task_id]


async def test_former_leader_commits_reports_of_its_nodes(running: Running, control: Any) -> None:
    async with agent(running, "one") as node:
        await deploy(running, control, web())
        await node.until(lambda: node.tasks)
        (task_id,) = node.tasks
        while True:
            await running.kv.txn([], [Delete(LEADER)])
            with suppress(Conflict):
                free = Guard(LEADER, create_revision=0)
                await running.kv.txn([free], [Put(LEADER, b"another manager")])
                break
        await node.report(task_id, state=TaskState.RUNNING)
        await node.until(lambda: node.acknowledged == node.sequence)
        await pictures(control, lambda picture: picture.converged)


async def test_an_update_from_a_stale_copy_is_refused(running: Running, control: Any) -> None:
    async with agent(running, "one"):
        service = await deploy(running, control, web())
        spec = web(env=("A=1",))
        update = control_pb2.UpdateServiceRequest(
            service="web", spec=spec, revision=service.revision
        )
        await control.UpdateService(update)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await control.UpdateService(update)
        assert refused.value.code() is grpc.StatusCode.ABORTED
        assert "modified concurrently" in (refused.value.details() or "")
        update.base.CopyFrom(to_proto(from_proto(service.spec)))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await control.UpdateService(update)
        assert "modified concurrently: env +A=1; look at" in (refused.value.details() or "")
        # What merely goes on, as the planner writes it, is no change of somebody else.
        update.base.CopyFrom(spec)
        await control.UpdateService(update)


async def test_an_update_begins_the_rolling_update_to_a_secret_s_new_version(
    running: Running, control: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running.channel(running.admin) as channel, agent(running, "one"):
        documents = documents_pb2_grpc.DocumentsStub(channel)
        created = await documents.CreateDocument(
            documents_pb2.CreateDocumentRequest(kind=SECRET, name="pw", data=b"first")
        )
        spec = web(secrets=(FileReference(source="pw"),))
        await deploy(running, control, spec)
        late = threading.Event()
        planned = pipeline.plan
        monkeypatch.setattr(
            pipeline, "plan", lambda *given, **named: late.wait(60) and planned(*given, **named)
        )
        try:
            await documents.UpdateDocument(
                documents_pb2.UpdateDocumentRequest(kind=SECRET, document="pw", data=b"second")
            )
            update = control_pb2.UpdateServiceRequest(service="web", spec=spec, base=spec)
            service = from_proto(await control.UpdateService(update))
        finally:
            late.set()
        assert service.documents == {created.id: 2}
        assert service.update.state is UpdateState.UPDATING


async def test_a_rebuilt_tag_is_taken_when_the_image_is_named_again(
    running: Running, control: Any
) -> None:
    async with agent(running, "one") as node:
        await deploy(running, control, web())
        await node.until(lambda: node.tasks)
        (old,) = node.tasks
        await node.report(old, state=TaskState.RUNNING)
        rebuilt = Image(id="sha256:" + "b" * 64, names=("hello:1",))
        cache = running.manager.cache
        await assign_image_names(running.kv, cache, next(iter(cache.view.nodes)), rebuilt)
        update = control_pb2.UpdateServiceRequest(service="web", spec=web())
        assert (await control.UpdateService(update)).image_digest == IMAGE.id
        update.resolve_image = True
        assert (await control.UpdateService(update)).image_digest == rebuilt.id
        await node.until(lambda: node.tasks[old].desired_state is TaskState.SHUTDOWN)


async def test_concurrent_creates_of_a_name_have_one_winner(running: Running, control: Any) -> None:
    async with agent(running, "one"):
        await deploy(running, control, to_proto(replace(from_proto(web()), name="first")))
        create = control_pb2.CreateServiceRequest(spec=web())
        answers = await asyncio.gather(
            *(control.CreateService(create) for _ in range(8)), return_exceptions=True
        )
        refused = [a for a in answers if isinstance(a, grpc.aio.AioRpcError)]
        assert len(refused) == 7
        assert {error.code() for error in refused} == {grpc.StatusCode.ALREADY_EXISTS}


async def test_removing_waits_for_the_node_and_leaves_nothing(
    running: Running, control: Any
) -> None:
    async with agent(running, "one") as node:
        await deploy(running, control, web(replicas=2))
        await node.until(lambda: len(node.tasks) == 2)
        await node.report(*node.tasks, state=TaskState.RUNNING)
        await control.RemoveService(control_pb2.RemoveServiceRequest(service="web"))
        assert not (await control.ListServices(control_pb2.ListServicesRequest())).services
        await node.until(
            lambda: {t.desired_state for t in node.tasks.values()} == {TaskState.REMOVE}
        )
        await node.report(*node.tasks, state=TaskState.SHUTDOWN)
        await node.until(lambda: not node.tasks)
        assert not (await control.ListTasks(control_pb2.ListTasksRequest())).tasks
        # The name is free again.
        await deploy(running, control, web())


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader waits as long as it takes for nodes to follow."""
    monkeypatch.setattr("orchestrator.manager.dispatch.dispatcher.DRAIN_TIMEOUT", 60.0)


@pytest.mark.usefixtures("patient")
async def test_a_task_stops_once_every_node_has_withdrawn_its_endpoint(
    running: Running, control: Any
) -> None:
    async with agent(running, "one") as one, agent(running, "two") as two:
        await deploy(running, control, web(replicas=2))
        await one.until(lambda: one.tasks)
        await two.until(lambda: two.tasks)
        (task_id,) = one.tasks
        await one.report(task_id, state=TaskState.RUNNING, addresses=one.addresses)
        await two.report(*two.tasks, state=TaskState.RUNNING, addresses=two.addresses)
        await one.until(lambda: one.ready == {*one.tasks, *two.tasks})
        await two.until(lambda: two.ready == one.ready)
        two.follows = False
        await control.UpdateService(
            control_pb2.UpdateServiceRequest(service="web", spec=web(replicas=0))
        )
        await one.until(lambda: not one.ready)
        await two.until(lambda: not two.ready)
        # Something else is told meanwhile: the order has been held back, not just not yet sent.
        other = web(replicas=2)
        other.name = "other"
        await deploy(running, control, other)
        await one.until(lambda: len(one.tasks) == 2)
        assert one.tasks[task_id].desired_state is TaskState.RUNNING
        await two.follow()
        await one.until(lambda: one.tasks[task_id].desired_state > TaskState.RUNNING)
