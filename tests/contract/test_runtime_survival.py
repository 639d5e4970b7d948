# SPDX-License-Identifier: Apache-2.0
"""Monitors and agents that are killed: containers outlive the agent, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from crunkit import running
from runtimehost import CrunWorld, UnifiedWorld, private, remove_leftovers

from orchestrator.agent.runtime.engine.bundle import Bundle
from orchestrator.agent.runtime.engine.conmon import find_monitor
from orchestrator.agent.runtime.interface import Container, RuntimeFailure, Started
from orchestrator.agent.runtime.io import execs
from orchestrator.agent.runtime.io.execs import ExecSpec

pytestmark = pytest.mark.root


@pytest.fixture
def world(tmp_path: Path) -> CrunWorld:
    remove_leftovers()
    return CrunWorld(tmp_path)


@pytest.mark.parametrize("kind", [CrunWorld, UnifiedWorld])
@private
async def test_kill_ends_every_process(tmp_path: Path, kind: type[CrunWorld]) -> None:
    script = (
        "trap '' TERM INT HUP; "
        "for i in 1 2 3 4 5; do (trap '' TERM INT HUP; "
        "busybox setsid sh -c 'while :; do sleep 0.01; done') & done; "
        "echo ready; while :; do sleep 0.01; done"
    )
    async with kind(tmp_path) as world, world.runtime() as runtime:
        await running(runtime, world, world.container("a", "sh", "-c", script))
        assert len(world.cgroup_pids("a")) > 5
        await runtime.kill("a", signal.SIGKILL)
        assert (await runtime.wait("a")).code == 137
        # The PID namespace's first process is reaped after all others.
        assert world.cgroup_pids("a") == []


@private
async def test_the_process_is_killed_from_outside(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        pid = await running(runtime, world, world.graceful("a"))
        os.kill(pid, signal.SIGKILL)
        assert (await runtime.wait("a")).code == 137


@private
async def test_a_killed_oci_runtime_is_reported(world: CrunWorld) -> None:
    crun, dies = world.path / "crun", world.path / "dies"
    crun.parent.mkdir(exist_ok=True)
    crun.write_text(
        f'#!/bin/sh\n[ ! -e {dies} ] || case " $* " in\n'
        '*" create "* | *" exec "*) kill -9 $$ ;;\nesac\nexec /usr/bin/crun "$@"\n'
    )
    crun.chmod(0o755)
    words = "the OCI runtime ended without an error message; was it killed\\?"
    async with world, world.runtime(runtime=str(crun)) as runtime:
        await running(runtime, world, world.graceful("a"))
        dies.touch()
        with pytest.raises(RuntimeFailure, match=words):
            await runtime.create(world.graceful("b"))
        with pytest.raises(RuntimeFailure, match=words):
            await execs.start(runtime.access("a"), ExecSpec(("true",)))
        dies.unlink()
        await running(runtime, world, world.graceful("b"))


@private
async def test_all_processes_end_with_the_monitor(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        pid = await running(runtime, world, world.stubborn("a"))
        pidfd = os.pidfd_open(pid)
        world.lose_monitor("a")
        await runtime.wait("a")
        poll = await asyncio.to_thread(_ended, pidfd)
        os.close(pidfd)
        assert poll


def _ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 10)[0])


@private
async def test_a_monitor_that_died_while_no_agent_ran(world: CrunWorld) -> None:
    async with world:
        async with world.runtime() as first:
            await running(first, world, world.stubborn("a"))
        world.lose_monitor("a")
        async with world.runtime() as second:
            ended = await second.wait("a")
            assert ended.code == -1
            await second.remove("a")
            assert await second.list() == frozenset()


@private
async def test_nothing_of_an_earlier_boot_is_adopted(
    world: CrunWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world:
        async with world.runtime() as first:
            await running(first, world, world.graceful("a"))
        with monkeypatch.context() as later:
            later.setattr("orchestrator.agent.runtime.engine.crun.boot_id", lambda: "another boot")
            async with world.runtime() as second:
                assert await second.adopt("a") is None


class Killed(BaseException):
    """The agent ends here, with nothing tidied up."""


async def whole_life(world: CrunWorld, container: Container) -> None:
    async with world.runtime() as runtime:
        await runtime.create(container)
        await runtime.start(container.id)
        await runtime.remove(container.id)


@pytest.mark.parametrize(
    "step", ["ensure", "write_texts", "write_identity", "write_started", "discard"]
)
@private
async def test_an_agent_killed_at_any_step_leaves_a_recoverable_state(
    world: CrunWorld, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Killed

    container = world.graceful("a")
    async with world:
        with monkeypatch.context() as death:
            death.setattr(Bundle, step, die)
            with pytest.raises((Killed, BaseExceptionGroup)):
                await whole_life(world, container)
        async with world.runtime() as later:
            found = await later.adopt("a")
            if step == "write_started":
                # The program runs, so it is kept, although no record says so.
                assert isinstance(found, Started)
            elif step == "discard":
                assert found is not None
            else:
                assert found is None
            await later.remove("a")
            assert await later.list() == frozenset()
            await later.create(container)
            await later.start("a")
            assert isinstance(await later.adopt("a"), Started)


@private
async def test_create_recovers_a_partially_created_container(
    world: CrunWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Killed

    async with world:
        with monkeypatch.context() as death:
            death.setattr(Bundle, "write_identity", die)
            with pytest.raises((Killed, BaseExceptionGroup)):
                async with world.runtime() as first:
                    await first.create(world.graceful("a"))
        async with world.runtime() as second:
            await running(second, world, world.graceful("a"))


@private
async def test_a_cancelled_create_can_be_removed(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        async with asyncio.TaskGroup() as group:
            creating = group.create_task(runtime.create(world.graceful("a")))
            await asyncio.sleep(0)
            creating.cancel()
        assert creating.cancelled()
        await runtime.remove("a")
        assert await runtime.list() == frozenset()


AGENT = """
import asyncio, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from runtimehost import CrunWorld
from orchestrator.agent.runtime.engine.conmon import find_monitor
from orchestrator.agent.runtime.isolation.mountns import enter_private_mounts

