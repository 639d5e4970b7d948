# SPDX-License-Identifier: Apache-2.0
"""What the agent relies on, of whatever runs its containers."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from runtimehost import CrunWorld, FakeWorld, UnifiedWorld, private, remove_leftovers

from orchestrator.agent.runtime.engine.crun import MONITOR_DIED
from orchestrator.agent.runtime.interface import Exit, RuntimeFailure, Started

World = CrunWorld | FakeWorld


KINDS: dict[str, type[World]] = {"fake": FakeWorld, "crun": CrunWorld, "cgroup2": UnifiedWorld}


@pytest.fixture(
    params=[
        "fake",
        pytest.param("crun", marks=pytest.mark.root),
        pytest.param("cgroup2", marks=pytest.mark.root),
    ]
)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    remove_leftovers()
    return KINDS[request.param](tmp_path)


@pytest.fixture(params=["fake", pytest.param("crun", marks=pytest.mark.root)])
def limited_world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """A node with every controller."""
    return KINDS[request.param](tmp_path)


@pytest.mark.parametrize("code", [0, 3])
@private
async def test_exit_status_of_a_process(world: World, code: int) -> None:
    async with world, world.runtime() as runtime:
        await runtime.create(world.exits("a", code))
        started = await runtime.start("a")
        ended = await runtime.wait("a")
        assert started.pid > 0
        assert (ended.code, ended.oom_killed, ended.message) == (code, False, "")
        assert abs(ended.finished_at - started.started_at) < 30
        assert await runtime.wait("a") == ended


@private
async def test_create_and_start_are_idempotent(world: World) -> None:
    async with world, world.runtime() as runtime:
        container = world.graceful("a")
        await runtime.create(container)
        await runtime.create(container)
        started = await runtime.start("a")
        assert await runtime.start("a") == started
        await runtime.create(container)
        assert await runtime.adopt("a") == started
        assert await runtime.list() == {"a"}


@private
async def test_a_signal_ends_a_container_that_does_not_ignore_it(world: World) -> None:
    async with world, world.runtime() as runtime:
        await runtime.create(world.graceful("a"))
        await runtime.start("a")
        await world.ready(runtime, "a")
        await runtime.kill("a", signal.SIGTERM)
        assert (await runtime.wait("a")).code == 143


@private
async def test_sigkill_ends_a_container_that_ignores_other_signals(world: World) -> None:
    async with world, world.runtime() as runtime:
        await runtime.create(world.stubborn("a"))
        await runtime.start("a")
        await world.ready(runtime, "a")
        await runtime.kill("a", signal.SIGTERM)
        assert isinstance(await runtime.adopt("a"), Started)
        await runtime.kill("a", signal.SIGKILL)
        assert (await runtime.wait("a")).code == 137
        await runtime.kill("a", signal.SIGKILL)


@private
async def test_an_oom_kill_is_reported(limited_world: World) -> None:
    async with limited_world as world, world.runtime() as runtime:
        await runtime.create(world.hungry("a"))
        await runtime.start("a")
        ended = await runtime.wait("a")
        assert ended.oom_killed
        assert ended.code == 137
        assert "memory" in ended.message


@private
async def test_a_restarted_agent_adopts_running_containers(world: World) -> None:
    async with world:
        async with world.runtime() as first:
            await first.create(world.graceful("a"))
            started = await first.start("a")
            await world.ready(first, "a")
        async with world.runtime() as second:
            assert await second.list() == {"a"}
            assert await second.adopt("a") == started
            await second.kill("a", signal.SIGTERM)
            assert (await second.wait("a")).code == 143


@private
async def test_an_exit_while_no_agent_ran_is_reported(world: World) -> None:
    async with world:
        async with world.runtime() as first:
            await first.create(world.exits("a", 5))
            await first.start("a")
        async with world.runtime() as second:
            ended = await second.wait("a")
            assert ended.code == 5
        async with world.runtime() as third:
            assert await third.adopt("a") == ended
            assert await third.wait("a") == ended


@private
async def test_unusable_containers_are_not_adopted(world: World) -> None:
    async with world:
        async with world.runtime() as first:
            assert await first.adopt("missing") is None
            await first.create(world.graceful("created"))
        async with world.runtime() as second:
            assert await second.adopt("created") is None
            assert await second.list() == {"created"}
            await second.remove("created")
            assert await second.list() == frozenset()


@private
async def test_remove_ends_a_running_container_and_is_idempotent(world: World) -> None:
    async with world, world.runtime() as runtime:
        await runtime.create(world.stubborn("a"))
        await runtime.start("a")
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(runtime.wait("a"))
            await asyncio.sleep(0)
            await runtime.remove("a")
        assert waiting.result().code == 137
        await runtime.remove("a")
        assert await runtime.list() == frozenset()
        assert await runtime.adopt("a") is None


@private
async def test_a_removed_id_can_be_reused(world: World) -> None:
    async with world, world.runtime() as runtime:
        for code in (1, 2):
            await runtime.create(world.exits("a", code))
            await runtime.start("a")
            assert (await runtime.wait("a")).code == code
            await runtime.remove("a")


@private
async def test_cancelling_one_waiter_does_not_affect_others(world: World) -> None:
    async with world, world.runtime() as runtime:
        await runtime.create(world.graceful("a"))
        await runtime.start("a")
        await world.ready(runtime, "a")
        async with asyncio.TaskGroup() as group:
            impatient = group.create_task(runtime.wait("a"))
            patient = group.create_task(runtime.wait("a"))
            await asyncio.sleep(0)
            impatient.cancel()
            await asyncio.sleep(0)
            await runtime.kill("a", signal.SIGTERM)
        assert impatient.cancelled()
        assert patient.result().code == 143


@private
async def test_a_container_ends_with_its_monitor(world: World) -> None:
    async with world, world.runtime() as runtime:
        await runtime.create(world.graceful("a"))
        await runtime.start("a")
        world.lose_monitor("a")
        ended = await runtime.wait("a")
        assert (ended.code, ended.message) == (-1, MONITOR_DIED)
        assert await runtime.adopt("a") == ended


@private
async def test_operations_on_missing_containers(world: World) -> None:
    async with world, world.runtime() as runtime:
        with pytest.raises(RuntimeFailure, match="missing"):
            await runtime.start("missing")
        with pytest.raises(RuntimeFailure, match="missing"):
            await runtime.wait("missing")
        await runtime.kill("missing", signal.SIGTERM)
        await runtime.kill("missing", signal.SIGKILL)
        await runtime.remove("missing")


@private
async def test_many_containers_concurrently(world: World) -> None:
    async def one(number: int) -> Exit:
        name = f"c{number}"
        await runtime.create(world.exits(name, number))
        await runtime.start(name)
        ended = await runtime.wait(name)
        await runtime.remove(name)
        return ended

    async with world, world.runtime() as runtime:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(number)) for number in range(12)]
        assert [task.result().code for task in tasks] == list(range(12))
        assert await runtime.list() == frozenset()


@private
async def test_release_keeps_the_files_for_another_run(world: World) -> None:
    async with world, world.runtime() as runtime:
        container = replace(world.graceful("a"), keep=True)
        pids = []
        for run in (1, 2, 3):
            await runtime.create(container)
            pids.append((await runtime.start("a")).pid)
            await world.ready(runtime, "a", times=run)
            await runtime.kill("a", signal.SIGTERM)
            assert (await runtime.wait("a")).code == 143
            await runtime.release("a")
            await runtime.release("a")
            assert await runtime.list() == {"a"}
            assert await runtime.adopt("a") is None
        assert len(set(pids)) == 3
        await runtime.remove("a")
        assert await runtime.list() == frozenset()


@private
async def test_a_paused_container_can_be_killed(limited_world: World) -> None:
    async with limited_world as world, world.runtime() as runtime:
        await runtime.create(world.graceful("a"))
        await runtime.start("a")
        await world.ready(runtime, "a")
        assert not await runtime.paused("a")
        await runtime.pause("a")
        assert await runtime.paused("a")
        async with world.runtime() as second:
            assert await second.paused("a")
        await runtime.resume("a")
        assert not await runtime.paused("a")
        await runtime.pause("a")
        await runtime.kill("a", signal.SIGKILL)
        assert (await runtime.wait("a")).code == 137
        await runtime.remove("a")
