# ruff: noqa: ASYNC240 - nothing else runs meanwhile
"""A whole agent process on a real kernel, against a scripted manager over mutual TLS.

Run as `unshare --net --mount python realnode.py FOLDER`: in there nothing that it makes outlives
it but cgroups and processes, which it removes itself. It prints what it measured as JSON; a failed
assertion is its exit status.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from agentfakes import task
from images.imagekit import Layout, entry, folder, tar
from managerstub import Conversation, ManagerStub

from orchestrator.agent.runtime.crun import CrunRuntime
from orchestrator.identity import ca
from orchestrator.identity.files import ManagerIdentity, NodeIdentity, write_identity, write_private
from orchestrator.identity.setup import init_cluster
from orchestrator.identity.tls import server_credentials
from orchestrator.model.convert import to_proto
from orchestrator.model.specs import ContainerSpec, Resources, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.pb import control_pb2, dispatch_pb2, dispatch_pb2_grpc

ADDRESS = "10.77.0.1"
CGROUP = f"/orc-agent-test-{os.getpid()}"
NETWORK = dispatch_pb2.AssignedNetwork(
    id="net1", name="orc", vni=4242, cluster_cidr="10.128.0.0/14", subnet="10.128.1.0/24"
)
START = "from orchestrator.agent.command import agent; agent()"


async def turn(condition: object, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110
            await asyncio.sleep(0.002)


class World:
    """The folder, the manager and the agent's process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manager = ManagerStub()
        self.digest = ""
        self.process: asyncio.subprocess.Process
        self.session: Conversation
        self.version = 1
        self.figures: dict[str, float] = {}

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        manager, authority, _ = init_cluster(self.root / "m", ADDRESS, 7420, "10.128.0.0/14")
        self._join(manager, authority)
        server = grpc.aio.server()
        dispatch_pb2_grpc.add_DispatchServicer_to_server(self.manager, server)
        folder = self.root / "m"
        server.add_secure_port(
            f"{ADDRESS}:7420",
            server_credentials(folder / "ca.pem", folder / "manager.pem", folder / "manager.key"),
        )
        await server.start()
        try:
            yield
        finally:
            await server.stop(None)

    def _join(self, manager: ManagerIdentity, authority: str) -> None:
        data = self.root / "a"
        data.mkdir()
        key = (self.root / "m" / "ca.key").read_text()
        issued = ca.issue(
            ca.KeyPair(authority, key),
            common_name="node1",
            role="worker",
            cluster_id=manager.cluster_id,
            now=dt.datetime.now(dt.UTC),
        )
        write_private(data / "ca.pem", authority)
        write_private(data / "node.pem", issued.certificate)
        write_private(data / "node.key", issued.key)
        write_identity(
            data / "node.json",
            NodeIdentity("node1", manager.cluster_id, "worker", ADDRESS, (f"{ADDRESS}:7420",)),
        )

    async def start_agent(self) -> None:
        began = time.monotonic()
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            START,
            f"--data-dir={self.root}/a",
            f"--run-dir={self.root}/run",
            f"--cgroup-parent={CGROUP}",
            "--label=zone=a",
            "--log-level=warning",
        )
        self.session = await self.manager.session()
        self.figures["agent_start_s"] = time.monotonic() - began
        await self.session.welcome(period=1.0)

    async def end_agent(self, number: int) -> None:
        began = time.monotonic()
        self.process.send_signal(number)
        await self.process.wait()
        self.figures[f"end_by_{number}_s"] = time.monotonic() - began
        self.session.over.set()

    def assigned(
        self, task_id: str, *command: str, state: TaskState = TaskState.RUNNING, **spec: object
    ) -> dispatch_pb2.AssignedTask:
        # SIGKILL, since a `sleep` that is process 1 does not heed SIGTERM.
        container = ContainerSpec(image="box:1", command=command, stop_signal="SIGKILL")
        order = to_proto(task(task_id, state, TaskSpec(container=container, **spec)))
        order.image_digest = self.digest
        return dispatch_pb2.AssignedTask(task=order)

    async def load_image(self) -> None:
        box = Path("/usr/bin/busybox").read_bytes()
        layer = tar(folder("bin"), entry("bin/busybox", box, mode=0o755), folder("tmp"))
        layout = Layout(self.root / "layout")
        layout.image([layer], "box:1", process={"Entrypoint": ["/bin/busybox"]})
        order = dispatch_pb2.OpenTunnel(id="load", load=control_pb2.ImageHeader(name="box:1"))
        await self.session.say(open=order)
        tunnel = await self.manager.tunnel("load")
        await tunnel.send(data=layout.archive().read_bytes())
        await tunnel.send(eof=True)
        result = (await tunnel.frames())[-1].result
        assert not result.error, result.error
        self.digest = result.image.id

    async def reaches(self, task_id: str, state: TaskState) -> None:
        await turn(lambda: self.session.states().get(task_id) == state)

    def status(self, task_id: str) -> dispatch_pb2.types__pb2.TaskStatus:  # type: ignore[name-defined]
        return next(
            report.statuses[task_id]
            for report in reversed(self.session.statuses)
            if task_id in report.statuses
        )

    async def diff(self, *tasks: dispatch_pb2.AssignedTask, removed: tuple[str, ...] = ()) -> None:
        await self.session.diff(*tasks, applies_to=self.version, removed=removed)
        self.version += 1

    async def logs(self, task_id: str) -> list[bytes]:
        tunnel_id = f"logs-{task_id}"
        order = dispatch_pb2.LogsOrder(task_id=task_id, tail=-1)
        await self.session.say(open=dispatch_pb2.OpenTunnel(id=tunnel_id, logs=order))
        tunnel = await self.manager.tunnel(tunnel_id)
        return [frame.log.line for frame in await tunnel.frames() if frame.HasField("log")]


