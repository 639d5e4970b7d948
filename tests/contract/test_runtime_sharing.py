# SPDX-License-Identifier: Apache-2.0
"""Containers that share namespaces of another one, on this kernel."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from runtimehost import GRACEFUL, CrunWorld, private, remove_leftovers

from orchestrator.agent.runtime.engine.crun import CrunRuntime
from orchestrator.agent.runtime.interface import Container, RuntimeFailure, Started
from orchestrator.agent.runtime.io import execs, logfiles
from orchestrator.agent.runtime.io.execs import ExecSpec

pytestmark = pytest.mark.root


@pytest.fixture
def world(tmp_path: Path) -> CrunWorld:
    remove_leftovers()
    return CrunWorld(tmp_path)


def box(world: CrunWorld, id: str, script: str, beside: str = "", **changes: object) -> Container:
    pid = f"container:{beside}" if beside else ""
    netns = None if "userns" in changes else world.path / "run/netns" / id
    made = world.container(id, "sh", "-c", script, pid=pid, netns=netns, **changes)
    return replace(made, beside=beside)


async def start(runtime: CrunRuntime, container: Container) -> Started:
    await runtime.reserve(container.id, container.spec, container.beside)
    await runtime.create(container)
    return await runtime.start(container.id)


def namespace(started: Started, kind: str) -> str:
    return os.readlink(f"/proc/{started.pid}/ns/{kind}")


LOOK = "tr '\\0' ' ' < /proc/1/cmdline; echo; kill -0 1 && echo may; id -u; touch /mine; echo ready"


@private
async def test_a_shared_pid_namespace_shows_and_signals_processes(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        first = await start(runtime, box(world, "a", GRACEFUL))
        script = f"{LOOK}; {GRACEFUL}"
        second = await start(runtime, box(world, "b", script, "a"))
        await world.ready(runtime, "b")
        lines = [
            r.line.decode() async for some in logfiles.read(runtime.log_path("b")) for r in some
        ]
        assert lines[0].startswith("sh -c trap")
        assert {"may", "0"} <= {*lines}
        for kind in ("pid", "user"):
            assert namespace(first, kind) == namespace(second, kind)
        for kind in ("net", "ipc", "mnt", "uts"):
            assert namespace(first, kind) != namespace(second, kind)
        assert runtime.users("a") == runtime.users("b") != range(0)
        program = await execs.start(runtime.access("b"), ExecSpec(("sh", "-c", "kill -TERM 1")))
        await program.drain()
        program.close()
        assert (await runtime.wait("a")).code == 143
        # The kernel ends a PID namespace with its first process.
        assert (await runtime.wait("b")).code == 128 + signal.SIGKILL
        await runtime.remove("a")
        assert runtime.users("b") != range(0), "as long as it has files of theirs"
        await runtime.remove("b")
        assert runtime.users("b") == range(0)


@private
async def test_a_container_may_end_before_the_one_it_shares_with(
    world: CrunWorld,
) -> None:
    async with world, world.runtime() as runtime:
        await start(runtime, box(world, "a", GRACEFUL))
        await start(runtime, box(world, "b", f"sleep 1000 & {GRACEFUL}", "a"))
        await world.ready(runtime, "b")
        await runtime.kill("b", signal.SIGTERM)
        assert (await runtime.wait("b")).code == 143
        await runtime.remove("b")
        assert world.cgroup_pids("b") == []
        assert isinstance(await runtime.adopt("a"), Started)
        async with world.runtime() as later:
            assert later.users("a") != range(0)
            assert later.users("b") == range(0)


@private
async def test_errors_when_namespaces_cannot_be_shared(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        await start(runtime, box(world, "host", GRACEFUL, userns="host"))
        with pytest.raises(RuntimeFailure, match="run this one with --userns host as well"):
            await start(runtime, box(world, "b", GRACEFUL, "host"))
        await start(runtime, box(world, "c", GRACEFUL, "host", userns="host"))
        await world.ready(runtime, "c")
        await start(runtime, box(world, "a", GRACEFUL))
        other = box(world, "b", GRACEFUL, "a")
        await runtime.reserve("b", other.spec, "a")
        await runtime.kill("a", signal.SIGKILL)
        await runtime.wait("a")
        with pytest.raises(RuntimeFailure, match="is not running any more"):
            await runtime.create(other)


@private
async def test_a_shared_ipc_namespace_shares_memory_and_queues(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        first = await start(runtime, box(world, "a", f"echo old > /dev/shm/a; {GRACEFUL}"))
        await world.ready(runtime, "a")
        script = f"cat /dev/shm/a; echo new > /dev/shm/b; echo ready; {GRACEFUL}"
        made = world.container(
            *("b", "sh", "-c", script), ipc="container:a", netns=world.path / "run/netns/b"
        )
        second = await start(runtime, replace(made, beside="a"))
        await world.ready(runtime, "b")
        lines = [r.line async for some in logfiles.read(runtime.log_path("b")) for r in some]
        assert lines[0] == b"old"
        root = runtime.access("a").root()
        assert (root / "dev/shm/b").read_text() == "new\n"
        assert namespace(first, "ipc") == namespace(second, "ipc")
        assert namespace(first, "pid") != namespace(second, "pid")
        assert not os.path.ismount(world.bundles / "b/shm")  # noqa: ASYNC240
        # It outlives the other, and its memory with it.
        await runtime.kill("a", signal.SIGKILL)
        await runtime.wait("a")
        await runtime.remove("a")
        assert (runtime.access("b").root() / "dev/shm/a").read_text() == "old\n"
