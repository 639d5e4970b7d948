# SPDX-License-Identifier: Apache-2.0
"""When a manager acts on a full or fragmented store, by its own look at the members."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
import pytest

from orchestrator.daemon.background import background
from orchestrator.manager.cluster.manager_calls import ManagerChannels
from orchestrator.manager.cluster.store_upkeep import RELIEF_PAUSE, StoreUpkeep
from orchestrator.manager.errors import RequestError
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.etcd_maintenance import Alarm, Defragmented
from orchestrator.manager.store.etcd_member import EtcdMember
from orchestrator.manager.store.etcd_membership import MemberStatus
from orchestrator.manager.store.keys import LEADER
from orchestrator.manager.store.kv import Put
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.model.administration.managers import Manager
from orchestrator.pb import managers_pb2, managers_pb2_grpc

MIB = 1 << 20
QUOTA = 100 * MIB
NOSPACE = Alarm("a1", "NOSPACE")


@dataclass
class Etcd:
    """The members of `hosts`, and what was done to them. `used` is what cannot be reclaimed."""

    hosts: tuple[str, ...] = ("m1",)
    size: int = 100 * MIB
    used: int = 10 * MIB
    alarms: list[Alarm] = field(default_factory=lambda: [NOSPACE])
    done: list[str] = field(default_factory=list)
    now: float = 0.0
    leads: bool = True
    kv: MemoryKv = field(default_factory=lambda: MemoryKv(lambda: 0.0))

    @property
    def membership(self) -> Etcd:
        return self

    @property
    def maintenance(self) -> Etcd:
        return self

    async def status(self) -> MemberStatus:
        return MemberStatus(
            id=0xA1,
            version="3.5.16",
            leader=1,
            raft_term=1,
            applied_index=1,
            size=self.size,
            used=self.used,
            learner=False,
            errors=(),
            alarms=tuple(self.alarms),
        )

    async def statuses(self) -> dict[str, Any]:
        alarms = [
            managers_pb2.StoreAlarm(member_id=each.member_id, kind=each.kind)
            for each in self.alarms
        ]
        status = managers_pb2.ManagerStatus(
            etcd_version="3.5.16",
            database_size=self.size,
            database_used=self.used,
            database_quota=QUOTA,
            alarms=alarms,
        )
        return dict.fromkeys(self.hosts, status)

    async def compact(self) -> int:
        self.done.append("compact")
        return 1

    async def defragment(self) -> Defragmented:
        self.done.append("defragment")
        before, self.size = self.size, self.used
        return Defragmented(before, self.size, 0.1)

    async def hand_over(self) -> None:
        self.done.append("hand over")
        self.leads = False

    async def disarm(self, alarms: list[Alarm]) -> None:
        self.done.append("disarm")
        self.alarms = [each for each in self.alarms if each not in alarms]


def upkeep_of(etcd: Etcd, own: str = "m1", channels: Any = None) -> StoreUpkeep:
    view = ClusterView.of(Manager(id=each, hostname=each) for each in etcd.hosts)
    return StoreUpkeep(
        etcd.kv,
        lambda: view,
        own,
        cast(EtcdMember, etcd),
        cast(ManagerChannels, channels),
        etcd.statuses,
        leads=lambda: etcd.leads,
        hand_over=etcd.hand_over,
        clock=lambda: etcd.now,
        period=1e9,
    )


async def test_a_full_database_gets_room_and_accepts_writes() -> None:
    etcd = Etcd()
    upkeep = upkeep_of(etcd)
    async with background(upkeep.run()):
        await upkeep.look()
    assert etcd.done == ["compact", "defragment", "disarm"]
    assert etcd.alarms == []


async def test_live_data_are_not_rewritten_again_and_again() -> None:
    etcd = Etcd(used=95 * MIB)
    upkeep = upkeep_of(etcd)
    async with background(upkeep.run()):
        for _ in range(3):
            with pytest.raises(RequestError, match="is full on m1: raise --etcd-quota"):
                await upkeep.look()
        assert etcd.done == ["compact", "defragment"]
        etcd.now += RELIEF_PAUSE
        with pytest.raises(RequestError):
            await upkeep.look()
        assert etcd.done == 2 * ["compact", "defragment"]
        etcd.used = etcd.size = 10 * MIB
        await upkeep.look()
    assert etcd.done[4:] == ["disarm"]


async def test_an_alarm_of_corrupt_data_stays() -> None:
    corrupt = Alarm("a1", "CORRUPT")
    etcd = Etcd(used=100 * MIB, alarms=[corrupt])
    await upkeep_of(etcd).look()
    assert etcd.done == []
    assert await upkeep_of(etcd).disarm(force=True) == []
    assert etcd.alarms == [corrupt]


async def test_followers_leave_it_to_the_leader() -> None:
    etcd = Etcd(("m1", "m2"), size=10 * MIB, leads=False)
    await etcd.kv.txn([], [Put(LEADER, b"m2")])
    await upkeep_of(etcd).look()
    assert etcd.done == []


@pytest.mark.parametrize(("own", "done"), [("m1", ["disarm"]), ("m2", [])])
async def test_without_a_leader_one_manager_acts(own: str, done: list[str]) -> None:
    """Which a full database cannot elect."""
    etcd = Etcd(("m1", "m2"), size=10 * MIB, leads=False)
    await upkeep_of(etcd, own).look()
    assert etcd.done == done


async def test_only_fragmented_databases_are_rewritten_without_need() -> None:
    etcd = Etcd(size=20 * MIB, used=15 * MIB, alarms=[])
    upkeep = upkeep_of(etcd)
    async with background(upkeep.run()):
        await upkeep.look()
        assert etcd.done == []
        etcd.used = 5 * MIB
        await upkeep.look()
    assert etcd.done == ["defragment"]


@pytest.mark.parametrize(
    ("hosts", "size", "alarms", "done"),
    [
        (("m1", "m2"), 300 * MIB, [], ["hand over", "defragment"]),
        (("m1", "m2"), 200 * MIB, [], ["defragment"]),
        (("m1", "m2"), 300 * MIB, [NOSPACE], ["defragment"]),
        (("m1",), 300 * MIB, [], ["defragment"]),
    ],
)
async def test_another_manager_leads_while_a_large_database_is_rewritten(
    hosts: tuple[str, ...], size: int, alarms: list[Alarm], done: list[str]
) -> None:
    etcd = Etcd(hosts, size=size, alarms=alarms)
    upkeep = upkeep_of(etcd)
    async with background(upkeep.run()):
        await upkeep.defragment("m1")
    assert etcd.done == done
    assert not upkeep.defragmenting


async def test_an_operator_is_refused_while_there_is_no_room() -> None:
    etcd = Etcd()
    upkeep = upkeep_of(etcd)
    with pytest.raises(RequestError, match="the database of m1 is still full"):
        await upkeep.disarm(force=False)
    assert await upkeep.disarm(force=True) == [NOSPACE]


class _Busy(managers_pb2_grpc.MembershipServicer):  # type: ignore[misc]
    """A manager whose member is being defragmented for as long as the test lasts."""

    def __init__(self) -> None:
        self.began = asyncio.Event()

    async def DefragmentMember(self, request: Any, context: Any) -> Any:
        self.began.set()
        await asyncio.Event().wait()


async def test_a_lost_connection_to_another_manager_does_not_end_the_upkeep() -> None:
    """As when this manager's certificate is renewed, and its channels are replaced."""
    etcd, busy, server = Etcd(("m1", "m2"), alarms=[]), _Busy(), grpc.aio.server()
    managers_pb2_grpc.add_MembershipServicer_to_server(busy, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")

    class Channels:
        async def channel(self, id: str) -> grpc.aio.Channel:
            return channel

    upkeep = upkeep_of(etcd, channels=Channels())
    try:
        async with asyncio.TaskGroup() as group:
            asked = group.create_task(_refusal(upkeep))
            await busy.began.wait()
            await channel.close(None)
        assert "cannot defragment the member of m2" in asked.result()
    finally:
        await server.stop(None)


async def _refusal(upkeep: StoreUpkeep) -> str:
    with pytest.raises(RequestError) as refused:
        await upkeep.defragment("m2")
    return refused.value.text
