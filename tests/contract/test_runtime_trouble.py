# SPDX-License-Identifier: Apache-2.0
"""crun's runtime where the host fails it: file systems that hang, no file descriptors left."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from crunkit import cmdline, running
from runtimehost import CrunWorld, private, remove_leftovers

from orchestrator.agent.runtime.engine.crun import CrunRuntime
from orchestrator.agent.runtime.interface import Exit
from orchestrator.agent.tasks.probes import Probes
from orchestrator.linux import spawn
from orchestrator.linux.libc import mount
from orchestrator.linux.mounts import unmount
from orchestrator.linux.processes import identify
from orchestrator.model.specs import HealthCheck
from tests.deadfuse import DeadFileSystem, FrozenServer

pytestmark = pytest.mark.root


@pytest.fixture
def world(tmp_path: Path) -> CrunWorld:
    remove_leftovers()
    return CrunWorld(tmp_path)


def threads(name: str) -> int:
    return sum(thread.name.startswith(name) for thread in threading.enumerate())


async def no_threads(name: str) -> None:
    """Until a thread that has given its result has ended, too."""
    async with asyncio.timeout(30):
        while threads(name):  # noqa: ASYNC110 - the kernel ends them
            await asyncio.sleep(0.01)


@private
async def test_a_hanging_removal_uses_one_thread_and_delays_no_other(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        for container_id in ("hangs", "other"):
            await running(runtime, world, world.graceful(container_id))
        folder = world.path / "state" / "hangs" / "dead"
        folder.mkdir()
        dead = DeadFileSystem(folder)
        try:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await runtime.remove("hangs")
            assert threads("remove hangs") == 1
            await runtime.remove("other")
            # Who waits when it has ended has its outcome; the next attempt is a new one.
            waiting = asyncio.gather(
                *(runtime.remove("hangs") for _ in range(2)), return_exceptions=True
            )
            await asyncio.sleep(0)
            dead.close()
            assert all(isinstance(outcome, OSError) for outcome in await waiting)
        finally:
            dead.unmount()
        await runtime.remove("hangs")
        assert await runtime.list() == frozenset()
        await no_threads("remove")


@private
async def test_a_removal_continues_without_a_waiter(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        await running(runtime, world, world.graceful("c"))
        impatient = asyncio.ensure_future(runtime.remove("c"))
        await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.wait({impatient})
        await runtime.remove("c")
        assert await runtime.list() == frozenset()


@private
async def test_files_kept_by_a_running_removal_can_be_removed_after_it(
    world: CrunWorld,
) -> None:
    async with world, world.runtime() as runtime:
        await running(runtime, world, world.graceful("c"))
        await asyncio.gather(runtime.release("c"), runtime.remove("c"))
        assert await runtime.list() == frozenset()


MOUNT_INSIDE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
pid, fuse = map(int, sys.argv[1:])
namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
assert libc.setns(namespace, 0) == 0, os.strerror(ctypes.get_errno())
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
assert libc.mount(b"fuse", b"/tmp", b"fuse.dead", 0, options) == 0, os.strerror(ctypes.get_errno())
"""


@contextmanager
def dead_inside(pid: int) -> Iterator[None]:
    """In the container of `pid`, a file system at /tmp that does not answer."""
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        argv = [sys.executable, "-c", MOUNT_INSIDE, str(pid), str(fuse)]
        subprocess.run(argv, pass_fds=(fuse,), check=True)
        yield
    finally:
        os.close(fuse)


