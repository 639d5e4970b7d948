# SPDX-License-Identifier: Apache-2.0
"""A worker whose agent was modified, with its own certificate, against a manager on a real etcd.

Each test is an attack: what the node claims beyond itself must change nothing, and what others
rely on goes on.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import grpc
import pytest
from imageregistry import layout_of, registry_in
from managerhost import Running, manager_in

from orchestrator.agent.images.transfer.registry import Registry
from orchestrator.daemon.background import background
from orchestrator.identity.certificates import KeyPair
from orchestrator.identity.join import Joined, JoinRefused
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.etcd import EtcdKv
from orchestrator.manager.store.etcd_member import EtcdMember
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.nodes import Node, NodeDescription
from orchestrator.model.objects import Image
from orchestrator.model.specs import (
    ContainerSpec,
    NetworkAttachment,
    Resources,
    ServiceSpec,
    TaskSpec,
)
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.pb import (
    control_pb2,
    control_pb2_grpc,
    dispatch_pb2,
    dispatch_pb2_grpc,
    images_pb2,
    images_pb2_grpc,
    networks_pb2,
    networks_pb2_grpc,
)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with (
        EtcdMember(tmp_path / "etcd") as member,
        EtcdKv(member.endpoints, member.tls, max_txn_ops=member.max_txn_ops) as kv,
        manager_in(tmp_path / "manager", 600.0, kv) as running,
    ):
        yield running


@pytest.fixture
async def control(running: Running) -> AsyncIterator[Any]:
    async with running.channel(running.admin) as channel:
        yield control_pb2_grpc.ControlStub(channel)


class Agent:
    """An agent that says what the test wants; as other agents it acknowledges endpoint tables."""

    def __init__(self, running: Running, joined: Joined, stub: Any, call: Any) -> None:
        self.id = joined.node_id
        self.pair = KeyPair(joined.certificate, joined.key)
        self._running = running
        self._stub = stub
        self._call = call
        self._sequence = 0
        self.acknowledged = 0
        self.tasks: dict[str, Task] = {}
        self.subnets: dict[str, IPv4Network] = {}
        self.orders: list[dispatch_pb2.OpenTunnel] = []
        self.answer = dispatch_pb2.TunnelResult()
        """To whatever is ordered, after `lines`."""
        self.held: asyncio.Event | None = None
        """Set when it may answer; None: at once."""
        self.lines: list[str] = []
        self.named: dict[str, str] = {}
        """Task id → address, by the newest endpoint table."""

    @property
    def node(self) -> Node:
        """The node as the cluster has it."""
        return self._running.manager.cache.view.nodes[self.id]

    def address(self, host: int, network: str = "default") -> str:
        return str(self.subnets[network][host])

    async def say(self, **message: Any) -> None:
        await self._call.write(dispatch_pb2.AgentMessage(**message))

    async def report(self, statuses: dict[str, TaskStatus]) -> None:
        """Report statuses and wait until they were dealt with."""
        self._sequence += 1
        said = {id: to_proto(status) for id, status in statuses.items()}
        await self.say(statuses=dispatch_pb2.StatusReport(sequence=self._sequence, statuses=said))
        await self.until(lambda: self.acknowledged == self._sequence)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not holds():
                await self._hear()

    async def _hear(self) -> None:
        message = await self._call.read()
        match message.WhichOneof("kind"):
            case "assignments":
                for each in message.assignments.tasks:
                    self.tasks[each.task.id] = from_proto(each.task)
                for network in message.assignments.networks:
                    self.subnets[network.name] = IPv4Network(network.subnet)
            case "endpoints":
                for entry in message.endpoints.changed:
                    self.named |= {each.task_id: each.address for each in entry.endpoints}
                    for id in entry.gone:
                        self.named.pop(id, None)
                applied = dispatch_pb2.EndpointsApplied(revision=message.endpoints.revision)
                await self.say(endpoints_applied=applied)
            case "open":
                self.orders.append(message.open)
                tunnel = self._stub.Tunnel(metadata=(("orc-tunnel", message.open.id),))
                with suppress(grpc.aio.AioRpcError):  # the manager has closed it
                    for line in self.lines:
                        await tunnel.write(dispatch_pb2.Frame(line=line))
                    if self.held is not None:
                        await self.held.wait()
                    await tunnel.write(dispatch_pb2.Frame(result=self.answer))
            case "ack":
                self.acknowledged = message.ack.sequence


@asynccontextmanager
async def session(running: Running, joined: Joined, **description: Any) -> AsyncIterator[Agent]:
    async with running.channel(KeyPair(joined.certificate, joined.key)) as channel:
        about = NodeDescription(**{"resources": Resources(4096, 8 << 30), **description})
        hello = dispatch_pb2.Hello(description=to_proto(about))
        stub = dispatch_pb2_grpc.DispatchStub(channel)
        welcomed = False
        while not welcomed:  # a manager that does not lead yet ends the call
            call = stub.Session()
            with suppress(grpc.aio.AioRpcError):
                await call.write(dispatch_pb2.AgentMessage(hello=hello))
                welcomed = (await call.read()).WhichOneof("kind") == "welcome"
        agent = Agent(running, joined, stub, call)
        await agent.until(lambda: bool(agent.subnets))
        yield agent
        call.cancel()


_NUMBERS = itertools.count(1)


@pytest.fixture
async def hosts(running: Running) -> AsyncIterator[Callable[..., Any]]:
    """Joins hosts and begins their sessions: `await hosts("name", **description)`."""
    async with AsyncExitStack() as stack:

        async def host(hostname: str, **description: Any) -> Agent:
            joined = await running.join(running.token, hostname)
            address = f"10.99.0.{next(_NUMBERS)}"
            about = {"hostname": hostname, "address": address, **description}
            agent: Agent = await stack.enter_async_context(session(running, joined, **about))
            await eventually(running, lambda view: bool(view.nodes[joined.node_id].description.os))
            return agent

        yield lambda hostname, **more: host(hostname, **{"os": "linux", **more})


async def eventually(running: Running, holds: Callable[[ClusterView], bool]) -> None:
    cache = running.manager.cache
    async with asyncio.timeout(60), cache.subscribe() as feed:
        while not holds(cache.view):
            await feed.next()


async def create(control: Any, name: str, replicas: int = 1, **spec: Any) -> Any:
    container = ContainerSpec(image=spec.pop("image", f"sha256:{'a' * 64}"))
    task = TaskSpec(container=container, networks=spec.pop("networks", ()))
    wanted = ServiceSpec(name=name, replicas=replicas, task=task, **spec)
    request = control_pb2.CreateServiceRequest(spec=to_proto(wanted), no_resolve_image=True)
    return await control.CreateService(request)


async def counted(running: Running, claims: dict[str, float]) -> None:
    """Wait until the manager has counted exactly these rejected claims, by kind: it does once the
    reports are committed."""
    async with asyncio.timeout(30):
        while false_claims(running) != claims:  # noqa: ASYNC110 - a counter notifies of nothing
            await asyncio.sleep(0.02)


def false_claims(running: Running) -> dict[str, float]:
    """The manager's count of what was refused, by kind."""
    found = {}
    for family in running.manager._registry.collect():
        for sample in family.samples:
            if sample.name == "orc_node_reports_rejected_total" and sample.value:
                found[sample.labels["kind"]] = sample.value
    return found


