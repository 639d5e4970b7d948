"""What crun and conmon do on this kernel: every promise is read back from /proc and the cgroups."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from runtimehost import CrunWorld, UnifiedWorld, private, remove_leftovers

from orchestrator.agent.runtime import logs
from orchestrator.agent.runtime.base import Container, Mount, RuntimeFailure, Started
from orchestrator.agent.runtime.bundle import Bundle
from orchestrator.agent.runtime.cgroups import CgroupMode, detect
from orchestrator.agent.runtime.conmon import find_monitor
from orchestrator.agent.runtime.crun import CrunRuntime
from orchestrator.agent.runtime.logs import LogLimits
from orchestrator.agent.runtime.mounts import enter_private_mounts
from orchestrator.model.specs import Resources
from orchestrator.model.states import NOT_RUNNABLE

pytestmark = pytest.mark.root

DEFAULT_CAPABILITIES = 0xA80425FB


@pytest.fixture
def world(tmp_path: Path) -> CrunWorld:
    remove_leftovers()
    return CrunWorld(tmp_path)


async def output(runtime: CrunRuntime, container: Container) -> list[str]:
    """Run a container to its end: what it wrote."""
    await runtime.create(container)
    await runtime.start(container.id)
    await runtime.wait(container.id)
    path = runtime.log_path(container.id)
    return [record.line.decode() async for some in logs.read(path) for record in some]


async def running(runtime: CrunRuntime, world: CrunWorld, container: Container) -> int:
    """Start a container that says `ready`: its pid."""
    await runtime.create(container)
    started = await runtime.start(container.id)
    await world.ready(runtime, container.id)
    return started.pid


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def first_id(pid: int) -> int:
    """The host's id of a container's root."""
    inside, outside, _ = Path(f"/proc/{pid}/uid_map").read_text().split()
    assert inside == "0"
    return int(outside)


def proportional_memory(pid: int) -> int:
    """Bytes of memory of a process, shared pages counted in part."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


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


def limits(world: CrunWorld, container_id: str) -> dict[str, str]:
    """The cgroup files of a container by what they limit, on either version."""
    v2 = detect().mode is CgroupMode.V2
    names = (
        {
            "weight": "cpu.weight",
            "memory": "memory.max",
            "swap": "memory.swap.max",
            "pids": "pids.max",
            "quota": "cpu.max",
        }
        if v2
        else {
            "weight": "cpu/cpu.shares",
            "memory": "memory/memory.limit_in_bytes",
            "swap": "memory/memory.memsw.limit_in_bytes",
            "pids": "pids/pids.max",
            "quota": "cpu/cpu.cfs_quota_us",
        }
    )
    found = {}
    for key, name in names.items():
        tree, _, file = name.rpartition("/")
        path = Path("/sys/fs/cgroup", tree, world.parent[1:], container_id, file)
        found[key] = path.read_text().strip()
    return found


