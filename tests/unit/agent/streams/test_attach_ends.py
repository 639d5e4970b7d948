# SPDX-License-Identifier: Apache-2.0
"""What a client that is attached hears of a container's end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from orchestrator.agent.runtime.interface import Exit, RuntimeFailure
from orchestrator.agent.streams.exec_attach import end_of
from orchestrator.model.tasks import TaskStatus


@dataclass
class Runner:
    id: str = "box"
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    status: TaskStatus = field(default_factory=lambda: TaskStatus(exit_code=7, finished_at=3.0))


async def gone(container_id: str) -> Exit:
    raise RuntimeFailure(f"container {container_id} does not exist on this node")


async def test_absent_container_ended_as_reported() -> None:
    runner = Runner()
    runner.ended.set()
    assert await end_of(runner, gone) == Exit(7, False, 3.0)


async def test_absent_container_without_an_exit_is_an_error() -> None:
    with pytest.raises(RuntimeFailure, match="does not exist"):
        await end_of(Runner(), gone)


async def test_the_exit_of_a_present_container_comes_from_the_runtime() -> None:
    async def there(_: str) -> Exit:
        return Exit(1, False, 2.0)

    assert await end_of(Runner(), there) == Exit(1, False, 2.0)
