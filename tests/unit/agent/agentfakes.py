# SPDX-License-Identifier: Apache-2.0
"""Scripted parts for tests of the agent's core: everything that happens is written down, and a
test waits for what it expects instead of sleeping."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.images.image_spec import ImageConfig, LocalImage
from orchestrator.agent.logs.log_drivers import LogDrivers
from orchestrator.agent.logs.retained_logs import RetainedLogs
from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.reconciler import Connected
from orchestrator.agent.runtime.interface import Container, Exit, Mount, RuntimeFailure, Started
from orchestrator.agent.tasks.backends import Backends, ContainerEnding
from orchestrator.agent.tasks.health_checks import ProbeResult
from orchestrator.agent.tasks.secret_files import SecretFiles
from orchestrator.agent.tasks.status_reporter import StatusReporter
from orchestrator.model.convert import to_proto
from orchestrator.model.hooks import Hook
from orchestrator.model.limits import Limits, limits_of
from orchestrator.model.networks import stands_alone
from orchestrator.model.objects import Volume
from orchestrator.model.specs import ContainerSpec, HealthCheck, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.pb import dispatch_pb2
from orchestrator.tracing.spans import OFF, Tracer

NOW = 1000.0


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until `condition` holds."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the loop itself is what is waited for
            await asyncio.sleep(0)


def task(
    task_id: str = "t1", desired: TaskState = TaskState.RUNNING, spec: TaskSpec | None = None
) -> Task:
    spec = spec or TaskSpec(container=ContainerSpec(image="hello:1"))
    return Task(
        id=task_id,
        service_id="web-id",
        service_name="web",
        slot=1,
        spec=spec,
        image_digest="sha256:" + "0" * 64,
        desired_state=desired,
    )


def assigned(
    task_id: str = "t1",
    desired: TaskState = TaskState.RUNNING,
    spec: TaskSpec | None = None,
) -> dispatch_pb2.AssignedTask:
    return dispatch_pb2.AssignedTask(
        task=to_proto(task(task_id, desired, spec)), image_sources=["10.0.0.2:7423"]
    )


class FakeRuntime:
    """Containers in memory, which outlive the agent that made them as real ones do."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.made: dict[str, Container] = {}
        self.running: dict[str, Started] = {}
        self.ended: dict[str, Exit] = {}
        self.calls: list[tuple[str, str]] = []
        self.signals: list[tuple[str, int]] = []
        self.frozen: set[str] = set()
        self.files: dict[tuple[str, str], bytes] = {}
        """By container and path: what took the place of another file while it ran."""
        self.limits: dict[str, Limits] = {}
        """Those that were set while it ran."""
        self.deaf: set[str] = set()
        """Containers that only SIGKILL ends."""
        self.failures: dict[tuple[str, str], Exception] = {}
        """(method, container) → what it raises, once."""
        self.hold: dict[str, asyncio.Event] = {}
        """Method → it waits for this first."""
        self.active = self.most_active = 0
        self._next_pid = 100
        self._changed = asyncio.Condition()

    async def _called(self, method: str, container_id: str) -> None:
        self.calls.append((method, container_id))
        if (error := self.failures.pop((method, container_id), None)) is not None:
            raise error
        if (held := self.hold.get(method)) is not None:
            await held.wait()

    async def reserve(self, container_id: str, spec: TaskSpec, beside: str = "") -> None:
        """Nothing is held."""
        self.calls.append(("reserve", container_id))

    async def create(self, container: Container) -> None:
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            await self._called("create", container.id)
        finally:
            self.active -= 1
        self.made[container.id] = container

    async def start(self, container_id: str) -> Started:
        await self._called("start", container_id)
        if container_id not in self.made:
            raise RuntimeFailure("no such container")
        if container_id not in self.running:
            self._next_pid += 1
            self.running[container_id] = Started(self._next_pid, NOW)
            live = self.log_path(container_id)
            live.parent.mkdir(parents=True, exist_ok=True)
            live.write_text(f"log of {container_id}\n")
        return self.running[container_id]

    async def adopt(self, container_id: str) -> Started | Exit | None:
        await self._called("adopt", container_id)
        return self.ended.get(container_id) or self.running.get(container_id)

    async def wait(self, container_id: str) -> Exit:
        await self._called("wait", container_id)
        async with self._changed:
            await self._changed.wait_for(lambda: container_id in self.ended)
        return self.ended[container_id]

    async def kill(self, container_id: str, signal: int) -> None:
        await self._called("kill", container_id)
        self.signals.append((container_id, signal))
        if signal == 9 or container_id not in self.deaf:
            await self.end(container_id, Exit(128 + signal, False, NOW))

    async def remove(self, container_id: str) -> None:
        await self._called("remove", container_id)
        self.lose(container_id)

    async def release(self, container_id: str) -> None:
        await self._called("release", container_id)
        self.lose(container_id)

    async def replace_files(self, container_id: str, files: Sequence[tuple[Path, str]]) -> None:
        self.calls.append(("replace_files", container_id))
        for source, target in files:
            self.files[container_id, target] = source.read_bytes()

    async def resize(self, container_id: str, spec: TaskSpec) -> None:
        await self._called("resize", container_id)
        self.limits[container_id] = limits_of(spec)

    def users(self, container_id: str) -> range:
        return range(0)

    async def pause(self, container_id: str) -> None:
        await self._called("pause", container_id)
        self.frozen.add(container_id)

    async def resume(self, container_id: str) -> None:
        await self._called("resume", container_id)
        self.frozen.discard(container_id)

    async def paused(self, container_id: str) -> bool:
        return container_id in self.frozen

    async def list(self) -> frozenset[str]:
        return frozenset(self.made)

    def log_path(self, container_id: str) -> Path:
        return self.logs / container_id / "log"

    async def end(self, container_id: str, exit: Exit) -> None:
        """A container ends by itself."""
        self.running.pop(container_id, None)
        async with self._changed:
            self.ended[container_id] = exit
            self._changed.notify_all()

    def lose(self, container_id: str) -> None:
        """Nothing is left of a container, as after a reboot."""
        for kept in (self.made, self.running, self.ended):
            kept.pop(container_id, None)

    def did(self, method: str) -> list[str]:
        return [container for called, container in self.calls if called == method]


