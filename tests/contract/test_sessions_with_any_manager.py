# SPDX-License-Identifier: Apache-2.0
"""Two managers on one store: an agent may be in session with either, and move."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from managerhost import Running, manager_beside, manager_in
from test_manager import Agent, agent, deploy, pictures, web
from test_manager_sessions import heard, session

from orchestrator.identity.certificates import KeyPair
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.keys import object_key
from orchestrator.manager.store.kv import Delete, StoreUnavailable
from orchestrator.model.nodes import NodeState
from orchestrator.model.states import TaskState
from orchestrator.pb import (
    control_pb2,
    control_pb2_grpc,
    dispatch_pb2_grpc,
    interact_pb2,
    interact_pb2_grpc,
    managers_pb2,
    managers_pb2_grpc,
)


@pytest.fixture
def node_timeout() -> float:
    return 600.0


@pytest.fixture
async def leader(tmp_path: Path, node_timeout: float) -> AsyncIterator[Running]:
    async with manager_in(tmp_path / "leader", node_timeout) as running:
        yield running


@pytest.fixture
async def follower(leader: Running, tmp_path: Path) -> AsyncIterator[Running]:
    async with manager_beside(leader, tmp_path / "follower") as running:
        yield running


@pytest.fixture
async def control(leader: Running) -> AsyncIterator[Any]:
    async with leader.channel(leader.admin) as channel:
        yield control_pb2_grpc.ControlStub(channel)


async def until(cache: Cache, holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60), cache.subscribe() as feed:
        while not holds():
            await feed.next()


def _states(cache: Cache) -> set[NodeState]:
    return {node.state for node in cache.view.nodes.values()}


async def test_a_node_in_session_with_a_follower_gets_its_tasks_and_reports_them(
    leader: Running, follower: Running, control: Any
) -> None:
    async with agent(follower, "one") as node:
        await deploy(leader, control, web(replicas=2))
        await node.until(lambda: len(node.tasks) == 2)
        await node.report(*node.tasks, state=TaskState.RUNNING)
        await node.until(lambda: node.acknowledged == node.sequence)
        await pictures(control, lambda picture: picture.converged)


async def test_a_session_that_moves_ends_at_its_former_manager(
    leader: Running, follower: Running, control: Any
) -> None:
    joined = await leader.join(leader.token)
    async with agent(follower, "one", joined) as before:
        await deploy(leader, control, web())
        await before.until(lambda: before.tasks)
        async with agent(leader, "one", joined) as now:
            with pytest.raises(AssertionError, match="ended the session"):
                await before.until(lambda: False)
            (task_id,) = now.tasks
            await now.report(task_id, state=TaskState.RUNNING)
            await pictures(control, lambda picture: picture.converged)
            records = leader.manager.cache.view.sessions
            assert {each.manager_id for each in records.values()} == {leader.identity.manager_id}


async def test_a_manager_whose_view_is_old_orders_nothing_from_it(
    leader: Running, follower: Running, control: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = await leader.join(leader.token)
    connected = asyncio.Event()
    apply = follower.manager.cache._apply

    async def late(*batch: Any) -> None:
        await connected.wait()
        await apply(*batch)

    async with agent(leader, "one", joined) as before:
        monkeypatch.setattr(follower.manager.cache, "_apply", late)
        await deploy(leader, control, web())
        await before.until(lambda: before.tasks)
    cache, id = leader.manager.cache, follower.identity.manager_id

    async def catch_up() -> None:
        await until(
            cache, lambda: [each.manager_id for each in cache.view.sessions.values()] == [id]
        )
        connected.set()

    # The agent moves to a manager that does not know its task yet.
    async with asyncio.TaskGroup() as group:
        group.create_task(catch_up())
        async with agent(follower, "one", joined) as now:
            assert (now.full_sets, set(now.tasks)) == (1, set(before.tasks))


@pytest.mark.parametrize("node_timeout", [1.0])
async def test_a_node_that_falls_silent_at_a_follower_is_down(
    leader: Running, follower: Running, node_timeout: float
) -> None:
    cache = leader.manager.cache
    async with agent(follower, "one") as node:
        await until(cache, lambda: _states(cache) == {NodeState.READY})
        with pytest.raises(AssertionError, match="ended the session"):
            await node.until(lambda: False)
        assert _states(cache) == {NodeState.DOWN}


async def test_any_manager_reaches_a_node_through_the_one_that_has_its_session(
    leader: Running, follower: Running
) -> None:
    joined = await leader.join(leader.token)
    async with leader.channel(leader.admin) as channel:
        async with session(follower, joined, "node1"):
            stats = interact_pb2_grpc.InteractStub(channel).Stats(interact_pb2.StatsRequest())
            assert await heard(stats) == ("node1", 1, "")
        assert await heard(stats) == ("node1", 1, "the connection to node node1 broke")
        async with session(leader, joined, "node1"):
            assert await heard(stats) == ("node1", 1, "")
        assert await heard(stats) == ("node1", 1, "the connection to node node1 broke")
        async with session(follower, joined, "node1"):
            assert await heard(stats) == ("node1", 1, "")
            stats.cancel()


async def test_a_manager_that_joins_gets_sessions_of_the_others(
    leader: Running, follower: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with agent(leader, "one") as one, agent(leader, "two") as two:
        hearing = [asyncio.ensure_future(_redirected(node)) for node in (one, two)]
        monkeypatch.setattr("orchestrator.manager.dispatch.rebalancing.INTERVAL", 0.05)
        monkeypatch.setattr("orchestrator.manager.dispatch.rebalancing.STEADY", 0.05)
        async with asyncio.timeout(60):
            done, left = await asyncio.wait(hearing, return_when=asyncio.FIRST_COMPLETED)
        assert {each.result() for each in done} == {follower.manager._address}
        for each in left:
            each.cancel()


async def test_a_write_that_is_never_answered_does_not_end_a_new_session(
    leader: Running, follower: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was on its way to a leader of etcd that then died."""
    txn, lost = follower.manager._kv.txn, asyncio.Event()

    async def first_is_lost(guards: Any, ops: Any) -> int:
        if any("/sessions/" in op.key for op in ops) and not lost.is_set():
            lost.set()
            await asyncio.Event().wait()
        return int(await txn(guards, ops))

    monkeypatch.setattr(follower.manager._kv, "txn", first_is_lost)
    async with agent(follower, "one"):  # until it gets its networks, in its first session
        assert lost.is_set()


