# SPDX-License-Identifier: Apache-2.0
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
from orchestrator.agent.plugins.plugin_client import OnWait, report_if_slow
from orchestrator.agent.runtime.interface import (
    Container,
    Mount,
    RuntimeFailure,
    Started,
    signal_number,
)
from orchestrator.agent.tasks.backends import Backends
from orchestrator.agent.tasks.lifecycle import keeps_files
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
    """The prepared resources of a container."""

    image: LocalImage
    mounts: tuple[Mount, ...]
    connected: Connected
    beside: str = ""
    """The id of the container whose namespaces it shares."""


def describe_container(
    task: Task, prepared: Prepared, hostname: str, logging: LogConfig | None = None
) -> Container:
    """The container of `task` on the node `hostname`; `logging`: its log driver, with the node's
    defaults."""
    service_env: tuple[str, ...] = ()
    if task.standalone:
        own_hostname = short_id(task.id)
    else:
        own_hostname = task.id
        service_env = (f"ORC_SERVICE_NAME={task.service_name}", f"ORC_TASK_SLOT={task.slot}")
    if prepared.connected.netns is None:
        own_hostname = hostname
    return Container(
        id=task.id,
        name=task.name,
        spec=task.spec,
        image=prepared.image,
        netns=prepared.connected.netns,
        host_network=prepared.connected.netns is None,
        address=next(iter(prepared.connected.addresses.values()), ""),
        nameservers=prepared.connected.nameservers,
        hostname=task.spec.container.hostname or own_hostname,
        env=(
            f"ORC_TASK_ID={task.id}",
            f"ORC_TASK_NAME={task.name}",
            *service_env,
            f"ORC_NODE_HOSTNAME={hostname}",
        ),
        labels=dict(task.spec.container.labels),
        keep=task.standalone,
        mounts=prepared.mounts,
        beside=prepared.beside,
        logging=logging or LogConfig(),
    )


def named_volumes(assigned: dispatch_pb2.AssignedTask) -> dict[str, Volume]:
    """The volumes that an order names, by name."""
    return {volume.id: from_proto(volume) for volume in assigned.volumes}


log = logging.getLogger(__name__)


