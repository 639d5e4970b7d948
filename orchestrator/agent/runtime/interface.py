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
    """The container could not be made or driven; the text is one line for the user."""

    def __init__(self, text: str, exit_code: int = 0) -> None:
        """`exit_code` is what a shell would give for a program that cannot be run; 0: it is not
        about that."""
        super().__init__(text)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Mount:
    """Something of the node, or a tmpfs, to be mounted in a container."""

    target: str
    source: str = ""
    """Path on the node; empty: a tmpfs."""
    read_only: bool = False
    propagation: str = ""
    """As mount_namespaces(7) has it; empty: rprivate."""
    recursive: bool = True
    """What is mounted below the source comes along."""
    owned: bool = False
    """A volume: its files have owners as the container sees them, whatever ids its user
    namespace has on the host."""
    tmpfs: tuple[str, ...] = ()
    """Options of a tmpfs."""
    flags: tuple[str, ...] = ()
    """Further options of a bind mount, such as `nosuid`."""
    exact: bool = False
    """A file that has on the host the ids of whom it belongs to in the container, so that none are
    mapped; it is data, and not to be run."""


@dataclass(frozen=True, slots=True)
class Container:
    """All that a container is made from. `id` is the task's id, so every action is idempotent."""

    id: str
    name: str
    """What the user calls it, such as `web.3`."""
    spec: TaskSpec
    image: LocalImage
    netns: Path | None
    """The bind-mounted network namespace to join; None: an empty one of its own."""
    host_network: bool = False
    """The node's own network namespace in place of any other."""
    address: str = ""
    """Its IP on its first network, for /etc/hosts."""
    hostname: str = ""
    env: tuple[str, ...] = ()
    """What the node tells it, as `KEY=value`; the image and the spec may say otherwise."""
    nameservers: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    keep: bool = False
    """Its writable layer and logs outlive a run: they go with `remove` only."""
    mounts: tuple[Mount, ...] = ()
    """Besides those that every container has; one a target."""
    logging: LogConfig = field(default_factory=LogConfig)
    """Logging driver and options, with the node's defaults filled in."""
    beside: str = ""
    """The container whose users it shares, and whose PID and IPC namespaces as its spec says; by
    its id."""


@dataclass(frozen=True, slots=True)
class Started:
    """A running container's first process, identified so that a reused pid is noticed."""

    pid: int
    started_at: float


@dataclass(frozen=True, slots=True)
class Exit:
    """How a container ended."""

    code: int
    """0 to 255; 128 + n when signal n ended it; -1 when its monitor was lost and nobody knows."""
    oom_killed: bool
    finished_at: float
    message: str = ""
    """More than the code says, such as `the container's monitor died`."""


class Runtime(Protocol):
    """Makes, starts, watches and removes containers. Every method may be called again after a
    crash at any point and goes on from what is there."""

    async def reserve(self, container_id: str, spec: TaskSpec, beside: str = "") -> None:
        """Take what must be there before the network is: the container's user ids, which are those
        of the container that it is `beside`, and a network namespace that belongs to its users.
        `remove` gives the ids back."""
        ...

    async def create(self, container: Container) -> None:
        """Mount the root, write the bundle, start the monitor, create the container."""
        ...

    async def start(self, container_id: str) -> Started:
        """Start the created container's process. A running one is left as it is."""
        ...

    async def adopt(self, container_id: str) -> Started | Exit | None:
        """What is there of a container made by an earlier agent: running, ended, or nothing that
        can be used, such as one that was never started (then it must be removed)."""
        ...

    async def wait(self, container_id: str) -> Exit:
        """Until the container has ended, however it does, its monitor's death included."""
        ...

    async def kill(self, container_id: str, signal: int) -> None:
        """Send a signal to the container's first process; SIGKILL goes to every process in it.
        Succeeds when it has ended."""
        ...

    async def remove(self, container_id: str) -> None:
        """Kill what is left and remove container, mounts, folders, cgroups. Idempotent."""
        ...

    async def release(self, container_id: str) -> None:
        """Kill what is left and remove all but the writable layer and the logs, with which
        `create` goes on. Idempotent."""
        ...

    async def replace_files(self, container_id: str, files: Sequence[tuple[Path, str]]) -> None:
        """Mount other files of the node at paths of a running container where it has files mounted,
        so that whoever opens one finds the old or the new."""
        ...

    async def resize(self, container_id: str, spec: TaskSpec) -> None:
        """Enforce the limits of `spec` on a running container, without a restart. If any of them
        cannot be set, all stay as they were. Idempotent."""
        ...

    def users(self, container_id: str) -> range:
        """The host's ids that are 0 and on in the container, once they are reserved; none if it
        has the host's users."""
        ...

    async def pause(self, container_id: str) -> None:
        """Freeze every process of a running container."""
        ...

    async def resume(self, container_id: str) -> None:
        """Let a paused container go on. One that is not paused is left as it is."""
        ...

    async def paused(self, container_id: str) -> bool:
        """Whether the container is frozen."""
        ...

    async def list(self) -> frozenset[str]:
        """Ids of all containers of which anything is left on this node."""
        ...

    def logging(self, container_id: str) -> LogConfig:
        """The logging driver and options that a container was created with; none of it if there is
        no such container."""
        ...

    def log_path(self, container_id: str) -> Path:
        """The newest log file; rotated ones stand beside it as `.1`, `.2`, …"""
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
    """The signal that asks this container to end: the spec's, else the image's, else SIGTERM."""
    chosen = container.spec.container.stop_signal or container.image.config.stop_signal
    return signal_number(chosen or "SIGTERM")