async def test_a_request_waits_for_a_node_that_is_redirected(
    leader: Running, follower: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = {name: await leader.join(leader.token) for name in ("one", "two")}
    async with (
        agent(leader, "one", joined["one"]) as one,
        agent(leader, "two", joined["two"]) as two,
        leader.channel(leader.admin) as channel,
    ):
        hearing = {
            asyncio.ensure_future(_redirected(each)): name
            for each, name in ((one, "one"), (two, "two"))
        }
        monkeypatch.setattr("orchestrator.manager.dispatch.rebalancing.INTERVAL", 0.05)
        monkeypatch.setattr("orchestrator.manager.dispatch.rebalancing.STEADY", 0.05)
        async with asyncio.timeout(60):
            (done, *_), left = await asyncio.wait(hearing, return_when=asyncio.FIRST_COMPLETED)
        for each in left:
            each.cancel()
        # It was redirected, and has not left yet.
        name = hearing[done]
        stats = interact_pb2_grpc.InteractStub(channel).Stats(interact_pb2.StatsRequest())
        await stats.initial_metadata()
        async with session(follower, joined[name], name):
            while (told := await heard(stats))[0] != name:
                pass
            assert told == (name, 2, "")
            stats.cancel()


async def _redirected(node: Agent) -> str:
    """The address that the node is redirected to."""
    while (message := await node._call.read()).WhichOneof("kind") != "redirect":
        pass
    return str(message.redirect.leader)


async def test_a_manager_that_cannot_reach_etcd_leaves_its_nodes_to_the_others(
    leader: Running, follower: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = await leader.join(leader.token)
    async with agent(follower, "one", joined) as before:
        for verb in ("grant", "keepalive"):
            monkeypatch.setattr(follower.manager._kv, verb, _unavailable)
        monkeypatch.setattr(follower.manager._presence, "_renewal", None)
        with pytest.raises(AssertionError, match="ended the session"):
            await before.until(lambda: False)
        async with follower.channel(KeyPair(joined.certificate, joined.key)) as channel:
            refused = dispatch_pb2_grpc.DispatchStub(channel).Session()
            assert await refused.code() is grpc.StatusCode.UNAVAILABLE
            assert await refused.details() == "this manager cannot reach etcd"
        async with agent(leader, "one", joined):
            await until(
                leader.manager.cache, lambda: _states(leader.manager.cache) == {NodeState.READY}
            )


async def _unavailable(*args: Any) -> Any:
    raise StoreUnavailable("no etcd endpoint answered in time")


async def test_a_manager_that_ends_leaves_no_record(leader: Running, tmp_path: Path) -> None:
    cache = leader.manager.cache
    async with AsyncExitStack() as ended:
        other = await ended.enter_async_context(manager_beside(leader, tmp_path / "other"))
        async with agent(other, "one"):
            await until(cache, lambda: len(cache.view.sessions) == 1)
            await until(cache, lambda: _states(cache) == {NodeState.READY})
    await until(cache, lambda: not cache.view.sessions)
    (node,) = cache.view.nodes.values()
    assert node.state is NodeState.READY


async def test_a_task_stops_once_the_nodes_of_all_managers_have_withdrawn_its_endpoint(
    leader: Running, follower: Running, control: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.manager.dispatch.dispatcher.DRAIN_TIMEOUT", 600.0)
    async with agent(leader, "one") as one, agent(follower, "two") as two:
        await deploy(leader, control, web(replicas=2))
        await one.until(lambda: one.tasks)
        await two.until(lambda: two.tasks)
        for node in (one, two):
            await node.report(*node.tasks, state=TaskState.RUNNING, addresses=node.addresses)
        await one.until(lambda: one.ready == {*one.tasks, *two.tasks})
        await two.until(lambda: two.ready == one.ready)
        one.follows = two.follows = False
        await control.UpdateService(
            control_pb2.UpdateServiceRequest(service="web", spec=web(replicas=0))
        )
        await one.until(lambda: not one.ready)
        await two.until(lambda: not two.ready)
        await one.follow()
        # Something else is sent meanwhile: the order is withheld, not just not sent yet.
        other = web(replicas=2)
        other.name = "other"
        await deploy(leader, control, other)
        await one.until(lambda: len(one.tasks) == 2)
        await two.until(lambda: len(two.tasks) == 2)
        orders = {task.desired_state for node in (one, two) for task in node.tasks.values()}
        assert orders == {TaskState.RUNNING}
        await two.follow()
        for node in (one, two):
            await node.until(partial(_stops_one, node))


def _stops_one(node: Agent) -> bool:
    return any(task.desired_state > TaskState.RUNNING for task in node.tasks.values())


async def test_a_leader_that_steps_down_leaves_the_lead_to_another_manager(
    leader: Running, follower: Running
) -> None:
    cache = leader.manager.cache
    await until(cache, lambda: len(cache.view.manager_presence) == 2)
    async with leader.channel(leader.admin) as channel:
        managers = managers_pb2_grpc.ManagersStub(channel)
        for before, after in ((leader, follower), (follower, leader)):
            reply = await managers.StepDown(managers_pb2.StepDownRequest())
            assert reply.former == before.identity.manager_id
            assert reply.leader == after.identity.manager_id


async def test_only_the_leader_says_that_it_was_elected(
    leader: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = leader.manager.cache
    with caplog.at_level(logging.INFO):
        async with (
            manager_beside(leader, tmp_path / "follower") as follower,
            agent(follower, "one"),
        ):
            await until(cache, lambda: len(cache.view.sessions) == 1)
    assert "elected" not in caplog.messages


async def test_a_manager_that_loses_its_presence_holds_it_and_its_session_records_again(
    leader: Running, follower: Running
) -> None:
    cache, id = follower.manager.cache, follower.identity.manager_id
    async with agent(leader, "one"), agent(follower, "two"):
        await until(
            cache, lambda: len(cache.view.sessions) == len(cache.view.manager_presence) == 2
        )
        lost = await follower.manager._kv.txn(
            [], [Delete(object_key(cache.view.manager_presence[id]))]
        )
        # Its session is closed, since there is another manager.
        async with agent(follower, "three"):
            await until(
                cache,
                lambda: (
                    id in cache.view.manager_presence
                    and cache.view.manager_presence[id].revision > lost
                    and any(each.manager_id == id for each in cache.view.sessions.values())
                ),
            )


async def test_leases_become_short_when_another_manager_joins_and_records_outlive_the_former(
    leader: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = leader.manager.cache

    def exchanged() -> dict[str, float]:
        return {
            record.__dict__["key"]: record.__dict__["ttl"]
            for record in caplog.records
            if record.message == "lease of a key exchanged"
        }

    presence = f"/orc/manager-presence/{leader.identity.manager_id}"
    with caplog.at_level(logging.INFO):
        async with asyncio.timeout(60), agent(leader, "one"):
            await until(cache, lambda: len(cache.view.sessions) == 1)
            former = leader.kv._lease_of[presence]
            (before,) = cache.view.sessions.values()
            async with manager_beside(leader, tmp_path / "follower"):
                while len(exchanged()) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                await until(
                    cache, lambda: cache.view.sessions[before.id].revision > before.revision
                )
                after = cache.view.sessions[before.id]
                await leader.kv.revoke(former)  # as if it had expired
                await cache.wait_for((await leader.kv.list("/orc/")).revision)
                assert cache.view.sessions == {before.id: after}
    assert exchanged() == {"/orc/leader": 3.0, presence: 5.0}
    assert not {"leadership lost", "presence lost"} & set(caplog.messages)