async def scenario(world: World) -> None:
    await world.start_agent()
    hello = world.session.hello.description
    assert hello.address == ADDRESS
    assert hello.labels["zone"] == "a"
    assert hello.runtime.startswith("crun ")
    assert hello.cgroup in ("v1", "v2", "hybrid")
    assert hello.resources.memory > 0
    assert hello.resources.shares == 1024 * len(os.sched_getaffinity(0))
    await world.session.full(networks=[NETWORK])
    await world.load_image()
    await turn(lambda: any(report.images for report in world.session.images))

    # One container after another, then many at once.
    latencies = []
    for number in range(10):
        began = time.monotonic()
        await world.diff(world.assigned(f"one{number}", "sleep", "1000"))
        await world.reaches(f"one{number}", TaskState.RUNNING)
        latencies.append(time.monotonic() - began)
    world.figures["start_median_ms"] = 1000 * statistics.median(latencies)
    began = time.monotonic()
    await world.diff(*(world.assigned(f"m{n}", "sleep", "1000") for n in range(40)))
    for number in range(40):
        await world.reaches(f"m{number}", TaskState.RUNNING)
    world.figures["starts_per_s"] = 40 / (time.monotonic() - began)
    addresses = {
        address
        for report in world.session.statuses
        for status in report.statuses.values()
        for address in status.addresses.values()
    }
    assert len(addresses) == 50
    began = time.monotonic()
    await world.diff(removed=tuple(f"m{n}" for n in range(40)))
    state = world.root / "a" / "containers"
    await turn(lambda: not list(state.glob("m*")))
    world.figures["removals_per_s"] = 40 / (time.monotonic() - began)

    # Ends of all kinds, each with its reason; logs stay.
    await world.diff(
        world.assigned("fails", "sh", "-c", "echo out; echo err >&2; exit 3"),
        world.assigned("done", "true"),
        world.assigned("nothing", "no-such-applet"),
        world.assigned(
            "greedy", "sh", "-c", "a=x; while :; do a=$a$a; done", limit=Resources(memory=16 << 20)
        ),
    )
    await world.reaches("fails", TaskState.FAILED)
    assert world.status("fails").message == "exit status 3"
    await world.reaches("done", TaskState.COMPLETE)
    await world.reaches("nothing", TaskState.FAILED)
    await world.reaches("greedy", TaskState.FAILED)
    assert world.status("greedy").message == "out of memory (limit 16MiB)"
    assert world.status("greedy").oom_killed
    assert sorted(await world.logs("fails")) == [b"err", b"out"]
    os.kill(world.status("one0").pid, signal.SIGKILL)
    began = time.monotonic()
    await world.reaches("one0", TaskState.FAILED)
    world.figures["death_seen_ms"] = 1000 * (time.monotonic() - began)
    assert world.status("one0").message == "killed by signal 9 (SIGKILL)"

    # kill -9 of the agent: what runs goes on, what ended meanwhile is told.
    kept, ended = world.status("one1").pid, world.status("one2").pid
    await world.end_agent(signal.SIGKILL)
    os.kill(ended, signal.SIGKILL)
    os.kill(kept, 0)
    await world.start_agent()
    tasks = [world.assigned(f"one{n}", "sleep", "1000") for n in range(1, 10)]
    world.version = 1
    await world.session.full(*tasks, networks=[NETWORK])
    await world.reaches("one2", TaskState.FAILED)
    assert world.status("one2").message == "killed by signal 9 (SIGKILL)"
    await world.reaches("one1", TaskState.RUNNING)
    assert world.status("one1").pid == kept
    # SIGTERM: the same, and quickly.
    await world.end_agent(signal.SIGTERM)
    assert world.process.returncode == 0
    assert world.figures["end_by_15_s"] < 1.0
    os.kill(kept, 0)

    await world.start_agent()
    await world.session.full(*tasks, networks=[NETWORK])
    stat = Path(f"/proc/{world.process.pid}/stat")
    ticks = sum(map(int, stat.read_text().rsplit(")", 1)[1].split()[11:13]))
    await asyncio.sleep(3)
    used = sum(map(int, stat.read_text().rsplit(")", 1)[1].split()[11:13])) - ticks
    world.figures["idle_cpu_percent"] = 100 * used / os.sysconf("SC_CLK_TCK") / 3
    family = [world.process.pid, *_children(world.process.pid)]
    for pid, name in zip(family, ("agent", "helper"), strict=False):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Rss", "Pss:")):
                key = f"{name}_{line.split(':')[0].lower()}_mib"
                world.figures[key] = int(line.split()[1]) / 1024

    # An order to stop; then everything goes.
    world.version = 1
    await world.diff(world.assigned("one1", "sleep", "1000", state=TaskState.SHUTDOWN))
    await world.reaches("one1", TaskState.SHUTDOWN)
    await world.diff(removed=tuple(f"one{n}" for n in range(1, 10)))
    await turn(lambda: not list(state.iterdir()))
    await turn(lambda: not list((world.root / "run" / "netns").iterdir()))
    await turn(lambda: not list((world.root / "a" / "logs").iterdir()))
    await world.end_agent(signal.SIGTERM)


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


async def main(root: Path) -> None:
    for command in (
        "ip link set lo up",
        "ip link add under0 type bridge",
        f"ip address add {ADDRESS}/24 dev under0",
        "ip link set under0 up",
    ):
        process = await asyncio.create_subprocess_exec(*command.split())
        assert await process.wait() == 0, command
    world = World(root)
    async with world.serving():
        try:
            await scenario(world)
        finally:
            if world.process.returncode is None:
                world.process.kill()
                await world.process.wait()
            async with CrunRuntime(
                root / "a" / "containers", root / "run", cgroup_parent=CGROUP
            ) as runtime:
                await runtime.purge()
    print(json.dumps({key: round(value, 3) for key, value in world.figures.items()}))


if __name__ == "__main__":
    from orchestrator.agent.runtime.mounts import enter_private_mounts

    enter_private_mounts(None)
    asyncio.run(main(Path(sys.argv[1])))
