# SPDX-License-Identifier: Apache-2.0
"""The agent against a manager over real gRPC: full sets, diffs, gaps, losses, redirects."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from agentfakes import NOW, Host, assigned, until
from managerstub import Conversation, manager_stub

from orchestrator.agent.network.endpoint_table import Change, EndpointTable
from orchestrator.agent.runtime.interface import Exit
from orchestrator.agent.session import session as dialer_module
from orchestrator.agent.session import session as session_module
from orchestrator.agent.session.session import (
    CertificateRefused,
    Dialer,
    Node,
    Session,
    SessionEnded,
    backoff,
    patience,
    send,
)
from orchestrator.agent.statedb import StateDb
from orchestrator.agent.tasks.status_reporter import StatusReporter
from orchestrator.agent.tasks.worker import Worker
from orchestrator.model.nodes import NodeDescription
from orchestrator.model.objects import Image
from orchestrator.model.states import TaskState
from orchestrator.pb import dispatch_pb2, dispatch_pb2_grpc


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialer_module, "BACKOFF_FIRST", 0.001)
    monkeypatch.setattr(dialer_module, "BACKOFF_MOST", 0.01)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


class RecordingFollower:
    """Follows the endpoint table, when it is let."""

    name = "recording follower"

    def __init__(self) -> None:
        self.told: list[Change] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def follow(self, change: Change, whole: Callable[[], Change]) -> None:
        self.told.append(change)
        await self.gate.wait()


DIAL = (
    ("grpc.use_local_subchannel_pool", 1),
    # What a channel that is not closed does, it does soon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 100),
)


class Agent:
    def __init__(
        self, worker: Worker, db: StateDb, dialer: Dialer, follower: RecordingFollower
    ) -> None:
        self.worker = worker
        self.follower = follower
        self.db = db
        self.dialer = dialer
        self.images: list[Image] = [Image(id="sha256:1", names=("hello:1",))]
        self.tunnels: list[dispatch_pb2.OpenTunnel] = []
        self.removed: list[str] = []


@asynccontextmanager
async def agent(host: Host, *managers: str) -> AsyncIterator[Agent]:
    """An agent's core and its session; the process dies with the block."""
    wake = asyncio.Event()
    reporter = StatusReporter(wake.set)

    async def open_tunnel(channel: Any, order: dispatch_pb2.OpenTunnel) -> None:
        made.tunnels.append(order)

    async def remove_images(digests: Sequence[str]) -> None:
        made.removed.extend(digests)

    with StateDb(host.folder / "state.db") as db:
        worker = Worker(host.backends(), db, reporter)
        follower = RecordingFollower()
        endpoints = EndpointTable(db, [follower], wake.set)
        node = Node(
            lambda: NodeDescription(hostname="host-1", blob_port=7423),
            host.boot_id,
            lambda: made.images,
        )
        dialer = Dialer(
            db=db,
            joined_by=lambda: managers,
            dial=lambda address: grpc.aio.insecure_channel(address, options=DIAL),
            new_session=lambda: Session(
                node,
                worker=worker,
                endpoints=endpoints,
                reporter=reporter,
                wake=wake,
                open_tunnel=open_tunnel,
                remove_images=remove_images,
                scrapable=db.put_scrape_digest,
                expose=db.put_container_access,
            ),
            rng=random.Random(1),
        )
        made = Agent(worker, db, dialer, follower)
        async with worker, asyncio.TaskGroup() as group:
            running = [group.create_task(each.run()) for each in (dialer, endpoints)]
            yield made
            for each in running:
                each.cancel()


async def reports(session: Conversation, task_id: str, state: TaskState) -> None:
    await until(lambda: session.states().get(task_id) == state)


async def test_a_session_from_hello_to_a_running_task(host: Host) -> None:
    async with manager_stub() as manager, agent(host, manager.address) as a:
        session = await manager.session()
        assert session.hello.description.hostname == "host-1"
        assert session.hello.description.blob_port == 7423
        assert session.hello.boot_id == host.boot_id
        await session.welcome()
        network = dispatch_pb2.AssignedNetwork(id="n", name="orc", subnet="10.128.0.0/24")
        await session.full(assigned(), networks=[network])
        await reports(session, "t1", TaskState.RUNNING)
        await until(lambda: session.images)
        assert [image.id for image in session.images[0].images] == ["sha256:1"]
        assert host.network.ordered == a.db.networks() == [network]
        await until(lambda: session.heartbeats >= 2)