class FakeImages:
    def __init__(self) -> None:
        self.config_of_image = ImageConfig(stop_signal="SIGINT")
        self.missing = False
        self.hold: asyncio.Event | None = None
        self.reason = ""
        """Why it takes so long."""
        self.cancelled = 0

    async def config(self, digest: str) -> ImageConfig | None:
        return None if self.missing else self.config_of_image

    async def prepare(
        self,
        name: str,
        digest: str,
        sources: Sequence[str],
        tell: Callable[[str], None] = lambda reason: None,
    ) -> LocalImage:
        if self.hold is not None:
            if self.reason:
                tell(self.reason)
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            if self.reason:
                tell("")
        if self.missing:
            raise ImageError(f"no node has the image {name}")
        return LocalImage(digest, (Path("/layers/a"),), self.config_of_image)


class FakeNetwork:
    def __init__(self) -> None:
        self.attached: dict[str, str] = {}
        self.taken: set[int] = set()
        self.missing: set[str] = set()
        self.ordered: list[dispatch_pb2.AssignedNetwork] = []
        self.collecting: asyncio.Event | None = None
        """Set once the resources of earlier containers are released."""
        self.awaited = False
        self.hold: asyncio.Event | None = None
        """Containers are connected once this is set."""

    def order(self, networks: Sequence[dispatch_pb2.AssignedNetwork]) -> None:
        self.ordered = list(networks)

    async def ready(self) -> None:
        self.awaited = True
        if self.collecting is not None:
            await self.collecting.wait()

    async def connect(self, task: Task) -> Connected:
        if self.hold is not None:
            await self.hold.wait()
        for port in task.spec.ports:
            if port.published in self.taken:
                raise NetworkError(f"port {port.published} is in use on this node")
        names = [name for name in task.spec.network_names if not stands_alone(name)]
        if self.missing & set(names):
            raise NetworkError("this node has no part of the network")
        self.attached.setdefault(task.id, f"10.128.0.{len(self.attached) + 2}")
        return Connected(Path(f"/netns/{task.id}"), dict.fromkeys(names, self.attached[task.id]))

    async def detach(self, container_id: str) -> None:
        self.attached.pop(container_id, None)


