# SPDX-License-Identifier: Apache-2.0
"""The interface between the agent and a container runtime: containers, their states, errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from orchestrator.agent.images.image_spec import LocalImage
from orchestrator.model import signals
from orchestrator.model.specs import LogConfig, TaskSpec


class RuntimeFailure(Exception):
    """An operation on a container failed; the text is one line for the user."""

    def __init__(self, text: str, exit_code: int = 0) -> None:
        """`exit_code` is a shell's exit status for a program that cannot be run; 0: the failure has
        another cause."""
        super().__init__(text)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Mount:
    """A path of the node, or a tmpfs, to mount in a container."""

    target: str
    source: str = ""
    """Path on the node; empty: a tmpfs."""
    read_only: bool = False
    propagation: str = ""
    """As mount_namespaces(7) has it; empty: rprivate."""
    recursive: bool = True
    """Mounts below the source are included."""
    owned: bool = False
    """A volume: on disk, its files have the owners that the container sees, independent of the host
    ids of its user namespace."""
    tmpfs: tuple[str, ...] = ()
    """Options of a tmpfs."""
    flags: tuple[str, ...] = ()
    """Further options of a bind mount, such as `nosuid`."""
    exact: bool = False
    """A data file, not executable, that already has the host ids of its owner in the container, so
    that no ids are mapped."""


@dataclass(frozen=True, slots=True)
class Container:
    """All input of a container's creation. `id` is the task's id, so every action is idempotent."""

    id: str
    name: str
    """Its name for users, such as `web.3`."""
    spec: TaskSpec
    image: LocalImage
    netns: Path | None
    """The bind-mounted network namespace to join; None: an empty one of its own."""
    host_network: bool = False
    """Use the node's network namespace instead."""
    address: str = ""
    """Its IP on its first network, for /etc/hosts."""
    hostname: str = ""
    env: tuple[str, ...] = ()
    """Variables from the node, as `KEY=value`; image and spec override them."""
    nameservers: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    keep: bool = False
    """Its writable layer and logs survive a run; only `remove` deletes them."""
    mounts: tuple[Mount, ...] = ()
    """In addition to those of every container; one per target."""
    logging: LogConfig = field(default_factory=LogConfig)
    """Logging driver and options, with the node's defaults filled in."""
    beside: str = ""
    """The id of the container whose user namespace it shares, and whose PID and IPC namespaces as
    its spec says."""


@dataclass(frozen=True, slots=True)
class Started:
    """A running container's first process."""

    pid: int
    started_at: float


@dataclass(frozen=True, slots=True)
class Exit:
    """How a container ended."""

    code: int
    """0 to 255; 128 + n when signal n ended it; -1: unknown, since its monitor died."""
    oom_killed: bool
    finished_at: float
    message: str = ""
    """Details beyond the code, such as `the container's monitor died`."""


class Runtime(Protocol):
    """Creates, starts, watches and removes containers. Every method may be called again after a
    crash at any point and continues from the state on disk."""

    async def reserve(self, container_id: str, spec: TaskSpec, beside: str = "") -> None:
        """Reserve what the network setup needs: a range of user ids, shared with the container
        `beside` if that is given, and a network namespace that belongs to its user namespace.
        `remove` returns the ids."""
        ...

    async def create(self, container: Container) -> None:
        """Mount the root, write the bundle, start the monitor, create the container."""
        ...

    async def start(self, container_id: str) -> Started:
        """Start the created container's process. No-op for a running one."""
        ...

    async def adopt(self, container_id: str) -> Started | Exit | None:
        """The state of a container of an earlier agent process: running or ended; None when it
        cannot be used, for example because it was never started, and must be removed."""
        ...

    async def wait(self, container_id: str) -> Exit:
        """Wait until the container has ended for any reason, its monitor's death included."""
        ...

    async def kill(self, container_id: str, signal: int) -> None:
        """Send a signal to the container's first process, SIGKILL to all of its processes. No-op
        when it has ended."""
        ...

    async def remove(self, container_id: str) -> None:
        """Kill remaining processes and remove mounts, folders and cgroups. Idempotent."""
        ...

    async def release(self, container_id: str) -> None:
        """As `remove`, but keep the writable layer and the logs, which the next `create` uses.
        Idempotent."""
        ...

    async def replace_files(self, container_id: str, files: Sequence[tuple[Path, str]]) -> None:
        """Replace files of the node that are mounted in a running container, each atomically: a
        process that opens its path finds the old or the new file."""
        ...

    async def resize(self, container_id: str, spec: TaskSpec) -> None:
        """Apply the limits of `spec` to a running container: all of them, or none if one cannot be
        set. Idempotent."""
        ...

    def users(self, container_id: str) -> range:
        """The host's user ids that are 0, 1, … in the container, once they are reserved; empty if
        it has no user namespace."""
        ...

    async def pause(self, container_id: str) -> None:
        """Freeze every process of a running container."""
        ...

    async def resume(self, container_id: str) -> None:
        """Resume a paused container. No-op for any other."""
        ...

    async def paused(self, container_id: str) -> bool:
        """Whether the container is frozen."""
        ...

    async def list(self) -> frozenset[str]:
        """Ids of all containers that have any trace on this node."""
        ...

    def logging(self, container_id: str) -> LogConfig:
        """The logging driver and options that a container was created with; defaults if there is no
        such container."""
        ...

    def log_path(self, container_id: str) -> Path:
        """The newest log file; rotated ones have the suffixes `.1`, `.2`, …"""
        ...


def signal_number(name: str) -> int:
    """The number of `SIGTERM`, `term`, `15` or `SIGRTMIN+3`.

    Raises RuntimeFailure for anything that is no signal.
    """
    try:
        return signals.signal_number(name)
    except ValueError as error:
        raise RuntimeFailure(str(error)) from None


def stop_signal(container: Container) -> int:
    """The signal that stops this container: the spec's, else the image's, else SIGTERM."""
    chosen = container.spec.container.stop_signal or container.image.config.stop_signal
    return signal_number(chosen or "SIGTERM")