async def test_diffs_chain(host: Host) -> None:
    async with manager_stub() as manager, agent(host, manager.address):
        session = await manager.session()
        await session.welcome()
        await session.full(assigned("t1"), version=7)
        await session.diff(assigned("t2"), applies_to=7)
        await session.diff(removed=["t1"], applies_to=8)
        await reports(session, "t2", TaskState.RUNNING)
        await until(lambda: list(host.runtime.running) == ["t2"])


def network_change(
    subnet: str, *peers: str, gone: Iterable[str] = (), complete: bool = False, mtu: int = 0
) -> dispatch_pb2.NetworkChange:
    network = dispatch_pb2.AssignedNetwork(id="n", name="orc", subnet=subnet, path_mtu=mtu)
    for number, peer in enumerate(peers, 1):
        network.peers.add(subnet=peer, address=f"192.0.2.{number}")
    return dispatch_pb2.NetworkChange(network=network, complete=complete, gone_peers=gone)


async def test_changes_of_networks_are_applied_to_those_that_it_has(host: Host) -> None:
    def told() -> list[tuple[str, int, list[str]]]:
        networks = host.network.ordered
        return [
            (network.id, network.path_mtu, [peer.subnet for peer in network.peers])
            for network in networks
        ]

    async def say(version: int, *changes: dispatch_pb2.NetworkChange, **more: Any) -> None:
        await session.say(
            assignments=dispatch_pb2.Assignments(
                full=not version,
                applies_to=version,
                results_in=version + 1,
                network_changes=changes,
                **more,
            )
        )

    own, a, b, c = (f"10.128.{number}.0/24" for number in range(4))
    async with manager_stub() as manager, agent(host, manager.address):
        session = await manager.session()
        await session.welcome()
        await say(0, network_change(own, own, a, b, complete=True))
        await until(lambda: told() == [("n", 0, [a, b])])
        await say(1, network_change(own, c, gone=[a], mtu=1400))
        await until(lambda: told() == [("n", 1400, [b, c])])
        await say(2, removed_networks=["n"])
        await until(lambda: told() == [])


async def test_a_gap_reopens_the_session(host: Host) -> None:
    async with manager_stub() as manager, agent(host, manager.address):
        session = await manager.session()
        await session.welcome()
        await session.full(assigned("t1"), version=1)
        await reports(session, "t1", TaskState.RUNNING)
        await session.diff(assigned("t2"), applies_to=2)
        again = await manager.session()
        await again.welcome()
        # The new session gets all statuses, although the old one had acknowledged them.
        await reports(again, "t1", TaskState.RUNNING)
        assert "t2" not in host.runtime.made
        await again.full(assigned("t1"), assigned("t2"), version=3)
        await reports(again, "t2", TaskState.RUNNING)
        assert host.runtime.did("create").count("t1") == 1


async def test_a_diff_before_the_full_set_reopens_the_session(host: Host) -> None:
    async with manager_stub() as manager, agent(host, manager.address):
        session = await manager.session()
        await session.welcome()
        await session.diff(assigned(), applies_to=0)
        await manager.session()
        assert host.runtime.made == {}


async def test_containers_run_while_no_manager_answers(host: Host) -> None:
    async with manager_stub() as first, agent(host, first.address) as a:
        async with manager_stub() as second:
            second.silent = True
            session = await first.session()
            await session.welcome(managers=[first.address, second.address])
            await session.full(assigned("t1"), assigned("t2"))
            await reports(session, "t1", TaskState.RUNNING)
            await reports(session, "t2", TaskState.RUNNING)
            first.refuse = "not now"
            session.over.set()
            await until(lambda: not a.dialer.connected_to)
            assert set(host.runtime.running) == {"t1", "t2"}
            await host.runtime.end("t2", Exit(3, False, NOW))
            await until(lambda: "t2" not in host.runtime.made)
        first.refuse = ""
        again = await first.session()
        await again.welcome()
        await reports(again, "t1", TaskState.RUNNING)
        await reports(again, "t2", TaskState.FAILED)
        assert again.statuses[0].statuses["t2"].message == "exit status 3"


