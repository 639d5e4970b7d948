"""The resources of one task on its node: image, volumes, user ids, network, container.

They are acquired in that order and released in reverse. Each method may be repeated after a crash
at any point, since the backends create and remove by name. The runner decides when (`runner`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from orchestrator.agent.images.image_spec import NO_IMAGE, ImageConfig, LocalImage
from orchestrator.agent.network.reconciler import Connected
from orchestrator.agent.plugins.plugin_client import Tell, announced
from orchestrator.agent.runtime.interface import (
    Container,
    Mount,
    RuntimeFailure,
    Started,
    signal_number,
)
from orchestrator.agent.tasks.backends import Backends
from orchestrator.agent.tasks.lifecycle import keeps
from orchestrator.model.convert import from_proto
from orchestrator.model.names import short_id
from orchestrator.model.objects import Volume
from orchestrator.model.specs import HealthCheck, LogConfig
from orchestrator.model.tasks import Health, Task, TaskStatus
from orchestrator.model.validation.health_checks import effective
from orchestrator.model.validation.shared_namespaces import namespace_container, not_shared
from orchestrator.pb import dispatch_pb2, documents_pb2


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a container needs, made ready on this node."""

    image: LocalImage
    mounts: tuple[Mount, ...]
    connected: Connected
    beside: str = ""
    """The container whose namespaces it shares, by its id."""


def describe_container(
    task: Task, made: Prepared, hostname: str, logging: LogConfig | None = None
) -> Container:
    """The container of `task` on the node called `hostname`; `logging`: its driver, with the
    node's defaults filled in."""
    told: tuple[str, ...] = ()
    if task.standalone:
        own_hostname = short_id(task.id)
    else:
        own_hostname = task.id
        told = (f"ORC_SERVICE_NAME={task.service_name}", f"ORC_TASK_SLOT={task.slot}")
    if made.connected.netns is None:
        own_hostname = hostname
    return Container(
        id=task.id,
        name=task.name,
        spec=task.spec,
        image=made.image,
        netns=made.connected.netns,
        host_network=made.connected.netns is None,
        address=next(iter(made.connected.addresses.values()), ""),
        nameservers=made.connected.nameservers,
        hostname=task.spec.container.hostname or own_hostname,
        env=(
            f"ORC_TASK_ID={task.id}",
            f"ORC_TASK_NAME={task.name}",
            *told,
            f"ORC_NODE_HOSTNAME={hostname}",
        ),
        labels=dict(task.spec.container.labels),
        keep=task.standalone,
        mounts=made.mounts,
        beside=made.beside,
        logging=logging or LogConfig(),
    )


def named_volumes(assigned: dispatch_pb2.AssignedTask) -> dict[str, Volume]:
    """The volumes that an order names, by name."""
    return {volume.id: from_proto(volume) for volume in assigned.volumes}


log = logging.getLogger(__name__)


