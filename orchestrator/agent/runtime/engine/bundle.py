# SPDX-License-Identifier: Apache-2.0
"""A container on this node: its folders, the records in them, and a handle to reach it by.

The records make every step resumable.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.agent.runtime.engine import conmon
from orchestrator.agent.runtime.interface import Exit, RuntimeFailure, Started
from orchestrator.agent.runtime.isolation.idranges import IdRange
from orchestrator.agent.runtime.isolation.rootfs import ensure_unmounted
from orchestrator.agent.runtime.resources.cgroups import Cgroups
from orchestrator.linux.atomicfile import write_file
from orchestrator.linux.loopdisk import (
    DiskError,
    ensure_disk,
    ensure_unmounted_disk,
    is_disk,
    mount_point,
)
from orchestrator.linux.processes import ProcessIdentity
from orchestrator.linux.threads import KeyedThreads
from orchestrator.linux.trees import remove_tree
from orchestrator.model.specs import LogConfig

_IDENTITY = "identity"
_STARTED = "started"
_RESULT = "result"
_RUNTIME = "runtime"
_LIMITS = "limits"
_LOGGING = "logging"


@dataclass(frozen=True, slots=True)
class Identity:
    """The two processes of a created container, recorded once both exist."""

    boot: str
    container: ProcessIdentity
    monitor: ProcessIdentity


@dataclass(frozen=True, slots=True)
class Bundle:
    """The folders and records of one container. Records are written atomically."""

    run: Path
    """The OCI bundle; ends with the boot."""
    state: Path
    """The writable layer, the logs, and the files for `/etc`."""

    @property
    def root(self) -> Path:
        """The mount point of the container's root."""
        return self.run / "rootfs"

    @property
    def maps(self) -> Path:
        """Where idmapped layers are mounted while the root is assembled."""
        return self.run / "maps"

    @property
    def shm(self) -> Path:
        """Where another container's /dev/shm is mounted while this one is created."""
        return self.run / "shm"

    @property
    def upper(self) -> Path:
        """The writable layer."""
        return self._layer / "upper"

    @property
    def work(self) -> Path:
        """The overlay's work folder."""
        return self._layer / "work"

    @property
    def devices(self) -> Path:
        """Device nodes to bind mount."""
        return self.state / "devices"

    @property
    def log(self) -> Path:
        """The newest log file."""
        return self.state / conmon.LOG

    def exists(self) -> bool:
        """Whether any of its files exist."""
        return os.path.lexists(self.run) or os.path.lexists(self.state)

    @property
    def _layer(self) -> Path:
        return mount_point(self.state) if is_disk(self.state) else self.state

    async def ensure(self, storage_size: int, *, durable: bool, ids: IdRange | None = None) -> None:
        """Make the folders, the writable layer on a disk image of `storage_size` bytes unless that
        is 0; `durable`: it must survive a power loss. A container with a user namespace, `ids`, is
        allowed to traverse to its root.

        Raises RuntimeFailure.
        """
        for folder in (self.run, self.root, self.maps, self.state):
            folder.mkdir(exist_ok=True, mode=0o700)
        if storage_size:
            try:
                await ensure_disk(self.state, storage_size, durable=durable)
            except DiskError as error:
                raise RuntimeFailure(f"the container's storage: {error}") from error
        for folder in (self.upper, self.work):
            folder.mkdir(exist_ok=True, mode=0o700)
        # The mode of the container's `/`, independent of the agent's umask.
        self.upper.chmod(0o755)
        (self.run / conmon.STATE_LINK).symlink_to(self.state)
        if ids is not None:
            os.chown(self.run, -1, ids.first)
            self.run.chmod(0o710)

    def write_texts(self, config: str, etc: Mapping[str, str], ids: IdRange | None = None) -> None:
        """Write the configuration and the files for `/etc`, which the container's root owns."""
        for name, text in etc.items():
            path = self.state / name
            path.write_text(text)
            path.chmod(0o644)
            if ids is not None:
                os.chown(path, ids.first, ids.first)
        (self.run / "config.json").write_text(config)

    def identity(self) -> Identity | None:
        """The container's processes; None before it is created."""
        record = self._read(_IDENTITY)
        if record is None:
            return None
        return Identity(
            record["boot"],
            ProcessIdentity(**record["container"]),
            ProcessIdentity(**record["monitor"]),
        )

    def write_identity(self, identity: Identity) -> None:
        """Record that the container is created."""
        self._write(_IDENTITY, asdict(identity))

    def started(self) -> Started | None:
        """Its start; None before."""
        record = self._read(_STARTED)
        return None if record is None else Started(**record)

    def write_started(self, started: Started) -> None:
        """Record that the container's program was started."""
        self._write(_STARTED, asdict(started))

    def result(self) -> Exit | None:
        """Its recorded exit; None before."""
        record = self._read(_RESULT)
        return None if record is None else Exit(**record)

    def write_result(self, ended: Exit) -> None:
        """Record its exit, which is final."""
        self._write(_RESULT, asdict(ended))

    def runtime(self) -> str | None:
        """The OCI runtime that it requested; None: the node's default."""
        try:
            return (self.run / _RUNTIME).read_text()
        except FileNotFoundError:
            return None

    def write_runtime(self, program: str) -> None:
        """Record its OCI runtime, before its first use."""
        (self.run / _RUNTIME).write_text(program)

    def limits(self) -> dict[str, Any] | None:
        """The limits in force, as `limits.changes` returns them; None: unknown."""
        return self._read(_LIMITS)

    def write_limits(self, limits: Mapping[str, Any]) -> None:
        """Record the limits in force."""
        self._write(_LIMITS, limits)

    def forget_limits(self) -> None:
        """Record that the limits in force are unknown."""
        (self.run / _LIMITS).unlink(missing_ok=True)

    def logging(self) -> LogConfig:
        """Its logging driver and options."""
        record = self._read(_LOGGING)
        return LogConfig() if record is None else LogConfig(record["driver"], record["options"])

    def write_logging(self, config: LogConfig) -> None:
        """Record its logging driver and options, before its monitor starts."""
        record = {"driver": config.driver, "options": config.options}
        (self.run / _LOGGING).write_text(json.dumps(record))

    def exit_status(self) -> tuple[int, float] | None:
        """What the monitor wrote: the status, and its time (seconds of the epoch)."""
        try:
            with open(self.run / conmon.EXIT) as file:
                return int(file.read()), os.fstat(file.fileno()).st_mtime
        except (FileNotFoundError, ValueError):
            return None

    def discard(self) -> None:
        """Unmount the root and remove both folders. Raises RuntimeFailure."""
        self._unmount()
        try:
            ensure_unmounted_disk(self.state)
        except OSError as error:
            raise RuntimeFailure(
                f"the container's storage cannot be unmounted ({error.strerror})"
            ) from error
        remove_tree(self.state)
        remove_tree(self.run)

    def release(self) -> None:
        """Unmount the root and remove all but the writable layer and the logs. Raises
        RuntimeFailure."""
        self._unmount()
        remove_tree(self.work)
        remove_tree(self.run)

    def _unmount(self) -> None:
        for place in (self.root, self.maps, self.shm):
            ensure_unmounted(place)
            try:
                # Not by a recursive removal, which would empty a layer that is still mounted.
                place.rmdir()
            except FileNotFoundError:
                pass
            except OSError as error:
                raise RuntimeFailure(
                    f"the container's root {place} is still in use ({error.strerror})"
                ) from error
        # Records go first, so that a partially removed container is not taken for a complete one.
        for record in (_RESULT, _STARTED, _IDENTITY):
            (self.run / record).unlink(missing_ok=True)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = json.loads((self.run / name).read_bytes())
        except FileNotFoundError:
            return None
        return record

    def _write(self, name: str, record: Mapping[str, Any]) -> None:
        write_file(self.run / name, json.dumps(record))


