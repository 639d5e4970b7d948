# SPDX-License-Identifier: Apache-2.0
"""The leader resigns on request, and when its manager ends."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from managerhost import manager_beside, manager_in
from test_manager import agent, deploy, web
from test_sessions_with_any_manager import until

from orchestrator.manager.store.keys import LEADER
from orchestrator.manager.store.kv import Put
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.pb import control_pb2_grpc, managers_pb2, managers_pb2_grpc


async def test_a_leader_whose_term_began_before_a_compaction_resigns(tmp_path: Path) -> None:
    """As each that leads for longer than etcd keeps history."""
    async with manager_in(tmp_path / "m") as running, running.channel(running.admin) as channel:
        kv, id = running.kv, running.identity.manager_id
        async with kv.watch(LEADER, 1) as changes:
            elected = (await anext(changes)).revision
        revision = await kv.txn([], [Put("/later", b"1")])
        await kv.compact(revision)  # type: ignore[attr-defined]
        stub = managers_pb2_grpc.ManagersStub(channel)
        reply = await stub.StepDown(managers_pb2.StepDownRequest())
        assert (reply.former, reply.leader) == (id, id)
        now = await kv.get(LEADER)
        assert now is not None
        assert now.create_revision > elected


@pytest.mark.parametrize("ends", [False, True], ids=["steps down", "ends"])
async def test_a_planned_hand_over_waits_for_no_lease(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ends: bool
) -> None:
    """The store's clock stands still, so no lease expires: what the leader held, it has released
    itself, and only after its term had ended."""
    caplog.set_level(logging.INFO)
    async with AsyncExitStack() as stack:
        leader = await stack.enter_async_context(
            manager_in(tmp_path / "leader", 600.0, MemoryKv(lambda: 0.0))
        )
        async with (
            manager_beside(leader, tmp_path / "follower") as follower,
            follower.channel(follower.admin) as channel,
            agent(follower, "one") as one,
        ):
            cache, id = follower.manager.cache, follower.identity.manager_id
            if ends:
                async with agent(leader, "two"):
                    await until(cache, lambda: len(cache.view.sessions) == 2)
                await stack.aclose()
                await until(cache, lambda: list(cache.view.manager_presence) == [id])
                assert {each.manager_id for each in cache.view.sessions.values()} == {id}
            else:
                await managers_pb2_grpc.ManagersStub(channel).StepDown(
                    managers_pb2.StepDownRequest()
                )
            await deploy(follower, control_pb2_grpc.ControlStub(channel), web(replicas=2))
            await one.until(lambda: one.tasks)  # decided by the new leader
            held = await follower.kv.get(LEADER)
            assert held is not None
            assert held.value.decode() == id
    terms = [
        (record.message, record.__dict__["leader"])
        for record in caplog.records
        if record.message in ("elected", "resigned")
    ]
    if ends:
        former = leader.identity.manager_id
        assert terms[:3] == [("elected", former), ("resigned", former), ("elected", id)]