path, parent, step = Path(sys.argv[2]), sys.argv[3], sys.argv[4]
monitor = find_monitor(path / "run/containers/a", "a")
enter_private_mounts(monitor.pid if monitor else None)

async def main():
    world = CrunWorld(path / step)
    world.path, world.parent = path, parent
    async with world.runtime() as runtime:
        if step == "first":
            await runtime.create(world.graceful("a"))
            await runtime.start("a")
            await world.ready(runtime, "a")
            print(await runtime.adopt("a"), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        print(await runtime.adopt("a"), flush=True)
        assert (path / "run/containers/a/rootfs/bin/busybox").exists(), "the root is not mounted"
        await runtime.kill("a", signal.SIGTERM)
        print((await runtime.wait("a")).code, flush=True)
        await runtime.purge()
        print(await runtime.list(), flush=True)

asyncio.run(main())
"""


def test_containers_outlive_a_killed_agent(world: CrunWorld) -> None:
    """Two agents in processes of their own: the second joins the first one's mounts."""

    def agent(step: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                sys.executable,
                "-c",
                AGENT,
                str(Path(__file__).parent),
                str(world.path),
                world.parent,
                step,
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )

    first = agent("first")
    assert first.returncode == -signal.SIGKILL, first.stderr
    assert find_monitor(world.bundles / "a", "a") is not None
    second = agent("second")
    assert second.returncode == 0, second.stderr
    assert second.stdout.splitlines() == [first.stdout.strip(), "143", "frozenset()"]


@pytest.mark.parametrize("delay", [0.0, 0.2, 60.0])
def test_an_agent_killed_while_a_monitor_starts_leaves_none(world: CrunWorld, delay: float) -> None:
    slow = world.path / "slow"
    slow.write_text(f'#!/bin/sh\nsleep {delay}\nexec conmon "$@"\n')
    slow.chmod(0o755)
    program = [sys.executable, "-c", STARTING, str(Path(__file__).parent), str(world.path)]
    with subprocess.Popen([*program, world.parent, str(slow)]) as first:
        while not cids("a", world.bundles):
            assert first.poll() is None
            time.sleep(0.001)
        first.kill()

    @private
    async def test() -> None:
        async with world, world.runtime() as runtime:
            await runtime.adopt("a")
            await runtime.remove("a")
            assert cids("a", world.bundles) == []
            assert await runtime.list() == frozenset()
            assert world.cgroup_pids("a") == []

    test()


STARTING = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from runtimehost import CrunWorld
from orchestrator.agent.runtime.isolation.mountns import enter_private_mounts

path, parent, monitor = Path(sys.argv[2]), sys.argv[3], sys.argv[4]
enter_private_mounts(None)

async def main():
    world = CrunWorld(path / "starting")
    world.path, world.parent = path, parent
    async with world.runtime(monitor=monitor) as runtime:
        await runtime.create(world.graceful("a"))
        await asyncio.sleep(60)

asyncio.run(main())
"""


def cids(container_id: str, bundles: Path) -> list[str]:
    """The processes of a container's monitor and of what it makes the container with."""
    words = f"{bundles}/{container_id}".encode()
    found = []
    for entry in os.scandir("/proc"):
        with suppress(OSError):
            if entry.name.isdecimal() and words in Path(entry.path, "cmdline").read_bytes():
                found.append(entry.name)
    return found
