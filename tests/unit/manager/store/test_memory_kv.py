# SPDX-License-Identifier: Apache-2.0
"""What the memory store has beyond the contract: a clock that is moved, and faults."""

from __future__ import annotations

import asyncio

import pytest
from virtualtime import VirtualTime

from orchestrator.manager.store.kv import (
    Compacted,
    LeaseLost,
    Put,
    StoreError,
    StoreUnavailable,
)
from orchestrator.manager.store.memory import MemoryKv, Phase, Verb


@pytest.fixture
def time() -> VirtualTime:
    return VirtualTime()


@pytest.fixture
def kv(time: VirtualTime) -> MemoryKv:
    kv = MemoryKv(time)
    time.on_change = kv.tick
    return kv


async def test_a_lease_ends_at_its_time_and_no_earlier(kv: MemoryKv, time: VirtualTime) -> None:
    lease = await kv.grant(5)
    await kv.txn([], [Put("a", b"", lease)])
    await time.pass_(4.9)
    assert await kv.keepalive(lease) == 5
    await time.pass_(4.9)
    assert await kv.get("a") is not None
    await time.pass_(0.1)
    assert await kv.get("a") is None
    with pytest.raises(LeaseLost):
        await kv.keepalive(lease)


async def test_a_waiting_watch_sees_an_expiry(kv: MemoryKv, time: VirtualTime) -> None:
    lease = await kv.grant(2)
    revision = await kv.txn([], [Put("a", b"", lease)])
    async with kv.watch("", revision + 1) as changes, asyncio.TaskGroup() as group:
        waiting = group.create_task(anext(changes))  # type: ignore[arg-type]
        await time.pass_(1.9)
        assert not waiting.done()
        await time.pass_(0.1)
        assert [(event.key, event.entry) for event in waiting.result().events] == [("a", None)]


@pytest.mark.parametrize(("phase", "written"), [("before", False), ("after", True)])
async def test_a_fault_strikes_before_or_after_the_write(
    kv: MemoryKv, phase: Phase, written: bool
) -> None:
    def fault(verb: Verb, when: Phase) -> None:
        if (verb, when) == ("txn", phase):
            raise StoreUnavailable("bad luck")

    kv.fault = fault
    with pytest.raises(StoreUnavailable):
        await kv.txn([], [Put("a", b"")])
    assert (await kv.get("a") is not None) is written


async def test_revisions_that_are_not_compacted_can_be_watched(kv: MemoryKv) -> None:
    revisions = [await kv.txn([], [Put("a", b"%d" % n)]) for n in range(4)]
    await kv.compact(revisions[2])
    async with kv.watch("", revisions[2]) as changes:
        assert [(await anext(changes)).revision for _ in range(2)] == revisions[2:]
    async with kv.watch("", revisions[1]) as changes:
        with pytest.raises(Compacted):
            await anext(changes)
    with pytest.raises(StoreError, match="future"):
        await kv.compact(revisions[3] + 1)


async def test_a_quiet_watch_outlives_compaction(kv: MemoryKv) -> None:
    start = await kv.txn([], [Put("quiet", b"")])
    async with kv.watch("quiet", start + 1) as changes, asyncio.TaskGroup() as group:
        waiting = group.create_task(anext(changes))  # type: ignore[arg-type]
        for _ in range(5):
            last = await kv.txn([], [Put("loud", b"")])
            await asyncio.sleep(0)
        await kv.compact(last)
        revision = await kv.txn([], [Put("quiet", b"")])
        assert (await waiting).revision == revision