@private
async def test_probes_on_a_dead_mount_use_one_thread(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        pid = await running(runtime, world, world.graceful("c"))
        await running(runtime, world, world.graceful("other"))
        probes = Probes(runtime.access)
        dead = HealthCheck(test=("CMD", "/tmp/check"), timeout=0.1)
        with dead_inside(pid):
            for _ in range(5):
                answer = await probes.probe("c", dead, {})
                assert (answer.passed, answer.output) == (False, "no answer within 0.1 s")
            assert threads("look into c") == 1
            well = HealthCheck(test=("CMD", "true"), timeout=30)
            assert (await probes.probe("other", well, {})).passed
        answer = await probes.probe("c", HealthCheck(test=("CMD", "true"), timeout=30), {})
        assert answer.passed
        await no_threads("look into")


@contextmanager
def frozen_inside(pid: int) -> Iterator[None]:
    """In the container of `pid`, a file system at /tmp whose server hangs."""
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    argv = [sys.executable, "-c", MOUNT_INSIDE, str(pid), str(fuse)]
    subprocess.run(argv, pass_fds=(fuse,), check=True)
    server = FrozenServer(fuse)
    try:
        yield
    finally:
        server.close()


@private
async def test_unkillable_probes_use_one_process(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        pid = await running(runtime, world, world.graceful("c"))
        probes = Probes(runtime.access)
        hangs = HealthCheck(test=("CMD", "cat", "/tmp/x"), timeout=0.5)
        with frozen_inside(pid):
            answer = await probes.probe("c", hangs, {})
            assert (answer.passed, answer.output) == (False, "no answer within 0.5 s")
            patient = replace(hangs, timeout=30)
            for _ in range(5):
                answer = await probes.probe("c", patient, {})
                assert not answer.passed
                assert answer.output.startswith("an earlier probe hangs in the kernel (process ")
            stuck = [pid for pid in world.cgroup_pids("c") if b"/tmp/x" in cmdline(pid)]
            assert len(stuck) == 1
        async with asyncio.timeout(30):
            while identify(stuck[0]) is not None:  # noqa: ASYNC110 - the kernel ends it
                await asyncio.sleep(0.01)
        well = HealthCheck(test=("CMD", "true"), timeout=30)
        assert (await probes.probe("c", well, {})).passed


@private
async def test_an_unkillable_command_does_not_block_the_agent(world: CrunWorld) -> None:
    """A look at a path of the node whose file server hangs."""
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    folder = world.path / "frozen"
    folder.mkdir()
    mount("fuse", folder, "fuse.dead", 0, f"fd={fuse},rootmode=40000,user_id=0,group_id=0")
    server = FrozenServer(fuse)
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await spawn.run(["test", "-e", f"{folder}/x"])
        assert await spawn.run(["true"]) == (0, "")
    finally:
        server.close()
        unmount(folder)


@contextmanager
def no_descriptors() -> Iterator[None]:
    """No file can be opened in this process: EMFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(int(name) for name in os.listdir("/proc/self/fd"))
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (most + 1, hard))
    try:
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


async def test_no_probe_fails_for_lack_of_descriptors(world: CrunWorld) -> None:
    probes = Probes(world.runtime().access)
    check = HealthCheck(test=("TCP", "1"), timeout=30)
    assert not (await probes.probe("c", check, {})).passed
    with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
        await probes.probe("c", check, {})


async def _ends(runtime: CrunRuntime, container_id: str) -> Exit:
    async with asyncio.timeout(30):
        return await runtime.wait(container_id)


@private
async def test_no_container_is_reported_ended_for_lack_of_descriptors(world: CrunWorld) -> None:
    async with world:
        async with world.runtime() as runtime:
            pid = await running(runtime, world, world.graceful("c"))
        async with world.runtime() as runtime:
            with no_descriptors():
                for call in (runtime.adopt, runtime.wait):
                    with pytest.raises(OSError, match="Too many open files"):
                        await call("c")
            assert cmdline(pid)
            adopted = await runtime.adopt("c")
            assert not isinstance(adopted, Exit)
            assert adopted is not None
            assert adopted.pid == pid
            # It ends while nobody can find out how: that is no reason to make something up.
            waiting = asyncio.ensure_future(runtime.wait("c"))
            await asyncio.sleep(0)
            with no_descriptors():
                os.kill(pid, signal.SIGKILL)
                with pytest.raises(OSError, match="Too many open files"):
                    await waiting
            assert (await _ends(runtime, "c")).code == 137