async def test_the_agent_gets_the_reason_of_a_refusal_during_a_write() -> None:
    async with manager_stub() as manager:
        manager.refuse, manager.refusal = "this is why", grpc.StatusCode.UNAUTHENTICATED
        seen = set()
        async with grpc.aio.insecure_channel(manager.address) as channel:
            for size in [1, 1 << 20] * 10:
                call = dispatch_pb2_grpc.DispatchStub(channel).Session()
                hello = dispatch_pb2.Hello(boot_id="x" * size)
                with pytest.raises((SessionEnded, grpc.RpcError)) as ended:  # noqa: PT012
                    await send(call, dispatch_pb2.AgentMessage(hello=hello))
                    for _ in range(10):
                        beat = dispatch_pb2.AgentMessage(heartbeat=dispatch_pb2.Heartbeat())
                        await send(call, beat)
                    await session_module._read(call)
                reason = session_module._ended(ended.value)
                seen.add((type(reason), str(reason)))
        assert seen == {(CertificateRefused, "this is why")}


async def test_a_redirect_is_followed(host: Host) -> None:
    async with manager_stub() as follower, manager_stub() as leader:
        follower.redirect_to = leader.address
        async with agent(host, follower.address) as a:
            session = await leader.session()
            await session.welcome(managers=[leader.address])
            await session.full()
            await until(lambda: a.dialer.connected_to == leader.address)
            assert follower.dialled == 1
        # The newest list is kept: the next agent goes to the leader first.
        async with agent(host, follower.address):
            await leader.session()
            assert follower.dialled == 1


async def test_redirects_in_a_circle_are_followed_with_backoff(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dialer_module, "BACKOFF_FIRST", 60.0)
    monkeypatch.setattr(dialer_module, "BACKOFF_MOST", 60.0)
    async with manager_stub() as one, manager_stub() as two:
        one.redirect_to, two.redirect_to = two.address, one.address
        async with agent(host, one.address):
            await until(lambda: any("retry_in" in record.__dict__ for record in caplog.records))
            assert one.dialled + two.dialled == 4


async def test_agent_leaves_a_manager_without_a_leader(host: Host) -> None:
    async with manager_stub() as one:
        one.redirect_to = ""
        async with agent(host, one.address):
            await until(lambda: one.dialled >= 2)
            one.redirect_to = None
            await one.session()


async def test_a_silent_manager_is_left(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialer_module, "PATIENCE_FIRST", 0.05)
    monkeypatch.setattr(session_module, "WELCOME_WITHIN", 0.05)
    async with manager_stub() as manager, agent(host, manager.address):
        await manager.session()
        await manager.session()


async def test_a_manager_to_which_there_is_a_connection_is_waited_for(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialer_module, "PATIENCE_FIRST", 0.2)
    async with manager_stub() as manager, agent(host, manager.address):
        session = await manager.session()
        await asyncio.sleep(0.5)
        await session.welcome()
        await until(lambda: session.heartbeats)


async def test_a_message_to_a_session_that_the_manager_has_closed_ends_it() -> None:
    heartbeat = dispatch_pb2.AgentMessage(heartbeat=dispatch_pb2.Heartbeat())
    async with manager_stub() as manager, grpc.aio.insecure_channel(manager.address) as channel:
        call = dispatch_pb2_grpc.DispatchStub(channel).Session()
        await call.write(dispatch_pb2.AgentMessage(hello=dispatch_pb2.Hello()))
        (await manager.session()).over.set()
        await call.code()
        with pytest.raises(SessionEnded, match="the manager closed the session"):
            await session_module.send(call, heartbeat)


async def test_unacknowledged_statuses_are_repeated(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "ACK_LIMIT", 0.02)
    async with manager_stub() as manager, agent(host, manager.address):
        session = await manager.session()
        session.acknowledge = False
        await session.welcome(period=0.01)
        await session.full(assigned())
        await reports(session, "t1", TaskState.RUNNING)
        count = len(session.statuses)
        await until(lambda: len(session.statuses) >= count + 2)
        last = session.statuses[-1]
        assert last.sequence == len(session.statuses)
        assert last.statuses["t1"].state == TaskState.RUNNING
        await session.say(ack=dispatch_pb2.StatusAck(sequence=last.sequence))


async def test_new_images_are_reported(host: Host) -> None:
    async with manager_stub() as manager, agent(host, manager.address) as a:
        session = await manager.session()
        await session.welcome()
        await until(lambda: session.images)
        a.images.append(Image(id="sha256:2"))
        a.dialer.report_images()
        await until(lambda: len(session.images) == 2)
        assert [image.id for image in session.images[1].images] == ["sha256:1", "sha256:2"]