@private
async def test_the_process_is_confined_as_promised(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        pid = await running(runtime, world, world.graceful("a"))
        found = status(pid)
        for kind in ("CapEff", "CapPrm", "CapBnd"):
            assert int(found[kind], 16) == DEFAULT_CAPABILITIES
        assert int(found["CapInh"], 16) == int(found["CapAmb"], 16) == 0
        assert found["NoNewPrivs"] == "1"
        assert found["Seccomp"] == "2"
        assert found["NSpid"].split()[-1] == "1"
        for kind in ("pid", "mnt", "uts", "ipc", "net", "cgroup"):
            own = os.readlink("/proc/thread-self/ns/" + kind)
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != own


@private
async def test_another_user_holds_no_capability(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        container = world.container("a", "sh", "-c", "echo ready; while :; do sleep 1; done")
        spec = replace(container.spec.container, user="web")
        container = replace(container, spec=replace(container.spec, container=spec))
        pid = await running(runtime, world, container)
        found, first = status(pid), first_id(pid)
        assert found["Uid"].split() == [str(first + 1000)] * 4
        assert found["Gid"].split() == [str(first + 1001)] * 4
        assert found["Groups"].split() == [str(first + 44)]
        assert int(found["CapEff"], 16) == int(found["CapPrm"], 16) == 0


@private
async def test_the_kernel_gets_the_limits(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        container = world.container(
            "a",
            "sh",
            "-c",
            "echo ready; sleep 100",
            limit=Resources(shares=512, memory=32 << 20),
            shares=2048,
            pids_limit=77,
        )
        await running(runtime, world, container)
        found = limits(world, "a")
        assert found["memory"] == str(32 << 20)
        assert found["pids"] == "77"
        if detect().mode is CgroupMode.V2:
            assert int(found["weight"]) > 1
            assert found["swap"] == "0"
            assert found["quota"] == "50000 100000"
        else:
            assert found["weight"] == "2048"
            assert found["swap"] == str(32 << 20)
            assert found["quota"] == "50000"


@private
async def test_limits_of_a_spec_that_says_nothing(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        await running(runtime, world, world.graceful("a"))
        found = limits(world, "a")
        assert found["pids"] == "4096"
        if detect().mode is not CgroupMode.V2:
            assert found["weight"] == "128"
            assert found["quota"] == "-1"


@private
async def test_what_the_process_sees(world: CrunWorld) -> None:
    script = (
        "hostname; cat /etc/hostname; pwd; echo $HOME; echo $PATH; echo $HOSTNAME; "
        "cat /etc/resolv.conf; tail -n1 /etc/hosts; echo $$; ls /dev/mqueue; ls -d /dev/shm"
    )
    async with world, world.runtime() as runtime:
        container = world.container("a", "busybox", "sh", "-c", script, workdir="srv/new")
        container = replace(
            container, hostname="web-3", address="10.1.2.3", nameservers=("10.1.0.1",)
        )
        assert await output(runtime, container) == [
            "web-3",
            "web-3",
            "/srv/new",
            "/root",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "web-3",
            "nameserver 10.1.0.1",
            "options ndots:0",
            "10.1.2.3\tweb-3",
            "1",
            "/dev/shm",
        ]


@pytest.mark.parametrize("kind", [CrunWorld, UnifiedWorld])
@private
async def test_what_the_process_may_not_do(tmp_path: Path, kind: type[CrunWorld]) -> None:
    script = (
        "mount -t tmpfs none /tmp 2>/dev/null || echo no mount; "
        "touch /sys/x 2>/dev/null || echo no sys; "
        "for f in /sys/fs/cgroup/ /sys/fs/cgroup/*/; do touch $f/x 2>/dev/null && echo $f; done; "
        "ls /sys/fs/cgroup/memory* >/dev/null || echo no cgroup; "
        "echo 1 2>/dev/null >/proc/sys/kernel/panic || echo no sysctl; "
        "mknod /tmp/disk b 254 0 2>/dev/null || echo no disk; "
        "ls /sys/firmware /proc/acpi /proc/scsi 2>/dev/null | busybox grep -v : ; "
        "cat /proc/keys; echo end"
    )
    async with kind(tmp_path) as world, world.runtime() as runtime:
        lines = await output(runtime, world.container("a", "sh", "-c", script))
        assert [line for line in lines if line] == [
            "no mount",
            "no sys",
            "no sysctl",
            "no disk",
            "end",
        ]


@private
async def test_a_read_only_root(world: CrunWorld) -> None:
    script = "touch /x 2>/dev/null || echo refused; touch /dev/shm/x && echo written"
    async with world, world.runtime() as runtime:
        container = world.container("a", "sh", "-c", script, read_only=True)
        assert await output(runtime, container) == ["refused", "written"]


@private
async def test_layers_are_shared_and_what_is_written_goes(world: CrunWorld) -> None:
    upper = world.path / "second"
    (upper / "etc").mkdir(parents=True)
    (upper / "etc/motd").write_text("from above\n")
    image = replace(world.image, layers=(*world.image.layers, upper))
    script = "cat /etc/motd; echo changed > /etc/motd; cat /etc/motd"
    async with world, world.runtime() as runtime:
        for name in ("a", "b"):
            container = replace(world.container(name, "sh", "-c", script), image=image)
            assert await output(runtime, container) == ["from above", "changed"]
        assert (upper / "etc/motd").read_text() == "from above\n"
        await runtime.remove("a")
        assert not (world.path / "state/a").exists()


@private
async def test_a_hundred_layers_with_long_and_odd_names(world: CrunWorld) -> None:
    layers = [world.image.layers[0]]
    for number in range(99):
        layer = world.path / f"layer,with:odd characters and a long name {number:064d}"
        layer.mkdir()
        (layer / f"f{number}").touch()
        layers.append(layer)
    async with world, world.runtime() as runtime:
        container = world.container("a", "sh", "-c", "ls -d /f* | busybox wc -l")
        container = replace(container, image=replace(world.image, layers=tuple(layers)))
        assert await output(runtime, container) == ["99"]


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("nope", "the image has no program `nope`"),
        ("/bin/nope", "the image has no program `/bin/nope`"),
        ("/etc/passwd", "`/etc/passwd` in the image is not executable"),
        ("/bin", "`/bin` in the image is not a program"),
        ("/foreign", "the image is for another architecture"),
        ("/plain", "`/plain` is no program for this node"),
        ("/empty", "`/empty` is no program for this node"),
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
        ("no program\n", "`/bad` is no program for this node"),
        ("#!/no/such\n", "`/bad` needs an interpreter or loader that the image does not have"),
    ],
)
@private
async def test_a_program_that_the_kernel_refuses_was_never_started(
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
async def test_what_was_started_is_the_program(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        for number in range(10):
            name = f"c{number}"
            await runtime.create(world.container(name, "sleep", "1000"))
            pid = (await runtime.start(name)).pid
            assert cmdline(pid) == b"sleep\0001000\0"


@private
async def test_a_program_that_is_over_at_once_was_started(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        for code in (0, 1, 126, 127):
            name = f"c{code}"
            await runtime.create(world.exits(name, code))
            await runtime.start(name)
            assert (await runtime.wait(name)).code == code


@private
async def test_refusals_that_need_no_kernel(world: CrunWorld) -> None:
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


@pytest.mark.parametrize("kind", [CrunWorld, UnifiedWorld])
@private
async def test_killing_takes_every_process_along(tmp_path: Path, kind: type[CrunWorld]) -> None:
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
async def test_the_process_killed_behind_our_back(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        pid = await running(runtime, world, world.graceful("a"))
        os.kill(pid, signal.SIGKILL)
        assert (await runtime.wait("a")).code == 137


@private
async def test_with_the_monitor_all_processes_end(world: CrunWorld) -> None:
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
async def test_a_monitor_lost_while_no_agent_ran(world: CrunWorld) -> None:
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
            later.setattr("orchestrator.agent.runtime.crun.boot_id", lambda: "another boot")
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
async def test_an_agent_killed_at_any_step_leaves_what_can_be_handled(
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
async def test_create_goes_on_from_half_a_container(
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
from orchestrator.agent.runtime.conmon import find_monitor
from orchestrator.agent.runtime.mounts import enter_private_mounts

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


def test_containers_outlive_an_agent_that_is_killed(world: CrunWorld) -> None:
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
from orchestrator.agent.runtime.mounts import enter_private_mounts

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


@private
async def test_logs_are_rotated_and_a_follower_loses_nothing(world: CrunWorld) -> None:
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
            async for some in logs.read(runtime.log_path("a"), follow=True, ended=ended):
                for record in some:
                    text += record.line if record.partial else record.line + b"\n"

        async with asyncio.TaskGroup() as group:
            group.create_task(follow())
            await runtime.start("a")
            await runtime.wait("a")
            ended.set()
        assert [int(line) for line in text.splitlines()] == list(range(1, count + 1))
        assert logs.rotated(runtime.log_path("a"), 1).exists()


@private
async def test_output_of_both_streams_and_of_long_lines(world: CrunWorld) -> None:
    script = "echo out; echo err >&2; busybox printf %020000d 7; echo"
    async with world, world.runtime() as runtime:
        container = world.container("a", "sh", "-c", script)
        await runtime.create(container)
        await runtime.start("a")
        await runtime.wait("a")
        records = [record async for some in logs.read(runtime.log_path("a")) for record in some]
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
async def test_a_node_that_lacks_something_says_what(world: CrunWorld) -> None:
    for options, words in (
        ({"runtime": "no-such-runtime"}, "`no-such-runtime` is not installed"),
        ({"seccomp_profile": world.path / "none.json"}, "no seccomp profile"),
    ):
        with pytest.raises(RuntimeFailure, match=words):
            async with world.runtime(**options):
                pass


def test_a_hybrid_host_is_hidden_from_one_thread_alone() -> None:
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
