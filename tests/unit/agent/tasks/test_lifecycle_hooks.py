# SPDX-License-Identifier: Apache-2.0
"""When a task's lifecycle hooks run, what their failure does to it, and what an agent's end does to
them."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
from agentfakes import Host, assigned, until
from test_worker import Agent, agent

from orchestrator.agent.runtime.interface import Exit
from orchestrator.model.specs import ContainerSpec, Hook, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.pb import dispatch_pb2, types_pb2

MIGRATE, WARM = Hook(("migrate",)), Hook(("warm", "up"))
DRAIN, LEAVE = Hook(("drain",)), Hook(("leave",))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def hooked(
    desired: TaskState = TaskState.RUNNING, grace: float = 10.0, **hooks: tuple[Hook, ...]
) -> dispatch_pb2.AssignedTask:
    container = ContainerSpec(image="hello:1", stop_signal="SIGTERM", stop_grace=grace, **hooks)
    return assigned(desired=desired, spec=TaskSpec(container))


async def runs(host: Host, hook: str, times: int = 1) -> None:
    await until(lambda: host.hooks.ran.count(hook) == times)


def messages(a: Agent) -> list[str]:
    return list(dict.fromkeys(s.message for s in a.reports.seen["t1"]))


async def test_a_task_is_running_when_its_hooks_have_succeeded(host: Host) -> None:
    held = host.hooks.hold["warm up"] = asyncio.Event()
    async with agent(host) as a:
        a.full(hooked(post_start=(MIGRATE, WARM)))
        await runs(host, "warm up")
        last = a.reports.last()
        assert last.state is TaskState.STARTING
        assert last.message == "runs post_start hook 2 of 2 (warm up)"
        assert host.runtime.running, "hooks run in a container that runs"
        held.set()
        await a.reaches(TaskState.RUNNING)
        assert host.hooks.ended == ["migrate", "warm up"]
        assert a.reports.last().message == ""


async def test_a_failed_post_start_hook_fails_the_task_and_names_it(host: Host) -> None:
    host.hooks.failures["migrate"] = "exit status 3: no such table"
    async with agent(host) as a:
        a.full(hooked(post_start=(MIGRATE, WARM), pre_stop=(DRAIN,)))
        await a.reaches(TaskState.FAILED)
        assert a.reports.last().message == (
            "post_start hook 1 of 2 (migrate) failed: exit status 3: no such table"
        )
        assert TaskState.RUNNING not in [s.state for s in a.reports.seen["t1"]]
    assert host.hooks.ran == ["migrate"], "neither the next one nor pre_stop"
    assert host.runtime.signals == [("t1", signal.SIGTERM)]
    assert not host.runtime.made


@pytest.mark.parametrize("killed", [False, True])
async def test_a_program_that_ends_during_its_hook_keeps_its_exit_status(
    host: Host, killed: bool
) -> None:
    host.hooks.hold["migrate"] = asyncio.Event()
    if killed:
        host.hooks.ending.add("migrate")
    async with agent(host) as a:
        a.full(hooked(post_start=(MIGRATE,)))
        await runs(host, "migrate")
        if killed:
            host.hooks.hold["migrate"].set()
        await host.runtime.end("t1", Exit(0, False, 7.0))
        await a.reaches(TaskState.COMPLETE)
        assert a.reports.last().message == ""


async def test_a_stop_does_not_wait_for_post_start_hooks(host: Host) -> None:
    host.hooks.hold["migrate"] = asyncio.Event()
    order = {"post_start": (MIGRATE,), "pre_stop": (DRAIN,)}
    async with agent(host) as a:
        a.full(hooked(**order))
        await runs(host, "migrate")
        a.diff(hooked(TaskState.SHUTDOWN, **order))
        await a.reaches(TaskState.SHUTDOWN)
    assert host.hooks.ended == ["migrate!"]
    assert host.hooks.ran == ["migrate"], "what did not come to run has nothing to drain"


async def test_other_orders_do_not_interrupt_a_hook(host: Host) -> None:
    held = host.hooks.hold["migrate"] = asyncio.Event()
    async with agent(host) as a:
        a.full(hooked(post_start=(MIGRATE,)))
        await runs(host, "migrate")
        a.diff(hooked(grace=9.0, post_start=(MIGRATE,)))
        held.set()
        await a.reaches(TaskState.RUNNING)
    assert host.hooks.ended == ["migrate"]


async def test_pre_stop_hooks_run_before_the_stop_signal(host: Host) -> None:
    held = host.hooks.hold["leave"] = asyncio.Event()
    order = {"post_start": (MIGRATE,), "pre_stop": (DRAIN, LEAVE)}
    async with agent(host) as a:
        a.full(hooked(**order))
        await a.reaches(TaskState.RUNNING)
        a.diff(hooked(TaskState.SHUTDOWN, **order))
        await runs(host, "leave")
        assert host.runtime.signals == []
        assert a.reports.last().message == "runs pre_stop hook 2 of 2 (leave)"
        held.set()
        await a.reaches(TaskState.SHUTDOWN)
        assert a.reports.last().message == ""
    assert host.hooks.ended == ["migrate", "drain", "leave"]
    assert host.runtime.signals == [("t1", signal.SIGTERM)]


async def test_a_failed_pre_stop_hook_is_reported_and_the_stop_continues(host: Host) -> None:
    host.hooks.failures["drain"] = "exit status 1: busy"
    async with agent(host) as a:
        a.full(hooked(pre_stop=(DRAIN, LEAVE)))
        await a.reaches(TaskState.RUNNING)
        a.diff(hooked(TaskState.SHUTDOWN, pre_stop=(DRAIN, LEAVE)))
        await a.reaches(TaskState.SHUTDOWN)
        assert a.reports.last().message == (
            "pre_stop hook 1 of 2 (drain) failed: exit status 1: busy"
        )
    assert host.hooks.ran == ["drain"]
    assert host.runtime.signals == [("t1", signal.SIGTERM)]


async def test_a_hook_has_the_grace_period_and_no_more(host: Host) -> None:
    host.hooks.hold["drain"] = asyncio.Event()
    async with agent(host) as a:
        a.full(hooked(grace=0.05, pre_stop=(DRAIN,)))
        await a.reaches(TaskState.RUNNING)
        a.diff(hooked(TaskState.SHUTDOWN, grace=0.05, pre_stop=(DRAIN,)))
        await a.reaches(TaskState.SHUTDOWN)
        assert "not done within the grace period" in a.reports.last().message
    assert host.hooks.ended == ["drain!"]
    assert host.runtime.signals == [("t1", signal.SIGTERM)]


async def test_another_order_can_cut_the_grace_period_of_a_hook_short(host: Host) -> None:
    host.hooks.hold["drain"] = asyncio.Event()
    async with agent(host) as a:
        a.full(hooked(grace=3600.0, pre_stop=(DRAIN,)))
        await a.reaches(TaskState.RUNNING)
        a.diff(hooked(TaskState.SHUTDOWN, grace=3600.0, pre_stop=(DRAIN,)))
        await runs(host, "drain")
        at_once = hooked(TaskState.SHUTDOWN, grace=3600.0, pre_stop=(DRAIN,))
        at_once.task.stop_grace = -1.0
        a.diff(at_once)
        await a.reaches(TaskState.SHUTDOWN)
    assert host.hooks.ended == ["drain!"]


async def test_a_stop_without_a_grace_period_runs_no_hooks(host: Host) -> None:
    async with agent(host) as a:
        a.full(hooked(pre_stop=(DRAIN,)))
        await a.reaches(TaskState.RUNNING)
        at_once = hooked(TaskState.SHUTDOWN, pre_stop=(DRAIN,))
        at_once.task.stop_grace = -1.0
        a.diff(at_once)
        await a.reaches(TaskState.SHUTDOWN)
    assert host.hooks.ran == []


async def test_a_container_that_exits_runs_no_pre_stop_hook(host: Host) -> None:
    async with agent(host) as a:
        a.full(hooked(pre_stop=(DRAIN,)))
        await a.reaches(TaskState.RUNNING)
        await host.runtime.end("t1", Exit(3, False, 7.0))
        await a.reaches(TaskState.FAILED)
        assert a.reports.last().message == "exit status 3"
    assert host.hooks.ran == []


async def test_a_hook_may_end_the_program_itself(host: Host) -> None:
    host.hooks.hold["drain"] = asyncio.Event()
    async with agent(host) as a:
        a.full(hooked(pre_stop=(DRAIN,)))
        await a.reaches(TaskState.RUNNING)
        a.diff(hooked(TaskState.SHUTDOWN, pre_stop=(DRAIN,)))
        await runs(host, "drain")
        await host.runtime.end("t1", Exit(0, False, 7.0))
        await a.reaches(TaskState.SHUTDOWN)
        assert a.reports.last().message == ""
        assert a.reports.last().exit_code == 0
    assert host.runtime.signals == []


async def test_hooks_that_succeeded_are_not_run_by_the_next_agent(host: Host) -> None:
    host.hooks.hold["warm up"] = asyncio.Event()
    async with agent(host) as a:
        a.full(hooked(post_start=(MIGRATE, WARM)))
        await runs(host, "warm up")
    assert host.hooks.ended == ["migrate", "warm up!"]
    host.hooks.hold.clear()
    async with agent(host) as a:
        await a.reaches(TaskState.RUNNING)
    assert host.hooks.ran == ["migrate", "warm up", "warm up"]
    async with agent(host) as a:
        await a.reaches(TaskState.RUNNING)
    assert len(host.hooks.ran) == 3


async def test_an_interrupted_stop_is_resumed_by_the_next_agent(host: Host) -> None:
    host.hooks.hold["leave"] = asyncio.Event()
    async with agent(host) as a:
        a.full(hooked(pre_stop=(DRAIN, LEAVE)))
        await a.reaches(TaskState.RUNNING)
        a.diff(hooked(TaskState.SHUTDOWN, pre_stop=(DRAIN, LEAVE)))
        await runs(host, "leave")
    host.hooks.hold.clear()
    async with agent(host) as a:
        await a.reaches(TaskState.SHUTDOWN)
    assert host.hooks.ran == ["drain", "leave", "leave"]


async def test_hooks_run_again_after_a_reboot(host: Host) -> None:
    async with agent(host) as a:
        a.full(hooked(post_start=(MIGRATE,)))
        await a.reaches(TaskState.RUNNING)
    host.reboot()
    async with agent(host) as a:
        await runs(host, "migrate", times=2)
        await until(lambda: a.reports.last().message == "started again after a reboot of the node")


async def test_each_run_of_a_container_has_its_hooks(host: Host) -> None:
    order = hooked(post_start=(MIGRATE,), pre_stop=(DRAIN,))
    order.task.service_id, order.task.container_name = "", "box"
    order.task.run = order.task.status.run = 1
    order.task.status.state = types_pb2.TASK_ASSIGNED
    async with agent(host) as a:
        a.full(order)
        await a.reaches(TaskState.RUNNING)
        order.task.run = order.task.status.run = 2
        a.diff(order)
        await until(lambda: a.reports.last().run == 2)
        await a.reaches(TaskState.RUNNING)
    assert host.hooks.ran == ["migrate", "drain", "migrate"]
