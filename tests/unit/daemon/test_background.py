# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

import pytest

from orchestrator.daemon.background import background


async def forever(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("work")


async def fail() -> None:
    raise LookupError("work")


async def test_the_work_ends_with_the_body() -> None:
    ended: list[str] = []
    async with background(forever(ended)):
        await asyncio.sleep(0)
    assert ended == ["work"]


async def test_a_failed_body_comes_out_as_it_is() -> None:
    ended: list[str] = []

    async def run() -> None:
        async with background(forever(ended)):
            await asyncio.sleep(0)
            raise KeyError("body")

    with pytest.raises(KeyError, match="body"):
        await run()
    assert ended == ["work"]


async def test_failed_work_cancels_the_body_and_comes_out() -> None:
    with pytest.raises(LookupError, match="work"):
        async with background(fail()):
            await asyncio.Event().wait()


async def test_a_cancellation_from_outside_stays_one() -> None:
    ended: list[str] = []

    async def run() -> None:
        async with background(forever(ended)):
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(run())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()
    assert ended == ["work"]


async def test_two_failures_come_out_together() -> None:
    async def run() -> None:
        async with background(fail()):
            try:
                await asyncio.Event().wait()
            finally:
                raise KeyError("body")

    with pytest.raises(BaseExceptionGroup) as both:
        await run()
    assert {type(error) for error in both.value.exceptions} == {KeyError, LookupError}
