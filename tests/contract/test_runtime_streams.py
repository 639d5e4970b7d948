# SPDX-License-Identifier: Apache-2.0
"""Programs' streams on this kernel: attached containers, terminals, and further programs."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from runtimehost import CrunWorld, UnifiedWorld, private, remove_leftovers

from orchestrator.agent.runtime.engine.conmon import find_monitor
from orchestrator.agent.runtime.engine.crun import CrunRuntime
from orchestrator.agent.runtime.interface import Container, RuntimeFailure
from orchestrator.agent.runtime.io import execs
from orchestrator.agent.runtime.io.attach import AttachedProgram, attach
from orchestrator.agent.runtime.io.execs import ExecProgram, ExecSpec, Program
from orchestrator.agent.runtime.resources.stats import StatsReader, node_memory
from orchestrator.model.specs import Resources

pytestmark = pytest.mark.root


@pytest.fixture
def world(tmp_path: Path) -> CrunWorld:
    remove_leftovers()
    return CrunWorld(tmp_path)


async def attached(
    runtime: CrunRuntime, container: Container, size: tuple[int, int] | None = None
) -> AttachedProgram:
    spec = container.spec.container
    return await attach(
        runtime.access(container.id),
        runtime.wait,
        asyncio.Event(),
        stdin=spec.open_stdin,
        tty=spec.tty,
        size=size,
    )


async def everything(program: Program) -> tuple[bytes, bytes]:
    """All that a program writes: stdout and stderr."""
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    while (output := await program.read()) is not None:
        stderr, data = output
        parts[stderr].append(data)
    return b"".join(parts[0]), b"".join(parts[1])


async def until(program: Program, text: bytes) -> bytes:
    """What a program writes up to this."""
    seen = b""
    while text not in seen:
        output = await program.read()
        assert output is not None, seen
        seen += output[1]
    return seen


async def finish(program: ExecProgram) -> tuple[bytes, bytes, int]:
    out, err = await everything(program)
    code = await program.wait()
    program.close()
    return out, err, code


@private
async def test_no_output_is_lost_between_create_and_start(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        for number in range(5):
            container = world.container(f"c{number}", "sh", "-c", "echo out; echo err >&2; exit 3")
            await runtime.create(container)
            program = await attached(runtime, container)
            second = await attached(runtime, container)
            await runtime.start(container.id)
            assert await everything(program) == (b"out\n", b"err\n")
            assert await everything(second) == (b"out\n", b"err\n")
            assert await program.wait() == 3
            program.close()
            second.close()


@pytest.mark.parametrize("busy", [True, False])
def test_attach_returns_once_the_monitor_has_accepted(
    world: CrunWorld, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    monkeypatch.setattr("orchestrator.agent.runtime.io.attach._ACCEPT_TIMEOUT", 60.0 * busy)

    @private
    async def test() -> None:
        async with world, world.runtime() as runtime:
            container = world.exits("c1", 0)
            await runtime.create(container)
            monitor = find_monitor(world.bundles / "c1", "c1")
            assert monitor is not None
            monitor.send(signal.SIGSTOP)
            attaching = asyncio.create_task(attached(runtime, container))
            done, _ = await asyncio.wait([attaching], timeout=0.2 if busy else None)
            assert bool(done) is not busy
            monitor.send(signal.SIGCONT)
            program = await attaching
            await runtime.start(container.id)
            assert await program.wait() == 0
            program.close()

    test()


@private
async def test_input_and_its_end(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        container = world.container("c1", "sh", "-c", "cat; echo end", open_stdin=True)
        await runtime.create(container)
        program = await attached(runtime, container)
        await runtime.start(container.id)
        data = os.urandom(1 << 20)

        async def feed() -> None:
            await program.write(data)
            await program.end_input()

        async with asyncio.TaskGroup() as group:
            group.create_task(feed())
            out, _ = await everything(program)
        assert out == data + b"end\n"
        assert await program.wait() == 0
        program.close()


@private
async def test_a_terminal_has_its_first_size_at_the_start(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        container = world.container("c1", "busybox", "stty", "size", tty=True)
        await runtime.create(container)
        program = await attached(runtime, container, size=(33, 99))
        await runtime.start(container.id)
        assert await everything(program) == (b"33 99\r\n", b"")
        program.close()


@private
async def test_a_terminal_outlives_its_clients(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        text = 'echo ready; while read line; do echo "<$line> $(busybox stty size)."; done; exit 7'
        container = world.container("c1", "sh", "-c", text, tty=True, open_stdin=True)
        await runtime.create(container)
        program = await attached(runtime, container)
        await runtime.start(container.id)
        await until(program, b"ready\r\n")
        program.resize(33, 99)
        # conmon takes sizes and keys from two places, so the size may come a little later.
        seen = b""
        while b"33 99" not in seen:
            await program.write(b"a\n")
            seen = await until(program, b".\r\n")
        program.close()
        again = await attached(runtime, container)
        await again.write(b"b\n")
        await until(again, b"<b> 33 99.\r\n")
        await again.end_input()
        await everything(again)
        assert await again.wait() == 7
        again.close()


@private
async def test_a_container_without_input_reads_nothing(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        container = world.container("c1", "cat")
        await runtime.create(container)
        program = await attached(runtime, container)
        await runtime.start(container.id)
        assert await everything(program) == (b"", b"")
        assert await program.wait() == 0
        program.close()
        ended = asyncio.Event()
        ended.set()
        access = runtime.access("c1")
        with pytest.raises(RuntimeFailure, match="has ended"):
            await attach(access, runtime.wait, ended, stdin=False, tty=False)


@private
async def test_a_signal_reaches_the_container(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        container = world.graceful("c1")
        await runtime.create(container)
        program = await attached(runtime, container)
        await runtime.start(container.id)
        await until(program, b"ready\n")
        await program.signal(15)
        assert await program.wait() == 143
        program.close()


@private
async def test_a_signal_before_the_start_is_kept_for_the_program(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        container = world.stubborn("c1")
        await runtime.create(container)
        program = await attached(runtime, container)
        async with asyncio.TaskGroup() as group:
            group.create_task(program.signal(9))
            await asyncio.sleep(0)
            await runtime.start(container.id)
        assert await program.wait() == 137
        program.close()


@pytest.mark.parametrize("kind", [CrunWorld, UnifiedWorld])
def test_exec_programs(kind: type[CrunWorld], tmp_path: Path) -> None:
    remove_leftovers()
    world = kind(tmp_path)

    @private
    async def test() -> None:
        async with world, world.runtime() as runtime:
            await runtime.create(world.graceful("c1"))
            access = runtime.access("c1")
            with pytest.raises(RuntimeFailure, match="is not running"):
                await execs.start(access, ExecSpec(("true",)))
            await runtime.start("c1")
            before = len(os.listdir("/proc/self/fd"))
            words = ExecSpec(("sh", "-c", "cat; echo err >&2; exit 5"), stdin=True)
            program = await execs.start(access, words)
            await program.write(b"in")
            await program.end_input()
            assert await finish(program) == (b"in", b"err\n", 5)

            who = ExecSpec(
                ("sh", "-c", "id -u; id -G; pwd; echo $HOME $A"), user="web", env=("A=b",)
            )
            out, _, _ = await finish(await execs.start(access, who))
            assert out.split() == b"1000 1001 44 / /srv b".split()

            write = "echo '#!/nope' > /tmp/script; echo echo > /tmp/plain; chmod +x /tmp/*"
            await finish(await execs.start(access, ExecSpec(("sh", "-c", write))))
            for command, code in (
                ("nope", 127),
                ("/etc/passwd", 126),
                ("/etc", 126),
                ("/tmp/script", 127),
                ("/tmp/plain", 126),
            ):
                with pytest.raises(RuntimeFailure) as failure:
                    await execs.start(access, ExecSpec((command,)))
                assert failure.value.exit_code == code
            with pytest.raises(RuntimeFailure, match="no user `nobody`") as failure:
                await execs.start(access, ExecSpec(("true",), user="nobody"))
            assert failure.value.exit_code == 126
            with pytest.raises(RuntimeFailure, match="no folder `/nowhere`"):
                await execs.start(access, ExecSpec(("true",), workdir="/nowhere"))

            # crun lets the program run and then sets the size, so there may be none at first.
            size = "until [ \"$(busybox stty size)\" = '20 70' ]; do sleep 0.01; done 2> /dev/null"
            command = ("sh", "-c", f"{size}; echo sized $TERM; read x; exit $x")
            shell = ExecSpec(command, tty=True, stdin=True, rows=20, columns=70)
            program = await execs.start(access, shell)
            await until(program, b"sized xterm\r\n")
            await program.write(b"9\n")
            _, _, code = await finish(program)
            assert code == 9

            # What a program leaves running does not keep its client.
            left = await execs.start(access, ExecSpec(("sh", "-c", "sleep 30 & echo gone")))
            assert await finish(left) == (b"gone\n", b"", 0)
            await execs.start_detached(
                access, ExecSpec(("sh", "-c", "echo $$ > /tmp/pid; sleep 30"))
            )
            assert len(os.listdir("/proc/self/fd")) == before
            assert len(access.pids()) >= 3

    test()


@pytest.mark.parametrize("kind", [CrunWorld, UnifiedWorld])
def test_resource_statistics(kind: type[CrunWorld], tmp_path: Path) -> None:
    remove_leftovers()
    world = kind(tmp_path)

    @private
    async def test() -> None:
        async with world, world.runtime() as runtime:
            limit = Resources(memory=64 << 20)
            text = "echo ready; while :; do :; done"
            container = world.container("c1", "sh", "-c", text, limit=limit, pids_limit=77)
            await runtime.create(container)
            await runtime.start("c1")
            await world.ready(runtime, "c1")
            access = runtime.access("c1")
            figures = StatsReader(access.cgroups, "c1").read(access.running().pid)
            assert figures.cpu > 0
            if kind is CrunWorld:
                assert 0 < figures.memory < figures.memory_limit == 64 << 20
                assert (figures.pids, figures.pids_limit) == (1, 77)
            assert node_memory() > 64 << 20

    test()
