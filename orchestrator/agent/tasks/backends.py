# SPDX-License-Identifier: Apache-2.0
"""The backends of tasks as protocols, and the errors that they raise, one line for users.

The real ones are `images.pulls.ImagePuller`, `network.reconciler.NetworkReconciler` and
`runtime.engine.crun.CrunRuntime`; tests bring scripted ones. Each method may be called again after
a crash at any point.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.images.image_spec import ImageConfig, LocalImage
from orchestrator.agent.logs.log_drivers import LogDrivers
from orchestrator.agent.logs.retained_logs import RetainedLogs
from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.reconciler import Connected
from orchestrator.agent.runtime.interface import Mount, Runtime, RuntimeFailure
from orchestrator.agent.tasks.health_checks import Prober
from orchestrator.agent.tasks.secret_files import FileError, Replaced
from orchestrator.agent.volumes.volume_errors import VolumeError
from orchestrator.model.hooks import Hook
from orchestrator.model.objects import Volume
from orchestrator.model.tasks import Task
from orchestrator.pb import dispatch_pb2, documents_pb2
from orchestrator.tracing.spans import OFF, Tracer


class Images(Protocol):
    """Makes images ready to run from (`images.pulls.ImagePuller`)."""

    async def prepare(
        self,
        name: str,
        digest: str,
        sources: Sequence[str],
        on_wait: Callable[[str], None] = lambda reason: None,
    ) -> LocalImage:
        """Return the image `digest`, pulling it from one of `sources` (HOST:PORT) if this node
        lacks it. `name` is the reference of the spec. `on_wait` gets the reason while it waits,
        and an empty string when it proceeds. Raises ImageError."""
        ...

    async def config(self, digest: str) -> ImageConfig | None:
        """The configuration of an image, None if this node lacks it. Raises OSError."""
        ...


class Network(Protocol):
    """Connects containers (`network.reconciler.NetworkReconciler`)."""

    def order(self, networks: Sequence[dispatch_pb2.AssignedNetwork]) -> None: ...

    async def ready(self) -> None: ...

    async def connect(self, task: Task) -> Connected: ...

    async def detach(self, container_id: str) -> None: ...


class Volumes(Protocol):
    """Mounts volumes (`volumes.task_volumes.TaskVolumes`)."""

    async def attach(
        self,
        task: Task,
        volumes: Mapping[str, Volume],
        image: LocalImage,
        on_wait: Callable[[str], None],
    ) -> tuple[Mount, ...]: ...

    async def detach(self, task: Task) -> None: ...

    async def retain(self, task_ids: Collection[str]) -> None: ...


class Files(Protocol):
    """Keeps secrets and configs (`secret_files.SecretFiles`)."""

    def take(self, payload: documents_pb2.Payload) -> None: ...

    def retain(self, keys: Collection[str], *, assigned: bool) -> None: ...

    def retain_tasks(self, task_ids: Collection[str]) -> None: ...

    def missing(self, files: Iterable[documents_pb2.AssignedFile]) -> str: ...

    async def wait(self, files: Sequence[documents_pb2.AssignedFile]) -> None: ...

    def place(
        self, task_id: str, files: Sequence[documents_pb2.AssignedFile], users: range
    ) -> tuple[Mount, ...]: ...

    def stale(
        self, task_id: str, files: Sequence[documents_pb2.AssignedFile]
    ) -> list[documents_pb2.AssignedFile]: ...

    def renew(
        self, task_id: str, files: Sequence[documents_pb2.AssignedFile], users: range
    ) -> list[Replaced]: ...

    def settle(self, task_id: str, files: Sequence[documents_pb2.AssignedFile]) -> None: ...

    def remove(self, task_id: str) -> None: ...


class Hooks(Protocol):
    """Runs programs in running containers and waits for them (`lifecycle_hooks.Hooks`)."""

    async def run(self, container_id: str, hook: Hook) -> str:
        """Run a hook. Returns why it failed; empty: it succeeded. Raises ContainerEnding."""
        ...


class ContainerEnding(Exception):
    """A hook did not succeed because the container has ended, or is about to."""


@dataclass(frozen=True, slots=True)
class Backends:
    """What a runner works with."""

    runtime: Runtime
    images: Images
    network: Network
    volumes: Volumes
    files: Files
    probes: Prober
    hooks: Hooks
    logs: RetainedLogs
    log_drivers: LogDrivers
    boot_id: str
    hostname: str
    """Of this node; passed to containers."""
    clock: Callable[[], float] = field(default=time.time)
    tracer: Tracer = OFF


CONTAINER_ERRORS = (RuntimeFailure, ImageError, NetworkError, VolumeError, FileError)
"""Errors that say why a container cannot be created or started."""
EXPECTED_ERRORS = (*CONTAINER_ERRORS, OSError)


def root_cause(error: Exception) -> Exception:
    """The first error of an exception group."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def error_message(error: Exception) -> str:
    """An error in one line for users."""
    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, EXPECTED_ERRORS):
        return str(error)
    return f"internal error of the agent: {type(error).__name__}: {error}"