@dataclass(frozen=True, slots=True)
class ContainerHandle:
    """Access to one container from outside: its folders, records and cgroups."""

    container_id: str
    bundle: Bundle
    runtime: tuple[str, ...]
    """The OCI runtime's command with its global options."""
    cgroups: Cgroups
    boot: str
    file_threads: KeyedThreads
    """For reading the container's files, by its id: its file systems may not respond."""

    def running(self) -> ProcessIdentity:
        """The first process of the running container. Raises RuntimeFailure if it does not run."""
        identity = self.bundle.identity()
        if self.bundle.started() is None or identity is None:
            raise RuntimeFailure("the container is not running; see 'orc ps -a'")
        if identity.boot != self.boot or not identity.container.alive():
            raise RuntimeFailure("the container is not running any more; see 'orc ps -a'")
        return identity.container

    def user(self) -> tuple[int, int]:
        """The user and group id of its program, as the container sees them."""
        text = (self.bundle.run / "config.json").read_bytes()
        user = json.loads(text)["process"]["user"]
        return user["uid"], user["gid"]

    def pids(self) -> list[int]:
        """All its processes."""
        return self.cgroups.pids(self.container_id)

    def process(self) -> ProcessIdentity | None:
        """The first process, before or after it executed the container's program; None when there
        is none."""
        identity = self.bundle.identity()
        if identity is None or identity.boot != self.boot or not identity.container.alive():
            return None
        return identity.container

    def root(self) -> Path:
        """The container's root as its processes see it, with all mounts; if it does not run, the
        mounted root file system. Raises RuntimeFailure when there is none."""
        try:
            return Path(f"/proc/{self.running().pid}/root")
        except RuntimeFailure:
            if self.bundle.root.is_mount():
                return self.bundle.root
            raise