class FakeVolumes:
    def __init__(self) -> None:
        self.attached: set[str] = set()

    async def attach(
        self,
        task: Task,
        volumes: Mapping[str, Volume],
        image: LocalImage,
        tell: Callable[[str], None],
    ) -> tuple[Mount, ...]:
        self.attached.add(task.id)
        return ()

    async def detach(self, task: Task) -> None:
        self.attached.discard(task.id)

    async def retain(self, task_ids: Collection[str]) -> None:
        self.attached &= set(task_ids)


class FakeProbes:
    """Answers that a test has laid out; each probe takes the next, the last one stays."""

    def __init__(self) -> None:
        self.answers: list[ProbeResult] = [ProbeResult(True)]
        self.asked: list[str] = []

    async def probe(
        self, container_id: str, check: HealthCheck, addresses: Mapping[str, str]
    ) -> ProbeResult:
        self.asked.append(container_id)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class FakeHooks:
    """Hooks by their command: those that fail, and those that are held until a test lets go."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        """Each that began."""
        self.ended: list[str] = []
        """One that was cancelled has `!` after it."""
        self.failures: dict[str, str] = {}
        self.hold: dict[str, asyncio.Event] = {}
        self.ending: set[str] = set()
        """Hooks during which the container ends, so that they are killed."""

    async def run(self, container_id: str, hook: Hook) -> str:
        name = " ".join(hook.command)
        self.ran.append(name)
        try:
            if (held := self.hold.get(name)) is not None:
                await held.wait()
        except asyncio.CancelledError:
            self.ended.append(f"{name}!")
            raise
        if name in self.ending:
            raise ContainerEnding
        self.ended.append(name)
        return self.failures.get(name, "")


class Host:
    """What stays when the agent's process dies: the kernel, the disk, the boot."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runtime = FakeRuntime(folder / "runtime")
        self.images = FakeImages()
        self.network = FakeNetwork()
        self.volumes = FakeVolumes()
        self.files = folder / "documents"
        self.files.mkdir(exist_ok=True)
        self.probes = FakeProbes()
        self.hooks = FakeHooks()
        self.boot_id = "boot-1"
        self.tracer: Tracer = OFF

    def backends(self) -> Backends:
        return Backends(
            runtime=self.runtime,
            images=self.images,
            network=self.network,
            volumes=self.volumes,
            files=SecretFiles(self.files),
            probes=self.probes,
            hooks=self.hooks,
            logs=RetainedLogs(self.folder / "logs"),
            log_drivers=LogDrivers(self.folder / "log-drivers", self.folder / "json-logs"),
            boot_id=self.boot_id,
            hostname="host",
            clock=lambda: NOW,
            tracer=self.tracer,
        )

    def reboot(self) -> None:
        for container_id in [*self.runtime.made]:
            self.runtime.lose(container_id)
        self.network.attached.clear()
        shutil.rmtree(self.files)
        self.files.mkdir()
        self.boot_id += "+"


class Reports:
    """A reporter that a test reads: every status that could have been sent, in order."""

    def __init__(self) -> None:
        self.reporter = StatusReporter(lambda: None)
        self.seen: dict[str, list[TaskStatus]] = {}
        put = self.reporter.put

        def record(task_id: str, status: TaskStatus) -> None:
            put(task_id, status)
            self.seen.setdefault(task_id, []).append(status)

        self.reporter.put = record  # type: ignore[method-assign]

    def state(self, task_id: str = "t1") -> TaskState | None:
        return self.seen[task_id][-1].state if task_id in self.seen else None

    def last(self, task_id: str = "t1") -> TaskStatus:
        return self.seen[task_id][-1]