# -- labels, hostname, address -------------------------------------------------------------------


async def test_reported_labels_attract_no_tasks(
    running: Running, control: Any, hosts: Callable[..., Any]
) -> None:
    good = await hosts("good")
    update = control_pb2.UpdateNodeRequest(node="good", label_add={"zone": "vault"})
    await control.UpdateNode(update)
    evil = await hosts("evil", labels={"zone": "vault", "disk": "ssd"})
    await create(control, "keys", replicas=4, constraints=("node.labels.zone==vault",))
    await good.until(lambda: len(good.tasks) == 4)
    # What asks for the agent's own labels gets them.
    await create(control, "cache", constraints=("engine.labels.disk==ssd",))
    await evil.until(lambda: bool(evil.tasks))
    assert {task.service_name for task in evil.tasks.values()} == {"cache"}


async def test_a_hostname_of_another_node_is_refused_at_the_join(
    running: Running, hosts: Callable[..., Any]
) -> None:
    await hosts("db1")
    with pytest.raises(JoinRefused, match=r"has the hostname 'db1' and is ready.*orc node rm"):
        await running.join(running.token, "db1")
    with pytest.raises(JoinRefused, match="is not a hostname"):
        await running.join(running.token, "db1\x1b[2K")
    at_once = [running.join(running.token, "db2") for _ in range(4)]
    answers = await asyncio.gather(*at_once, return_exceptions=True)
    assert sum(isinstance(answer, Joined) for answer in answers) == 1


