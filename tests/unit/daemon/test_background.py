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


async def test_task_is_cancelled_when_the_body_ends() -> None:
    ended: list[str] = []
    async with background(forever(ended)):
        await asyncio.sleep(0)
    assert ended == ["work"]


async def test_exception_of_the_body_is_raised_unwrapped() -> None:
    ended: list[str] = []

    async def run() -> None:
        async with background(forever(ended)):
            await asyncio.sleep(0)
            raise KeyError("body")

    with pytest.raises(KeyError, match="body"):
        await run()
    assert ended == ["work"]


async def test_failed_task_cancels_the_body_and_is_raised() -> None:
    with pytest.raises(LookupError, match="work"):
        async with background(fail()):
            await asyncio.Event().wait()


async def test_cancellation_from_outside_propagates() -> None:
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


async def test_two_failures_are_raised_as_a_group() -> None:
    async def run() -> None:
        async with background(fail()):
            try:
                await asyncio.Event().wait()
            finally:
                raise KeyError("body")

    with pytest.raises(BaseExceptionGroup) as both:
        await run()
    assert {type(error) for error in both.value.exceptions} == {KeyError, LookupError}
