# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ASYNC240 - nothing else runs meanwhile
"""A node in a network and mount namespace of its own: an agent's process on the real kernel, and a
manager over mutual TLS whose every word a test decides.

For programs that are run by `run_enclosed(PROGRAM, FOLDER)`: in there nothing that
they make outlives them but cgroups, which `run` removes.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from agentfakes import task
from images.imagekit import Layout, entry, folder, tar
from managerstub import Conversation, ManagerStub

from orchestrator.agent.runtime.engine.crun import CrunRuntime
from orchestrator.agent.runtime.isolation.mountns import enter_private_mounts
from orchestrator.identity import ca
from orchestrator.identity.bootstrap import init_cluster
from orchestrator.identity.certificates import KeyPair, TlsFiles
from orchestrator.identity.host_identity import ManagerIdentity, NodeIdentity, write_identity
from orchestrator.identity.tls import server_credentials
from orchestrator.linux import libc
from orchestrator.linux.atomicfile import write_file
from orchestrator.model.convert import to_proto
from orchestrator.model.specs import ContainerSpec, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.pb import control_pb2, dispatch_pb2, dispatch_pb2_grpc

ADDRESS = "10.76.0.1"
"""No other test has it."""
CGROUP = f"/orc-agent-test-{uuid.uuid4().hex[:12]}"
NETWORK = dispatch_pb2.AssignedNetwork(
    id="net1", name="default", vni=4242, cluster_cidr="10.128.0.0/14", subnet="10.128.1.0/24"
)
START = "from orchestrator.agent.command import agent; agent()"


async def turn(condition: object, seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110
            await asyncio.sleep(0.002)


class World:
    """The folder, the manager and the agent's process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manager = ManagerStub()
        self.digest = ""
        self.process: asyncio.subprocess.Process | None = None
        self.session: Conversation
        self.version = 1

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        manager, authority, _ = init_cluster(self.root / "m", ADDRESS, 7420, "10.128.0.0/14")
        self._join(manager, authority)
        server = grpc.aio.server()
        dispatch_pb2_grpc.add_DispatchServicer_to_server(self.manager, server)
        folder = self.root / "m"
        server.add_secure_port(
            f"{ADDRESS}:7420",
            server_credentials(TlsFiles.of(folder, "manager")),
        )
        await server.start()
        try:
            yield
        finally:
            await server.stop(None)

    def _join(self, manager: ManagerIdentity, authority: str) -> None:
        data = self.root / "a"
        data.mkdir(exist_ok=True)
        key = (self.root / "m" / "ca.key").read_text()
        issued = ca.issue(
            KeyPair(authority, key),
            common_name="node1",
            role="worker",
            cluster_id=manager.cluster_id,
            now=dt.datetime.now(dt.UTC),
        )
        write_file(data / "ca.pem", authority)
        write_file(data / "node.pem", issued.certificate)
        write_file(data / "node.key", issued.key)
        write_identity(
            data / "node.json",
            NodeIdentity("node1", manager.cluster_id, "worker", ADDRESS, (f"{ADDRESS}:7420",)),
        )

    @property
    def arguments(self) -> list[str]:
        """What `orc agent` is started with."""
        return [
            f"--data-dir={self.root}/a",
            f"--run-dir={self.root}/run",
            f"--cgroup-parent={CGROUP}",
            "--label=zone=a",
            "--log-level=warning",
        ]

    async def start_agent(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", START, *self.arguments
        )
        self.session = await self.manager.session()
        await self.session.welcome(period=1.0)

    async def end_agent(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        await self.process.wait()
        self.session.over.set()

    async def close(self) -> None:
        """End the agent, if it still runs."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

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
        return [record.line for frame in await tunnel.frames() for record in frame.log.records]


def run(world: World, scenario: Callable[[], Awaitable[None]]) -> None:
    """Play `scenario` on a new node, and take the node away. Its network is its own also when the
    program was not started by `run_enclosed`."""
    libc.unshare(libc.CLONE_NEWNET)
    enter_private_mounts(None)
    asyncio.run(_run(world, scenario))


async def _run(world: World, scenario: Callable[[], Awaitable[None]]) -> None:
    for command in (
        "ip link set lo up",
        "ip link add under0 type bridge",
        f"ip address add {ADDRESS}/24 dev under0",
        "ip link set under0 up",
    ):
        process = await asyncio.create_subprocess_exec(*command.split())
        assert await process.wait() == 0, command
    async with world.serving():
        try:
            await scenario()
        finally:
            await world.close()
            async with CrunRuntime(
                world.root / "a" / "containers", world.root / "run", cgroup_parent=CGROUP
            ) as runtime:
                await runtime.purge()