class TaskResources:
    """The resources of one task; `task` is always its newest order."""

    def __init__(
        self,
        backends: Backends,
        assigned: dispatch_pb2.AssignedTask,
        has_run: Callable[[], bool] = lambda: False,
        running: Callable[[str], Task | None] = lambda word: None,
    ) -> None:
        """`has_run`: whether its program has run; later steps are not traced. `running` finds the
        running task by name or id."""
        self._running = running
        self._backends = backends
        self._has_run = has_run
        self._prepared: Prepared | None = None
        self.assign(assigned)

    def assign(self, assigned: dispatch_pb2.AssignedTask) -> None:
        """Take the resources of a new order."""
        self._sources = tuple(assigned.image_sources)
        """HOST:PORT of the nodes that have its image."""
        self.volumes: Mapping[str, Volume] = named_volumes(assigned)
        """Its named volumes."""
        self.files: tuple[documents_pb2.AssignedFile, ...] = tuple(assigned.files)
        """Its secrets and configs."""
        self._trace = assigned.trace
        """The trace context of its start."""

    def _step(self, name: str, image: str = "") -> AbstractContextManager[str]:
        """A span of its start."""
        place = "" if self._has_run() else self._trace
        return self._backends.tracer.span(name, place, image=image)

    def with_health(self, status: TaskStatus, health: Health, output: str) -> TaskStatus:
        """The status with a new health."""
        now = self._backends.clock()
        if status.health is Health.STARTING and health is not Health.STARTING:
            error = "" if health is Health.HEALTHY else output
            began = status.started_at
            self._backends.tracer.record("first health", began, now, self._trace, error=error)
        return replace(status, health=health, health_output=output, at=now)

    async def pull(
        self, task: Task, on_wait: Callable[[str], None] = lambda reason: None
    ) -> LocalImage:
        """Return the task's image, pulling it if this node lacks it. Safe to cancel. `on_wait` gets
        the reason while the pull waits. Raises ImageError."""
        if self._prepared is not None:
            return self._prepared.image
        spec = task.spec.container
        if spec.rootfs:
            return NO_IMAGE
        with self._step("pull", image=spec.image):
            return await self._backends.images.prepare(
                spec.image, task.image_digest, self._sources, on_wait
            )

    async def _config(self, task: Task) -> ImageConfig:
        """The configuration of its image, empty if this node lacks it: a container that runs or
        stops never waits for an image. Raises OSError."""
        if self._prepared is not None:
            return self._prepared.image.config
        digest = "" if task.spec.container.rootfs else task.image_digest
        found = await self._backends.images.config(digest) if digest else None
        return found or ImageConfig()

    async def health_check(self, task: Task) -> HealthCheck | None:
        """Its health check, None without one. Safe to cancel. Raises OSError."""
        # The task's own health check applies even if the image was removed while it runs.
        return effective(task.spec.container.health, (await self._config(task)).health)

    async def stop_signal(self, task: Task) -> int:
        """The signal that stops it: of the order, else the spec, else the image, else SIGTERM."""
        name = task.stop_signal or task.spec.container.stop_signal
        if not name:
            try:
                name = (await self._config(task)).stop_signal
            except OSError as error:
                log.warning(
                    "image cannot be read; stopping its container with SIGTERM",
                    extra={"task": task.id, "error": str(error)},
                )
        return signal_number(name or "SIGTERM")

    async def mount(self, task: Task, image: LocalImage, on_wait: OnWait) -> tuple[Mount, ...]:
        """Mount its volumes; `on_wait` gets the plugin that it waits for. Safe to cancel. Raises
        VolumeError."""
        with self._step("volumes"):
            return await self._backends.volumes.attach(task, self.volumes, image, on_wait)

    async def connect(
        self, task: Task, image: LocalImage, mounts: tuple[Mount, ...], on_wait: OnWait
    ) -> None:
        """Allocate its user ids, write its files and connect its networks; then its container can
        be created. `on_wait` gets the networks that it waits for."""
        # Before that, namespaces without a known container are removed.
        await self._backends.network.ready()
        with self._step("files"):
            beside = self._joined_container(task)
            await self._backends.runtime.reserve(task.id, task.spec, beside)
            users = self._backends.runtime.users(task.id)
            files = self._backends.files.place(task.id, self.files, users)
        networks = ", ".join(each.network for each in task.spec.attachments)
        with self._step("network"), report_if_slow(on_wait, f"not yet connected to {networks}"):
            connected = await self._backends.network.connect(task)
        self._prepared = Prepared(image, (*mounts, *files), connected, beside)

    def _joined_container(self, task: Task) -> str:
        """The id of the container whose namespaces it shares. Raises RuntimeFailure."""
        word = namespace_container(task.spec.container)
        if not word:
            return ""
        neighbour = self._running(word)
        if neighbour is None:
            raise RuntimeFailure(f"container {word}, whose namespaces it shares, is not running")
        if reason := not_shared(task.spec.container, neighbour.spec.container):
            raise RuntimeFailure(reason)
        return neighbour.id

    def with_addresses(self, status: TaskStatus) -> TaskStatus:
        """The status with its addresses by network, if it is connected."""
        if self._prepared is None:
            return status
        return _with_addresses(status, self._prepared.connected)

    async def reconnect(self, task: Task, status: TaskStatus) -> TaskStatus:
        """Connect its running container to the networks of the newest order, and to no others.
        Returns the status with its new addresses. Raises NetworkError."""
        return _with_addresses(status, await self._backends.network.connect(task))

    def has_outdated_files(self, task: Task) -> bool:
        """Whether secrets or configs of its container differ from the newest order."""
        return bool(self._backends.files.stale(task.id, self.files))

    async def replace_files(self, task: Task) -> None:
        """Replace outdated files of its running container and send the signals of the order. Safe
        to repeat: a signal may be sent twice. Raises RuntimeFailure, FileError."""
        files, runtime = self._backends.files, self._backends.runtime
        new = files.renew(task.id, self.files, runtime.users(task.id))
        await runtime.replace_files(task.id, [(each.source, each.file.target) for each in new])
        for number in sorted({each.file.signal for each in new if each.file.signal}):
            await runtime.kill(task.id, number)
        files.settle(task.id, self.files)

    async def create(self, task: Task) -> None:
        """Create its container, without starting its process."""
        assert self._prepared is not None
        logging = self._backends.log_drivers.prepare(task, self._prepared.image.digest)
        container = describe_container(task, self._prepared, self._backends.hostname, logging)
        with self._step("create"):
            await self._backends.runtime.create(container)

    async def start(self, task: Task) -> Started:
        """Create its container unless it exists, and start its process."""
        await self.create(task)
        with self._step("start"):
            return await self._backends.runtime.start(task.id)

    async def remove_container(self, task: Task) -> bool:
        """Remove the container; one that may run again keeps its files. Returns whether nothing is
        left."""
        runtime = self._backends.runtime
        if keeps_files(task):
            await runtime.release(task.id)
            return False
        try:
            self._backends.logs.keep(task.id, runtime.log_path(task.id))
        except OSError as error:
            # On a full disk, only the removal of the container frees space.
            log.warning(
                "container log cannot be retained", extra={"task": task.id, "error": str(error)}
            )
        await runtime.remove(task.id)
        return True

    async def discard(self, task: Task) -> bool:
        """Remove what `release` kept. Returns whether nothing is left."""
        gone = await self.remove_container(task)
        if gone:
            # Its anonymous volumes were kept as long as it might run again.
            await self._backends.volumes.detach(task)
        return gone

    async def release(self, task: Task) -> bool:
        """Release everything, except for what `remove_container` keeps. Returns whether nothing is
        left."""
        gone = await self.remove_container(task)
        await self._backends.network.detach(task.id)
        await self._backends.volumes.detach(task)
        self._backends.files.remove(task.id)
        self._prepared = None
        return gone


def _with_addresses(status: TaskStatus, connected: Connected) -> TaskStatus:
    return replace(
        status,
        addresses=dict(connected.addresses),
        addresses6=dict(connected.addresses6),
    )
