# SPDX-License-Identifier: Apache-2.0
"""What crun and conmon do on this kernel: every promise is read back from /proc and the cgroups."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from crunkit import cmdline, limits, running
from runtimehost import CrunWorld, private, remove_leftovers

from orchestrator.agent.runtime.engine.conmon import find_monitor
from orchestrator.agent.runtime.engine.crun import CrunRuntime
from orchestrator.agent.runtime.interface import Mount, RuntimeFailure
from orchestrator.agent.runtime.io import logfiles
from orchestrator.agent.runtime.io.logfiles import LogLimits
from orchestrator.agent.runtime.isolation.mountns import enter_private_mounts
from orchestrator.agent.runtime.resources.cgroups import CgroupMode, detect
from orchestrator.model.specs import LogConfig, Resources, TaskSpec
from orchestrator.model.states import NOT_RUNNABLE

pytestmark = pytest.mark.root


@pytest.fixture
def world(tmp_path: Path) -> CrunWorld:
    remove_leftovers()
    return CrunWorld(tmp_path)


def proportional_memory(pid: int) -> int:
    """Bytes of memory of a process, shared pages counted in part."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def network_namespace(pid: int | str) -> int:
    return os.stat(f"/proc/{pid}/ns/net").st_ino


@pytest.fixture
def other_netns() -> Iterator[Path]:
    """A network namespace that is not the host's."""
    holder = subprocess.Popen(
        ["unshare", "-n", "sh", "-c", "echo made; exec sleep 60"], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        yield Path(f"/proc/{holder.pid}/ns/net")
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("nope", "the image has no program `nope`"),
        ("/bin/nope", "the image has no program `/bin/nope`"),
        ("/etc/passwd", "`/etc/passwd` in the image is not executable"),
        ("/bin", "`/bin` in the image is not a program"),
        ("/foreign", "the image is for another architecture"),
        ("/plain", "`/plain` is not a program for this node"),
        ("/empty", "`/empty` is not a program for this node"),
        ("/script", "needs an interpreter or loader that the image does not have: `/no/such`"),
        ("/linked", "needs an interpreter or loader that the image does not have: `/no/ld.so`"),
    ],
)
@private
async def test_a_program_that_cannot_run(world: CrunWorld, program: str, words: str) -> None:
    foreign = bytearray(world.image.layers[0].joinpath("bin/busybox").read_bytes()[:4096])
    foreign[18:20] = (243 if os.uname().machine != "riscv64" else 62).to_bytes(2, "little")
    path = world.image.layers[0] / "foreign"
    path.write_bytes(foreign)
    # A program header that names a loader, right after the ELF header.
    foreign[18:20] = {"x86_64": 62, "aarch64": 183, "riscv64": 243}[os.uname().machine].to_bytes(
        2, "little"
    )
    foreign[32:40] = (64).to_bytes(8, "little")
    foreign[54:58] = (56).to_bytes(2, "little") + (1).to_bytes(2, "little")
    foreign[64:80] = (3).to_bytes(8, "little") + (200).to_bytes(8, "little")
    foreign[200:210] = b"/no/ld.so\0"
    for name, content in (
        ("linked", bytes(foreign)),
        ("plain", b"no program\n"),
        ("empty", b""),
        ("script", b"#! /no/such -e\n"),
    ):
        path.with_name(name).write_bytes(content)
        path.with_name(name).chmod(0o755)
    path.chmod(0o755)
    async with world, world.runtime() as runtime:
        with pytest.raises(RuntimeFailure) as failure:
            await runtime.create(world.container("a", program))
        assert words in str(failure.value)
        assert "\n" not in str(failure.value)
        assert await runtime.list() == frozenset()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("no program\n", "`/bad` is not a program for this node"),
        ("#!/no/such\n", "`/bad` needs an interpreter or loader that the image does not have"),
    ],
)
@private
async def test_a_program_that_the_kernel_rejects_was_never_started(
    world: CrunWorld, content: str, words: str
) -> None:
    path = world.image.layers[0] / "bad"
    path.write_text(content)
    path.chmod(0o755)
    # With something mounted over the image, it is the kernel that judges.
    container = replace(world.container("a", "/bad"), mounts=(Mount("/mounted"),))
    async with world, world.runtime() as runtime:
        await runtime.create(container)
        with pytest.raises(RuntimeFailure) as failure:
            await runtime.start("a")
        assert words in str(failure.value)
        assert failure.value.exit_code in NOT_RUNNABLE


