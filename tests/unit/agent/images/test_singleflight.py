# SPDX-License-Identifier: Apache-2.0
"""Work that several want is done once."""

import asyncio

import pytest

from orchestrator.agent.images.singleflight import SingleFlight


async def test_concurrent_callers_share_one_call() -> None:
    started, go = 0, asyncio.Event()

    async def work() -> int:
        nonlocal started
        started += 1
        await go.wait()
        return 42

    async with SingleFlight[str, int]() as flights, asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(flights.run("k", work)) for _ in range(5)]
        other = tasks.create_task(flights.run("other", work))
        await asyncio.sleep(0)
        go.set()
    assert [w.result() for w in waiting] == [42] * 5
    assert other.result() == 42
    assert started == 2


async def test_all_waiters_get_the_error_and_the_next_call_starts_again() -> None:
    async def broken() -> int:
        await asyncio.sleep(0)
        raise ValueError("no")

    async def fine() -> int:
        return 1

    async with SingleFlight[str, int]() as flights:
        results = await asyncio.gather(
            *(flights.run("k", broken) for _ in range(3)), return_exceptions=True
        )
        assert [str(r) for r in results] == ["no"] * 3
        assert await flights.run("k", fine) == 1


async def test_work_is_cancelled_with_its_last_waiter_only() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> int:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()
        return 1

    async def fine() -> int:
        assert ended.is_set()  # never two at once
        return 2

    async with SingleFlight[str, int]() as flights:
        first = asyncio.create_task(flights.run("k", work))
        second = asyncio.create_task(flights.run("k", work))
        await begun.wait()
        first.cancel()
        await asyncio.wait([first])
        assert not ended.is_set()
        second.cancel()
        await asyncio.wait([second])
        assert await flights.run("k", fine) == 2


async def test_work_cancelled_before_its_start_leaves_nothing() -> None:
    async def work() -> int:
        return 3

    async with SingleFlight[str, int]() as flights:
        task = asyncio.create_task(flights.run("k", work))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await flights.run("k", work) == 3
