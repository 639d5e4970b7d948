# SPDX-License-Identifier: Apache-2.0
"""The leader resigns on request."""

from __future__ import annotations

from pathlib import Path

from managerhost import manager_in

from orchestrator.manager.store.keys import LEADER
from orchestrator.manager.store.kv import Put
from orchestrator.pb import managers_pb2, managers_pb2_grpc


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