async def test_a_tunnel_is_opened_on_order(host: Host) -> None:
    async with manager_stub() as manager, agent(host, manager.address) as a:
        session = await manager.session()
        await session.welcome()
        await session.say(open=dispatch_pb2.OpenTunnel(id="x"))
        await until(lambda: [order.id for order in a.tunnels] == ["x"])


async def test_images_that_were_removed_meanwhile_are_removed(host: Host) -> None:
    async with manager_stub() as manager, agent(host, manager.address) as a:
        session = await manager.session()
        await session.welcome()
        await session.say(remove_images=dispatch_pb2.RemoveImages(images=["sha256:1"]))
        await until(lambda: a.removed == ["sha256:1"])


async def test_the_scrape_token_is_known_without_a_manager(host: Host) -> None:
    async with manager_stub() as manager, agent(host, manager.address) as a:
        session = await manager.session()
        await session.welcome()
        await session.say(scrape=dispatch_pb2.ScrapeAccess(token_digest="ab12"))
        await until(lambda: a.db.scrape_digest() == "ab12")
    with StateDb(host.folder / "state.db") as db:
        assert db.scrape_digest() == "ab12"


async def test_open_ports_are_known_without_a_manager(host: Host) -> None:
    async with manager_stub() as manager, agent(host, manager.address) as a:
        session = await manager.session()
        await session.welcome()
        access = dispatch_pb2.ContainerAccess(open=["metrics", "metadata"])
        await session.say(container_access=access)
        await until(lambda: a.db.container_access() == ("metrics", "metadata"))
    with StateDb(host.folder / "state.db") as db:
        assert db.container_access() == ("metrics", "metadata")


async def test_restarted_agent_reports_its_known_statuses(host: Host) -> None:
    async with manager_stub() as manager:
        async with agent(host, manager.address):
            session = await manager.session()
            await session.welcome()
            await session.full(assigned("t1"), assigned("t2"))
            await reports(session, "t1", TaskState.RUNNING)
            await reports(session, "t2", TaskState.RUNNING)
        await host.runtime.end("t2", Exit(0, False, NOW))
        async with agent(host, manager.address):
            session = await manager.session()
            await session.welcome()
            await session.full(assigned("t1"), assigned("t2"))
            await reports(session, "t1", TaskState.RUNNING)
            await reports(session, "t2", TaskState.COMPLETE)
            assert host.runtime.did("start") == ["t1", "t2"]


def test_the_back_off_grows_to_its_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialer_module, "BACKOFF_FIRST", 0.1)
    monkeypatch.setattr(dialer_module, "BACKOFF_MOST", 8.0)
    assert [backoff(n, 1.0) for n in (1, 2, 3, 7, 8, 1000)] == [0.1, 0.2, 0.4, 6.4, 8.0, 8.0]
    assert [backoff(n, 0.0) for n in (1, 8)] == [0.05, 4.0]
    assert [backoff(n, 1.0, refused=True) for n in (1, 8, 1000)] == [0.1, 12.8, 60.0]


def test_a_slow_manager_is_given_more_time_after_failures() -> None:
    assert [patience(n) for n in (0, 1, 2, 3, 4, 6, 1000)] == [5, 5, 5, 10, 20, 60, 60]