@private
async def test_start_returns_once_the_program_is_executed(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        for number in range(10):
            name = f"c{number}"
            await runtime.create(world.container(name, "sleep", "1000"))
            pid = (await runtime.start(name)).pid
            assert cmdline(pid) == b"sleep\0001000\0"


@private
async def test_a_program_that_ends_at_once_was_started(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        for code in (0, 1, 126, 127):
            name = f"c{code}"
            await runtime.create(world.exits(name, code))
            await runtime.start(name)
            assert (await runtime.wait(name)).code == code


@private
async def test_errors_found_before_anything_is_created(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        for container, words in (
            (world.container("a"), "names no command"),
            (world.container("a", "sh", user="nobody-there"), "no user `nobody-there`"),
            (world.container("a", "sh", limit=Resources(memory=4096)), "too small"),
            (world.container("../a", "sh"), "cannot be a container's id"),
            (replace(world.container("a", "sh"), hostname="x" * 65), "longer than 64"),
            (
                replace(
                    world.container("a", "sh"),
                    image=replace(world.image, layers=(world.path / "gone",)),
                ),
                "not on this node any more",
            ),
        ):
            with pytest.raises(RuntimeFailure, match=words):
                await runtime.create(container)
        assert await runtime.list() == frozenset()


@private
async def test_a_follower_loses_no_line_when_logs_are_rotated(world: CrunWorld) -> None:
    count = 20_000
    script = "i=0; while [ $i -lt 20000 ]; do seq $((i + 1)) $((i += 500)); sleep 0.01; done"
    container = world.container("a", "sh", "-c", script)
    limits = LogLimits(size=50_000, files=3)
    async with world, world.runtime(log_limits=limits, rotation_interval=0.005) as runtime:
        await runtime.create(container)
        ended = asyncio.Event()
        text = b""

        async def follow() -> None:
            nonlocal text
            async for some in logfiles.read(runtime.log_path("a"), follow=True, ended=ended):
                for record in some:
                    text += record.line if record.partial else record.line + b"\n"

        async with asyncio.TaskGroup() as group:
            group.create_task(follow())
            await runtime.start("a")
            await runtime.wait("a")
            ended.set()
        assert [int(line) for line in text.splitlines()] == list(range(1, count + 1))
        assert logfiles.rotated(runtime.log_path("a"), 1).exists()


@private
async def test_a_containers_log_limits_survive_a_restart_of_the_agent(
    world: CrunWorld,
) -> None:
    container = replace(
        world.container("a", "sh", "-c", "while :; do seq 1000; sleep 0.01; done"),
        logging=LogConfig("local", {"max-size": "10k", "max-file": "2"}),
    )

    def files(runtime: CrunRuntime) -> list[str]:
        return sorted(path.name for path in runtime.log_path("a").parent.glob("log*"))

    async with world:
        async with world.runtime(rotation_interval=0.005) as runtime:
            await runtime.create(container)
            await runtime.start("a")
            while "log.1" not in files(runtime):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        async with world.runtime(rotation_interval=0.005) as runtime:
            await runtime.adopt("a")
            assert runtime.logging("a") == container.logging
            first = logfiles.rotated(runtime.log_path("a"), 1).stat().st_ino
            while logfiles.rotated(runtime.log_path("a"), 1).stat().st_ino == first:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            # conmon makes its next file as `log.tmp`.
            assert set(files(runtime)) <= {"log", "log.1", "log.tmp"}
            await runtime.remove("a")


@private
async def test_a_container_with_logging_disabled_has_no_log(world: CrunWorld) -> None:
    container = replace(
        world.container("a", "sh", "-c", "echo out; echo err >&2; exit 3"),
        logging=LogConfig("none"),
    )
    async with world, world.runtime() as runtime:
        await runtime.create(container)
        await runtime.start("a")
        assert (await runtime.wait("a")).code == 3
        assert not list(runtime.log_path("a").parent.glob("log*"))


@private
async def test_output_of_both_streams_and_of_long_lines(world: CrunWorld) -> None:
    script = "echo out; echo err >&2; busybox printf %020000d 7; echo"
    async with world, world.runtime() as runtime:
        container = world.container("a", "sh", "-c", script)
        await runtime.create(container)
        await runtime.start("a")
        await runtime.wait("a")
        records = [record async for some in logfiles.read(runtime.log_path("a")) for record in some]
        assert {(record.stream, record.line) for record in records} >= {
            ("stdout", b"out"),
            ("stderr", b"err"),
        }
        long = b"".join(r.line for r in records if r.line not in (b"out", b"err"))
        assert len(long) == 20_000
        assert [record.partial for record in records].count(True) >= 1


@private
async def test_a_container_costs_little_memory(world: CrunWorld) -> None:
    names = ("a", "b", "c", "d")
    async with world, world.runtime() as runtime:
        for name in names:
            await running(runtime, world, world.graceful(name))
        monitors = [find_monitor(world.bundles / name, name) for name in names]
        # A single one would pay for the libraries that all share.
        used = [proportional_memory(monitor.pid) for monitor in monitors if monitor is not None]
        assert len(used) == len(names)
        assert sum(used) / len(used) < 1536 << 10


@private
async def test_a_network_namespace_is_joined(world: CrunWorld, other_netns: Path) -> None:
    async with world, world.runtime() as runtime:
        container = replace(world.graceful("a"), netns=other_netns)
        pid = await running(runtime, world, container)
        assert network_namespace(pid) == network_namespace(other_netns.parent.parent.name)


@private
async def test_missing_requirements_of_the_node_are_named(world: CrunWorld) -> None:
    for options, words in (
        ({"runtime": "no-such-runtime"}, "`no-such-runtime` is not installed"),
        ({"seccomp_profile": world.path / "none.json"}, "no seccomp profile"),
    ):
        with pytest.raises(RuntimeFailure, match=words):
            async with world.runtime(**options):
                pass


def test_the_version_2_tree_is_hidden_from_one_thread_only() -> None:
    unified = Path("/sys/fs/cgroup/unified")
    before = detect()
    kinds: list[list[str]] = []

    def enter() -> None:
        assert enter_private_mounts(None) == (before.mode is CgroupMode.HYBRID)
        assert detect().mode is not CgroupMode.HYBRID
        lines = Path("/proc/thread-self/mountinfo").read_text().splitlines()
        kinds.append([line.split(" - ")[1].split()[0] for line in lines if f" {unified} " in line])

    with ThreadPoolExecutor(1) as thread:
        thread.submit(enter).result()
    assert detect() == before
    # What crun makes in that folder goes with the namespace, as it is a file system of its own.
    assert kinds == [["tmpfs"] if before.mode is CgroupMode.HYBRID else []]


@pytest.mark.parametrize("userns", ["private", "host"])
@private
async def test_an_image_of_127_layers(world: CrunWorld, userns: str) -> None:
    layers = [world.image.layers[0]]
    for number in range(126):
        layer = world.path / f"{number:03}-{'n' * 64}"
        (layer / "d").mkdir(parents=True)
        (layer / "d" / str(number)).touch()
        (layer / "last").write_text(f"{number}\n")
        layers.append(layer)
    world.image = replace(world.image, layers=tuple(layers))
    says = "set -e; for n in $(seq 0 125); do test -f /d/$n; done; cat /last; echo ready"
    async with world.runtime() as runtime:
        await runtime.create(world.container("a", "sh", "-c", says, userns=userns))
        await runtime.start("a")
        ended = await runtime.wait("a")
        lines = [r.line async for some in logfiles.read(runtime.log_path("a")) for r in some]
        assert (ended.code, lines) == (0, [b"125", b"ready"])


@pytest.mark.parametrize("userns", ["private", "host"])
@private
async def test_an_image_without_layers(world: CrunWorld, userns: str) -> None:
    mounts = (Mount("/bin", str(world.image.layers[0] / "bin"), read_only=True),)
    world.image = replace(world.image, layers=())
    does = "busybox mkdir /made && busybox touch /made/file && test -f /made/file"
    container = world.container("a", "/bin/sh", "-c", does, userns=userns)
    async with world.runtime() as runtime:
        await runtime.create(replace(container, mounts=mounts))
        await runtime.start("a")
        assert (await runtime.wait("a")).code == 0


HOLDS_24_MIB = (
    "dd if=/dev/zero of=/dev/shm/held bs=1M count=24 2>/dev/null; echo ready; exec sleep 60"
)


@private
async def test_limits_of_a_running_container_change_all_or_none(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        made = world.container("a", "sh", "-c", HOLDS_24_MIB, limit=Resources(512, 64 << 20))
        pid = await running(runtime, world, made)
        before = limits(world, "a")
        assert before["quota"].split()[0] == "50000"

        def spec(limit: Resources, **changes: object) -> TaskSpec:
            container = replace(made.spec.container, **changes)  # type: ignore[arg-type]
            return replace(made.spec, container=container, limit=limit, shares=0)

        # Below what it uses: the kernel's refusal, and nothing else changes either.
        with pytest.raises(RuntimeFailure, match=r"it uses 2\d.*MiB of memory, .* be 16MiB; give"):
            await runtime.resize("a", spec(Resources(1024, 16 << 20), pids_limit=7))
        assert limits(world, "a") == before
        # What fails late undoes what went well before.
        with pytest.raises(RuntimeFailure, match="which this node does not have"):
            await runtime.resize("a", spec(Resources(1024, 96 << 20), cpuset_cpus="4095"))
        assert limits(world, "a") == before

        cpu = min(os.sched_getaffinity(0))
        wanted = replace(
            spec(Resources(1024, 96 << 20), pids_limit=77, cpuset_cpus=str(cpu)), shares=300
        )
        await runtime.resize("a", wanted)
        after = limits(world, "a")
        assert after["quota"].split()[0] == "100000"
        assert (after["memory"], after["pids"]) == (str(96 << 20), "77")
        assert after["weight"] != before["weight"]
        assert os.sched_getaffinity(pid) == {cpu}
        await runtime.resize("a", spec(Resources(), pids_limit=-1))
        after = limits(world, "a")
        assert after["quota"].split()[0] in ("-1", "max")
        assert after["memory"] == "max" or int(after["memory"]) >= 1 << 60
        assert after["pids"] == "max"
        assert os.sched_getaffinity(pid) == os.sched_getaffinity(0)
        # An agent that dies while they change leaves them to the next.
        access = runtime.access("a")
        access.bundle.forget_limits()
        async with world.runtime() as second:
            await second.resize("a", made.spec)
            assert limits(world, "a") == before
        assert runtime.access("a").running().pid == pid
        await runtime.kill("a", signal.SIGKILL)
        await runtime.wait("a")
        with pytest.raises(RuntimeFailure, match="not running"):
            await runtime.resize("a", made.spec)