class TaskResources:
    """The things of one task; `task` is always its newest order."""

    def __init__(
        self,
        parts: Backends,
        assigned: dispatch_pb2.AssignedTask,
        begun: Callable[[], bool] = lambda: False,
        running: Callable[[str], Task | None] = lambda word: None,
    ) -> None:
        """`begun`: whether its program has run already; what is done then is in no trace.
        `running`: the running task that a word means."""
        self._running = running
        self._parts = parts
        self._begun = begun
        self._prepared: Prepared | None = None
        self.take(assigned)

    def take(self, assigned: dispatch_pb2.AssignedTask) -> None:
        """Note what a new order says of what the task is to have."""
        self._sources = tuple(assigned.image_sources)
        """HOST:PORT of the nodes that have its image."""
        self.volumes: Mapping[str, Volume] = named_volumes(assigned)
        """Its named volumes."""
        self.files: tuple[documents_pb2.AssignedFile, ...] = tuple(assigned.files)
        """Its secrets and configs."""
        self._trace = assigned.trace
        """The place in a trace of its beginning."""

    def _step(self, name: str, image: str = "") -> AbstractContextManager[str]:
        """A span of its beginning."""
        place = "" if self._begun() else self._trace
        return self._parts.tracer.span(name, place, image=image)

    def judged(self, status: TaskStatus, health: Health, output: str) -> TaskStatus:
        """The status with what its probes say of its health now."""
        now = self._parts.clock()
        if status.health is Health.STARTING and health is not Health.STARTING:
            error = "" if health is Health.HEALTHY else output
            began = status.started_at
            self._parts.tracer.record("first health", began, now, self._trace, error=error)
        return replace(status, health=health, health_output=output, at=now)

    async def image(
        self, task: Task, tell: Callable[[str], None] = lambda reason: None
    ) -> LocalImage:
        """Return the task's image, pulling it if this node lacks it. Safe to cancel. `tell` gets
        the reason while the pull waits. Raises ImageError."""
        if self._prepared is not None:
            return self._prepared.image
        spec = task.spec.container
        if spec.rootfs:
            return NO_IMAGE
        with self._step("pull", image=spec.image):
            return await self._parts.images.prepare(
                spec.image, task.image_digest, self._sources, tell
            )

    async def _config(self, task: Task) -> ImageConfig:
        """What its image says, as far as this node has it: what runs, or is to stop, never waits
        for an image. Raises OSError."""
        if self._prepared is not None:
            return self._prepared.image.config
        digest = "" if task.spec.container.rootfs else task.image_digest
        found = await self._parts.images.config(digest) if digest else None
        return found or ImageConfig()

    async def health(self, task: Task) -> HealthCheck | None:
        """How its health is seen, None when it is not. It may be cut short. Raises OSError."""
        # What the task says itself holds also where the image is gone while the container runs.
        return effective(task.spec.container.health, (await self._config(task)).health)

    async def stop_signal(self, task: Task) -> int:
        """What stops its program: the order's word, else the spec's, else the image's, else
        SIGTERM."""
        name = task.stop_signal or task.spec.container.stop_signal
        if not name:
            try:
                name = (await self._config(task)).stop_signal
            except OSError as error:
                log.warning(
                    "image cannot be read, so SIGTERM stops its container",
                    extra={"task": task.id, "error": str(error)},
                )
        return signal_number(name or "SIGTERM")

    async def mount(self, task: Task, image: LocalImage, tell: Tell) -> tuple[Mount, ...]:
        """Mount its volumes; `tell` is told what keeps it waiting. It may be cut short. Raises
        VolumeError."""
        with self._step("volumes"):
            return await self._parts.volumes.attach(task, self.volumes, image, tell)

    async def connect(
        self, task: Task, image: LocalImage, mounts: tuple[Mount, ...], tell: Tell
    ) -> None:
        """Give it user ids, its files and its networks; then its container can be created. `tell`
        is told what keeps it waiting."""
        # Until then namespaces that nobody is known to hold are taken away.
        await self._parts.network.ready()
        with self._step("files"):
            beside = self._beside(task)
            await self._parts.runtime.reserve(task.id, task.spec, beside)
            users = self._parts.runtime.users(task.id)
            files = self._parts.files.place(task.id, self.files, users)
        networks = ", ".join(each.network for each in task.spec.attachments)
        with self._step("network"), announced(tell, f"not yet connected to {networks}"):
            connected = await self._parts.network.connect(task)
        self._prepared = Prepared(image, (*mounts, *files), connected, beside)

    def _beside(self, task: Task) -> str:
        """The id of the container whose namespaces it shares. Raises RuntimeFailure."""
        word = namespace_container(task.spec.container)
        if not word:
            return ""
        neighbour = self._running(word)
        if neighbour is None:
            raise RuntimeFailure(f"container {word}, whose namespaces it is to share, does not run")
        if reason := not_shared(task.spec.container, neighbour.spec.container):
            raise RuntimeFailure(reason)
        return neighbour.id

    def addressed(self, status: TaskStatus) -> TaskStatus:
        """The status with its addresses by network, once it is connected."""
        if self._prepared is None:
            return status
        return _with_addresses(status, self._prepared.connected)

    async def reconnect(self, task: Task, status: TaskStatus) -> TaskStatus:
        """Have its container, which runs, on the networks that the order names now; the status
        with the addresses that it then has. Raises NetworkError."""
        return _with_addresses(status, await self._parts.network.connect(task))

    def stale(self, task: Task) -> bool:
        """Whether its container has a file in another version than the newest order says."""
        return bool(self._parts.files.stale(task.id, self.files))

    async def refresh(self, task: Task) -> None:
        """Replace the files of its container, which runs, that are stale, and tell its program as
        the order says. Done again if it is cut short: a signal may come twice. Raises
        RuntimeFailure, FileError."""
        files, runtime = self._parts.files, self._parts.runtime
        new = files.renew(task.id, self.files, runtime.users(task.id))
        await runtime.replace_files(task.id, [(each.source, each.file.target) for each in new])
        for number in sorted({each.file.signal for each in new if each.file.signal}):
            await runtime.kill(task.id, number)
        files.settle(task.id, self.files)

    async def create(self, task: Task) -> None:
        """Create its container; its program does not run yet."""
        assert self._prepared is not None
        logging = self._parts.log_drivers.prepare(task, self._prepared.image.digest)
        container = describe_container(task, self._prepared, self._parts.hostname, logging)
        with self._step("create"):
            await self._parts.runtime.create(container)

    async def start(self, task: Task) -> Started:
        """Create its container unless that is done, and let its program run."""
        await self.create(task)
        with self._step("start"):
            return await self._parts.runtime.start(task.id)

    async def clear(self, task: Task) -> bool:
        """Remove the container; one that may run again keeps its files. Whether all is gone."""
        runtime = self._parts.runtime
        if keeps(task):
            await runtime.release(task.id)
            return False
        try:
            self._parts.logs.keep(task.id, runtime.log_path(task.id))
        except OSError as error:
            # A full disk gets room only if the container goes.
            log.warning(
                "log of a container is not kept", extra={"task": task.id, "error": str(error)}
            )
        await runtime.remove(task.id)
        return True

    async def discard(self, task: Task) -> bool:
        """Take away what `release` kept. Whether all is gone."""
        gone = await self.clear(task)
        if gone:
            # Volumes that go with it were kept as long as it might run again.
            await self._parts.volumes.detach(task)
        return gone

    async def release(self, task: Task) -> bool:
        """Give everything back, but for what `clear` keeps. Whether all is gone."""
        gone = await self.clear(task)
        await self._parts.network.detach(task.id)
        await self._parts.volumes.detach(task)
        self._parts.files.remove(task.id)
        self._prepared = None
        return gone


def _with_addresses(status: TaskStatus, connected: Connected) -> TaskStatus:
    return replace(
        status,
        addresses=dict(connected.addresses),
        addresses6=dict(connected.addresses6),
    )