async def test_an_internal_error_in_an_order_ends_the_daemon(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    async with manager_stub() as manager:
        with pytest.raises(BaseExceptionGroup) as caught:  # noqa: PT012
            async with agent(host, manager.address) as a:
                monkeypatch.setattr(a.worker, "apply", broken)
                session = await manager.session()
                await session.welcome()
                await session.full(assigned())
                await asyncio.get_running_loop().create_future()
        assert caught.group_contains(ZeroDivisionError)


def told(
    *ids: str, revision: int, applies_to: int | None = None, removed: Iterable[str] = ()
) -> dispatch_pb2.EndpointTable:
    """A table, or a change of one, of services with a task each."""
    return dispatch_pb2.EndpointTable(
        full=applies_to is None,
        applies_to=applies_to or 0,
        revision=revision,
        changed=[
            dispatch_pb2.ServiceEndpoints(
                id=id,
                name=id,
                network_id="n",
                endpoints=[dispatch_pb2.Endpoint(task_id=f"{id}.1", slot=1, ready=True)],
            )
            for id in ids
        ],
        removed=[dispatch_pb2.EndpointKey(id=id, network_id="n") for id in removed],
    )


def names(change: Change) -> list[str]:
    return [entry.name for entry in change.entries]


async def test_an_endpoint_table_is_acknowledged_when_it_is_followed(host: Host) -> None:
    async with manager_stub() as manager, agent(host, manager.address) as a:
        session = await manager.session()
        await session.welcome()
        await session.say(endpoints=told("web", "db", revision=7))
        await until(lambda: session.applied == [7])
        assert names(a.follower.told[-1]) == ["db", "web"]
        a.follower.gate.clear()
        await session.say(endpoints=told("cache", revision=8, applies_to=7, removed=["db"]))
        await until(lambda: names(a.follower.told[-1]) == ["cache"])
        await session.say(endpoints=told("web", revision=9, applies_to=8))
        beats = session.heartbeats
        await until(lambda: session.heartbeats > beats)
        assert session.applied == [7]
        a.follower.gate.set()
        await until(lambda: session.applied[-1] == 9)
        assert [entry.name for entry in a.db.endpoints()] == ["cache", "web"]


async def test_a_gap_in_the_endpoint_table_reopens_the_session(host: Host) -> None:
    async with manager_stub() as manager, agent(host, manager.address) as a:
        session = await manager.session()
        await session.welcome()
        await session.say(endpoints=told("web", revision=7))
        await session.say(endpoints=told("db", revision=9, applies_to=8))
        again = await manager.session()
        await again.welcome()
        # The same table, under another number: nothing is new, and it is acknowledged.
        count = len(a.follower.told)
        await again.say(endpoints=told("web", revision=1))
        await until(lambda: again.applied == [1])
        assert len(a.follower.told) == count


async def test_the_table_is_followed_without_a_manager(host: Host) -> None:
    async with manager_stub() as manager, agent(host, manager.address) as a:
        session = await manager.session()
        await session.welcome()
        network = dispatch_pb2.AssignedNetwork(id="n", name="orc", subnet="10.128.0.0/24")
        await session.full(networks=[network])
        await session.say(endpoints=told("web", "db", revision=7))
        await session.say(endpoints=told(revision=8, applies_to=7, removed=["db"]))
        await until(lambda: session.applied and session.applied[-1] == 8)
    async with agent(host, "127.0.0.1:1") as a:
        await until(lambda: a.follower.told)
        assert names(a.follower.told[0]) == ["web"]
        assert a.follower.told[0].base is None
        assert a.follower.told[0].networks == (network,)


async def test_a_revoked_node_dials_with_growing_backoff(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dialer_module, "BACKOFF_FIRST", 1000.0)
    monkeypatch.setattr(dialer_module, "BACKOFF_MOST", 0.001)
    words = "this certificate was revoked at 2026-01-01T00:00:00Z; …"

    class Refusing(dispatch_pb2_grpc.DispatchServicer):
        async def Session(self, messages: Any, context: Any) -> None:
            await anext(aiter(messages))
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, words)

    server = grpc.aio.server()
    dispatch_pb2_grpc.add_DispatchServicer_to_server(Refusing(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with agent(host, f"127.0.0.1:{port}"):
            await until(lambda: words in caplog.text)
            [record] = [each for each in caplog.records if words in each.getMessage()]
            # Another failure would be followed by a millisecond at the most.
            assert float(record.__dict__["retry_in"]) >= dialer_module.BACKOFF_REFUSED / 2
    finally:
        await server.stop(None)


def connections_to(address: str) -> int:
    """TCP connections that are established to HOST:PORT on loopback."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    tables = (Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6"))
    rows = [line.split() for table in tables for line in table.splitlines()]
    return sum(row[2].endswith(port) and row[3] == "01" for row in rows)


async def test_failed_dials_leave_no_connection(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """With the garbage collector off: it may not run for hours in an agent with little to do."""
    caplog.set_level(logging.DEBUG)
    gc.disable()
    try:
        with socket.socket() as reserved:  # it does not listen: connections are refused
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{reserved.getsockname()[1]}"
            async with agent(host, address):
                await until(lambda: caplog.text.count("no session") >= 4)
                async with manager_stub(address) as manager:
                    session = await manager.session()
                    await session.welcome()
                    await until(lambda: session.heartbeats >= 20)
                    assert connections_to(address) == 1
    finally:
        gc.enable()