async def test_a_hostname_of_another_node_attracts_no_tasks(
    running: Running, control: Any, hosts: Callable[..., Any]
) -> None:
    good = await hosts("db1")
    joined = await running.join(running.token, "evil")
    async with session(running, joined, hostname="db1", address="10.99.1.1", os="linux") as evil:
        await eventually(running, lambda view: bool(view.nodes[evil.id].description.os))
        assert evil.node.description.hostname == "evil"
        await create(control, "db", replicas=3, constraints=("node.hostname==db1",))
        await good.until(lambda: len(good.tasks) == 3)
        assert not evil.tasks
    await counted(running, {"hostname": 1})


async def test_the_address_of_another_node_is_not_taken_over(
    running: Running, control: Any, hosts: Callable[..., Any]
) -> None:
    good, evil = await hosts("good"), await hosts("evil")
    theirs, own = good.node.description.address, evil.node.description.address
    joined = Joined(evil.id, "worker", "", (), "", evil.pair.certificate, evil.pair.key, "")
    for claimed in (theirs, "10.99.3.3"):
        about = {"hostname": "evil", "address": claimed, "os": claimed}
        async with session(running, joined, **about):
            await eventually(running, lambda view, os=claimed: evil.node.description.os == os)
            assert evil.node.description.address == own
    await counted(running, {"node_address": 2})
    # Where its session comes from, it may have moved to; and an operator may say so.
    async with session(running, joined, hostname="evil", address="127.0.0.1", os="moved"):
        await eventually(running, lambda view: evil.node.description.address == "127.0.0.1")
    await control.UpdateNode(control_pb2.UpdateNodeRequest(node="evil", address="10.99.3.3"))
    async with session(running, joined, hostname="evil", address="10.99.3.3", os="again"):
        await eventually(running, lambda view: evil.node.description.os == "again")
        assert evil.node.description.address == "10.99.3.3"


async def test_invalid_report_of_a_node_does_not_stop_planning(
    running: Running, control: Any, hosts: Callable[..., Any]
) -> None:
    good = await hosts("good")
    await hosts(
        "evil",
        routes=("nowhere", "0.0.0.0/0"),
        resources=Resources(-(1 << 62), 1 << 62),
        generic_resources={"gpu": "x" * 300, "n": "-1"},
        path_mtu=1,
    )
    async with running.channel(running.admin) as channel:
        stub = networks_pb2_grpc.NetworksStub(channel)
        await stub.CreateNetwork(networks_pb2.CreateNetworkRequest(name="back"))
    attached = (NetworkAttachment("back"),)
    rules = ("node.hostname==good",)
    await create(control, "web", replicas=2, networks=attached, constraints=rules)
    await good.until(lambda: len(good.tasks) == 2)
    nodes = await control.ListNodes(control_pb2.ListNodesRequest())
    assert len(nodes.nodes) == 2


# -- statuses ------------------------------------------------------------------------------------


async def test_false_addresses_reach_no_table(
    running: Running, control: Any, hosts: Callable[..., Any]
) -> None:
    good, evil = await hosts("good"), await hosts("evil")
    service = await create(control, "web", replicas=2)
    await good.until(lambda: bool(good.tasks))
    await evil.until(lambda: bool(evil.tasks))
    (mine,), (theirs,) = evil.tasks, good.tasks
    await good.report({theirs: up(good.address(2))})
    vip = next(iter(service.vips.values()), "10.128.0.2")
    # Another task's, a VIP, a permitted source's of elsewhere, its own gateway.
    for claimed in (good.address(2), good.address(9), vip, "192.0.2.1", evil.address(1)):
        await evil.report({mine: up(claimed)})
        status = running.manager.cache.view.tasks[mine].status
        assert (status.state, status.addresses) == (TaskState.RUNNING, {})
    await evil.report({mine: up(evil.address(5))})
    await good.until(lambda: mine in good.named)
    assert good.named == {theirs: good.address(2), mine: evil.address(5)}
    await counted(running, {"task_address": 5})


