# SPDX-License-Identifier: Apache-2.0
"""Lifecycle hooks in containers on this kernel."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest
from crunkit import cmdline
from runtimehost import CrunWorld, private, remove_leftovers

from orchestrator.agent.runtime.engine.crun import CrunRuntime
from orchestrator.agent.runtime.io import execs
from orchestrator.agent.runtime.io.execs import ExecSpec
from orchestrator.agent.tasks.backends import ContainerEnding
from orchestrator.agent.tasks.lifecycle_hooks import Hooks
from orchestrator.model.hooks import Hook

pytestmark = pytest.mark.root


@pytest.fixture
def world(tmp_path: Path) -> CrunWorld:
    remove_leftovers()
    return CrunWorld(tmp_path)


async def started(world: CrunWorld, runtime: CrunRuntime) -> None:
    await runtime.create(world.graceful("c1"))
    await runtime.start("c1")
    await world.ready(runtime, "c1")


def shell(line: str, **how: object) -> Hook:
    return Hook(("sh", "-c", line), **how)  # type: ignore[arg-type]


def file(runtime: CrunRuntime, name: str) -> Path:
    return runtime.access("c1").root() / "dev/shm" / name


def sleeps(runtime: CrunRuntime) -> bool:
    """Whether the hook's program runs in the container."""
    return any(b"sleep\x001000" in cmdline(pid) for pid in runtime.access("c1").pids())


async def runs(runtime: CrunRuntime) -> None:
    async with asyncio.timeout(60):
        while not sleeps(runtime):  # noqa: ASYNC110
            await asyncio.sleep(0)


@private
async def test_a_hook_runs_as_specified(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        await started(world, runtime)
        hooks = Hooks(runtime.access)
        how = {"user": "web", "workdir": "/etc", "env": ("A=b", "PATH=/bin")}
        capabilities = "grep CapBnd /proc/self/status > /dev/shm"
        said = f"echo $(id -u) $(pwd) $A > /dev/shm/said; {capabilities}/few"
        assert await hooks.run("c1", shell(said, **how)) == ""
        assert file(runtime, "said").read_text() == "1000 /etc b\n"
        assert await hooks.run("c1", shell(f"{capabilities}/all", privileged=True)) == ""
        assert file(runtime, "all").read_text() != file(runtime, "few").read_text()


@private
async def test_a_failure_has_the_exit_status_and_the_last_line(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        await started(world, runtime)
        hooks = Hooks(runtime.access)
        before = len(os.listdir("/proc/self/fd"))
        assert await hooks.run("c1", shell("exit 3")) == "exit status 3"
        both = "echo first; echo 'no  such table'; exit 4"
        assert await hooks.run("c1", shell(both)) == "exit status 4: no such table"
        errors = "echo trouble >&2; echo after; exit 5"
        assert await hooks.run("c1", shell(errors)) == "exit status 5: trouble"
        lots = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; exit 6"
        assert await hooks.run("c1", shell(lots)) == "exit status 6: line 19999"
        assert await hooks.run("c1", Hook(("nope",))) != ""
        assert "nobody" in await hooks.run("c1", Hook(("true",), user="nobody"))
        assert len(os.listdir("/proc/self/fd")) <= before
        assert not (runtime.access("c1").bundle.run / "hook").exists()


@private
async def test_a_cancelled_hook_is_killed(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        await started(world, runtime)
        for turn in range(10):
            hook = Hook(("sleep", "1000"))
            running = asyncio.create_task(Hooks(runtime.access).run("c1", hook))
            await runs(runtime)
            # At once, when the OCI runtime may not have reported the pid yet, or a little later.
            await asyncio.sleep(0.005 * (turn % 2))
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert not sleeps(runtime)


@private
async def test_a_hook_left_by_an_earlier_agent_is_killed_first(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        await started(world, runtime)
        access = runtime.access("c1")
        # As an agent leaves it that is killed: the program goes on, and its record is there.
        program = await execs.start(access, ExecSpec(("sleep", "1000")))
        identity = program.identity
        assert identity is not None
        record = access.bundle.run / "hook"
        record.write_text(json.dumps([identity.pid, identity.start]))
        assert await Hooks(runtime.access).run("c1", Hook(("true",))) == ""
        assert not identity.alive()
        assert await program.wait() == 128 + signal.SIGKILL
        program.close()
        # A process that has its number now is not it.
        record.write_text(json.dumps([access.running().pid, 1]))
        assert await Hooks(runtime.access).run("c1", Hook(("true",))) == ""
        assert access.running().alive()
        record.write_text("[1")
        assert await Hooks(runtime.access).run("c1", Hook(("true",))) == ""


@private
async def test_the_end_of_a_container_is_not_a_hooks_failure(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        for number in range(6):
            await started(world, runtime)
            hook = Hook(("sleep", "1000"))
            running = asyncio.create_task(Hooks(runtime.access).run("c1", hook))
            await runs(runtime)
            runtime.access("c1").running().send(signal.SIGTERM if number % 2 else signal.SIGKILL)
            with pytest.raises(ContainerEnding):
                await running
            await runtime.wait("c1")
            with pytest.raises(ContainerEnding):
                await Hooks(runtime.access).run("c1", hook)
            await runtime.remove("c1")