async def test_an_address_in_a_network_that_the_task_is_not_on_reaches_no_table(
    running: Running, control: Any, hosts: Callable[..., Any]
) -> None:
    evil = await hosts("evil")
    async with running.channel(running.admin) as channel:
        stub = networks_pb2_grpc.NetworksStub(channel)
        back = await stub.CreateNetwork(networks_pb2.CreateNetworkRequest(name="back"))
    await eventually(running, lambda view: evil.id in view.networks[back.id].slices)
    slice_ = IPv4Network(running.manager.cache.view.networks[back.id].slices[evil.id])
    await create(control, "web")
    await evil.until(lambda: bool(evil.tasks))
    (mine,) = evil.tasks
    await evil.report({mine: up(evil.address(5), back=str(slice_[5]))})
    status = running.manager.cache.view.tasks[mine].status
    assert status.addresses == {"default": evil.address(5)}


async def test_node_cannot_report_tasks_of_another(
    running: Running, control: Any, hosts: Callable[..., Any]
) -> None:
    good, evil = await hosts("good"), await hosts("evil")
    await create(control, "web", replicas=2)
    await good.until(lambda: bool(good.tasks))
    await evil.until(lambda: bool(evil.tasks))
    (mine,), (theirs,) = evil.tasks, good.tasks
    await good.report({theirs: up(good.address(2))})
    failed = TaskStatus(TaskState.FAILED, at=9.0)
    # The one it may speak for counts though it comes with the other, and one that there is not.
    await evil.report({theirs: failed, "nobody": failed, mine: up(evil.address(2))})
    tasks = running.manager.cache.view.tasks
    assert tasks[theirs].status.state is TaskState.RUNNING
    assert tasks[mine].status.state is TaskState.RUNNING
    await counted(running, {"task": 1})
    # Not even after its own has moved on: states only grow.
    await evil.report({mine: failed})
    await eventually(running, lambda view: len(view.tasks) == 3)
    await evil.report({mine: replace(up(evil.address(2)), at=99.0)})
    assert tasks[mine].id in running.manager.cache.view.tasks
    assert running.manager.cache.view.tasks[mine].status.state is TaskState.FAILED


def up(address: str, **more: str) -> TaskStatus:
    addresses = {"default": address, **more}
    return TaskStatus(TaskState.RUNNING, at=1.0, addresses=addresses)


# -- images --------------------------------------------------------------------------------------

EVIL = "sha256:" + "e" * 64


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[tuple[str, str]]:
    """The name of an image in a registry, and its digest there."""
    with registry_in(tmp_path) as (name, _):
        layout = layout_of(tmp_path, 1000)
        pushed = await Registry(tmp_path).push(layout, name, b"", lambda *news: None)
        yield name, pushed


@pytest.fixture
async def images(running: Running) -> AsyncIterator[Any]:
    async with running.channel(running.admin) as channel:
        yield images_pb2_grpc.ImagesStub(channel)


async def claim(running: Running, agent: Agent, *names: str) -> None:
    """Have a node say that its own image has these names."""
    image = Image(id=EVIL, names=names)
    await agent.say(images=dispatch_pb2.ImageReport(images=[to_proto(image)]))
    await eventually(running, lambda view: EVIL in view.images)


async def create_resolved(control: Any, name: str, image: str) -> Any:
    task = TaskSpec(container=ContainerSpec(image=image))
    spec = to_proto(ServiceSpec(name=name, replicas=0, task=task))
    return await control.CreateService(control_pb2.CreateServiceRequest(spec=spec))


@asynccontextmanager
async def listening(agent: Agent) -> AsyncIterator[None]:
    """Have a node obey orders while the block runs, with which its session ends."""
    async with background(agent.until(lambda: False)):
        yield


async def test_a_name_that_a_node_claims_is_asked_of_the_registry(
    running: Running, control: Any, hosts: Callable[..., Any], registry: tuple[str, str]
) -> None:
    name, digest = registry
    evil = await hosts("evil")
    await claim(running, evil, name)
    evil.lines = [EVIL]  # to an order to look the name up
    async with listening(evil):
        service = await create_resolved(control, "web", name)
    assert service.image_digest == digest
    assert not evil.orders, "a node was asked what the name stands for"
    # By its digest, it is what it is.
    service = await create_resolved(control, "own", f"{name}@{EVIL}")
    assert service.image_digest == EVIL


async def test_last_digest_of_a_name_is_used_while_its_registry_is_unreachable(
    running: Running, control: Any, hosts: Callable[..., Any], tmp_path: Path
) -> None:
    evil = await hosts("evil")
    with registry_in(tmp_path) as (name, _):
        digest = await Registry(tmp_path).push(
            layout_of(tmp_path, 1000), name, b"", lambda *news: None
        )
        await claim(running, evil, name)
        assert (await create_resolved(control, "one", name)).image_digest == digest
    # The registry has ended: by what a manager found, not by what the node says.
    assert (await create_resolved(control, "two", name)).image_digest == digest


async def test_a_name_that_only_a_node_knows_is_refused_until_a_user_gives_it(
    running: Running, control: Any, images: Any, hosts: Callable[..., Any]
) -> None:
    evil = await hosts("evil")
    name = "127.0.0.1:1/nginx:1"
    await claim(running, evil, name)
    async with listening(evil):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await create_resolved(control, "web", name)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        assert f"if you trust it: orc tag {'e' * 12} {name}" in (refused.value.details() or "")
        with pytest.raises(grpc.aio.AioRpcError):
            await images.Tag(images_pb2.TagImageRequest(image=name, name="mine:1"))
        await images.Tag(images_pb2.TagImageRequest(image="e" * 12, name=name))
        service = await create_resolved(control, "web", name)
        assert service.image_digest == EVIL


async def test_a_node_that_builds_gives_no_names_but_the_users(
    running: Running, control: Any, hosts: Callable[..., Any]
) -> None:
    evil = await hosts("evil")
    image = Image(id=EVIL, names=("nginx:1", "mine:1"))
    evil.answer = dispatch_pb2.TunnelResult(image=to_proto(image))
    upload = control_pb2.ImageUpload(header=control_pb2.ImageHeader(name="mine:1"))
    async with listening(evil):
        (*_, built) = [part async for part in control.BuildImage(iter([upload]))]
    assert list(built.image.names) == ["mine:1"]
    stored = running.manager.cache.view.images[EVIL]
    assert stored.names == ("mine:1",)
    assert (await create_resolved(control, "web", "mine:1")).image_digest == EVIL


async def test_a_node_that_pulls_cannot_answer_with_another_image(
    running: Running, images: Any, hosts: Callable[..., Any], registry: tuple[str, str]
) -> None:
    name, digest = registry
    evil = await hosts("evil")
    evil.lines = [EVIL]
    evil.answer = dispatch_pb2.TunnelResult(image=to_proto(Image(id=EVIL, names=(name,))))
    async with listening(evil):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            [part async for part in images.Pull(images_pb2.PullImageRequest(name=name))]
        assert "node evil answered with another image" in (refused.value.details() or "")
        assert EVIL not in running.manager.cache.view.images
        true = Image(id=digest, names=(name, "nginx:1"))
        evil.answer = dispatch_pb2.TunnelResult(image=to_proto(true))
        [part async for part in images.Pull(images_pb2.PullImageRequest(name=name))]
    assert running.manager.cache.view.images[digest].names == (name,)
    assert {order.pull.digest for order in evil.orders} == {digest}


async def test_a_node_cannot_describe_another_image(
    running: Running, images: Any, hosts: Callable[..., Any]
) -> None:
    evil = await hosts("evil")
    await claim(running, evil, "web:1")
    evil.lines = ['{"config": {"digest": "sha256:0"}}', '{"config": {"Cmd": ["true"]}}']
    async with listening(evil):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await images.Inspect(images_pb2.InspectImageRequest(image=EVIL))
    assert "other documents than those of" in (refused.value.details() or "")


async def test_node_that_pushes_another_image_is_detected(
    running: Running, images: Any, hosts: Callable[..., Any], registry: tuple[str, str]
) -> None:
    name, _ = registry  # what is there is not what is to be pushed
    evil = await hosts("evil")
    await claim(running, evil)
    await images.Tag(images_pb2.TagImageRequest(image=EVIL, name=name))
    async with listening(evil):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            [part async for part in images.Push(images_pb2.PushImageRequest(name=name))]
    assert f"not the image {EVIL} that was pushed" in (refused.value.details() or "")


async def test_node_gets_only_images_that_the_index_lists(
    running: Running, images: Any, hosts: Callable[..., Any]
) -> None:
    evil = await hosts("evil")
    listed = "sha256:" + "a" * 64
    index = f'{{"manifests": [{{"digest": "{listed}"}}]}}'
    digest = f"sha256:{hashlib.sha256(index.encode()).hexdigest()}"
    own = [Image(id=id, indexes=(digest,)) for id in (EVIL, listed)]
    await evil.say(images=dispatch_pb2.ImageReport(images=[to_proto(own[0])]))
    await eventually(running, lambda view: EVIL in view.images)
    tag = images_pb2.TagImageRequest(image=f"web@{digest}", name="web:stable")
    async with listening(evil):
        for shown in ([], ["{}"], [index]):
            evil.lines = shown
            with pytest.raises(grpc.aio.AioRpcError):
                await images.Tag(tag)
        assert running.manager.cache.view.image_by_name("web:stable") is None
        await evil.say(images=dispatch_pb2.ImageReport(images=[to_proto(each) for each in own]))
        await eventually(running, lambda view: listed in view.images)
        evil.lines = [index]
        assert (await images.Tag(tag)).id == listed


# -- passwords -----------------------------------------------------------------------------------


async def test_a_node_gets_a_password_only_for_the_image_that_a_task_waits_for(
    running: Running,
    control: Any,
    images: Any,
    hosts: Callable[..., Any],
    registry: tuple[str, str],
) -> None:
    name, _ = registry
    host = name.partition("/")[0]
    evil = await hosts("evil")
    login = images_pb2.LoginRequest(registry=host, username="orc", password="open-sesame")
    await images.Login(login)  # no node is shown it to try it
    async with running.channel(evil.pair) as channel:
        sources = images_pb2_grpc.SourcesStub(channel)

        async def shown(image: str) -> bytes:
            located = await sources.Locate(images_pb2.LocateRequest(name=image))
            call = sources.Acquire(images_pb2.AcquireRequest(name=image))
            grant = await call.read()
            call.cancel()
            assert grant.registry
            return bytes(located.auth + grant.auth)

        assert await shown(name) == b""
        await create(control, "web", image=name)
        await evil.until(lambda: bool(evil.tasks))
        assert b"auths" in await shown(name)
        # Not of other images there, and not once it has what it needs.
        assert await shown(f"{host}/payroll:1") == b""
        (mine,) = evil.tasks
        await evil.report({mine: up(evil.address(2))})
        assert await shown(name) == b""


@pytest.mark.parametrize("archive", [False, True])
async def test_building_node_gets_passwords_only_for_registries_of_the_dockerfile(
    running: Running,
    images: Any,
    control: Any,
    hosts: Callable[..., Any],
    registry: tuple[str, str],
    archive: bool,
) -> None:
    name, _ = registry
    host = name.partition("/")[0]
    evil, other = await hosts("evil"), await hosts("other")
    login = images_pb2.LoginRequest(registry=host, username="orc", password="open-sesame")
    await images.Login(login)
    text = f"""
ARG TAG=1
FROM {host}/base:$TAG AS made
COPY --from={host}/tools:2 /a /a
FROM {host}/unused:1 AS unused
FROM scratch
RUN --mount=type=bind,from={host}/mounted:3 true
COPY --from=made /a /a
""".encode()
    header = control_pb2.ImageHeader(name="mine:1", node=evil.node.description.hostname)
    if archive:
        header.dockerfile_inside = text
    else:
        header.dockerfile_content = text
    evil.held, evil.answer = asyncio.Event(), dispatch_pb2.TunnelResult(error="no such file")

    async def shown(agent: Agent, image: str) -> bool:
        async with running.channel(agent.pair) as channel:
            sources = images_pb2_grpc.SourcesStub(channel)
            located = await sources.Locate(images_pb2.LocateRequest(name=image))
            if agent is evil:  # another one would wait for its turn
                call = sources.Acquire(images_pb2.AcquireRequest(name=image))
                grant = await call.read()
                call.cancel()
                assert bool(located.auth) == bool(grant.auth)
            return b"auths" in located.auth

    async def build() -> None:
        upload = control_pb2.ImageUpload(header=header)
        with suppress(grpc.aio.AioRpcError):
            async for _ in control.BuildImage(iter([upload])):
                pass

    async with listening(evil), asyncio.TaskGroup() as group:
        group.create_task(build())
        async with asyncio.timeout(60):
            while not evil.orders:  # noqa: ASYNC110 - a plain list
                await asyncio.sleep(0.01)
        assert not evil.orders[0].build.dockerfile_inside
        for image in ("base:1", "tools:2", "mounted:3"):
            assert await shown(evil, f"{host}/{image}"), image
            assert not await shown(other, f"{host}/{image}"), image
        for image in ("payroll:1", "base:2", "base", "unused:1"):
            assert not await shown(evil, f"{host}/{image}"), image
        evil.held.set()
    assert not await shown(evil, f"{host}/base:1")
