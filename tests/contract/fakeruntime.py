# SPDX-License-Identifier: Apache-2.0
"""A scripted runtime for tests: the behaviour of a container is set before its creation."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from orchestrator.agent.runtime.engine.crun import MONITOR_DIED, OUT_OF_MEMORY
from orchestrator.agent.runtime.interface import Container, Exit, RuntimeFailure, Started
from orchestrator.model.limits import Limits, limits_of
from orchestrator.model.specs import LogConfig, TaskSpec


@dataclass(frozen=True, slots=True)
class Script:
    """The behaviour of one container."""

    run_for: float | None = None
    """Seconds until it exits; None: it runs until it is killed."""
    exit_code: int = 0
    oom_killed: bool = False
    ignores: frozenset[int] = frozenset()
    """Signals that do not end it."""
    fail_at: str = ""
    """The step that raises: `create`, `start`, `kill` or `remove`."""
    failure: str = "scripted failure"
    """The text of that error."""


@dataclass(slots=True)
class FakeContainer:
    """The state of a container."""

    container: Container
    started: Started | None = None
    ended: Exit | None = None
    ends_at: float | None = None
    paused: bool = False
    limits: Limits | None = None
    """Those that were set since it was made."""


@dataclass(slots=True)
class FakeNode:
    """What outlives a runtime, as kernel and disk do: share it between two for a restart."""

    logs: Path
    containers: dict[str, FakeContainer] = field(default_factory=dict)
    scripts: dict[str, Script] = field(default_factory=dict)
    """By container id; one without a script runs until it is killed."""
    pids: int = 1000
    layers: set[str] = field(default_factory=set)
    """Ids of containers whose writable layer is there."""
    replaced: dict[str, list[tuple[Path, str]]] = field(default_factory=dict)
    """By container id: the files that took the place of others while it ran."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def script(self, container_id: str) -> Script:
        """The script of a container."""
        return self.scripts.get(container_id, Script())

    def end(
        self, container_id: str, code: int, *, oom_killed: bool = False, message: str = ""
    ) -> None:
        """End a container now, as if it did so itself."""
        found = self.containers[container_id]
        if found.ended is None:
            text = message or (OUT_OF_MEMORY if oom_killed else "")
            found.ended = Exit(code, oom_killed, time.time(), text)
        self.changed.set()
        self.changed = asyncio.Event()

    def lose_monitor(self, container_id: str) -> None:
        """What happens when conmon is killed."""
        self.end(container_id, -1, message=MONITOR_DIED)

    def reboot(self) -> None:
        """All processes and mounts are gone; the folders on disk stay, so ids are still listed."""
        for found in self.containers.values():
            found.started = found.ended = found.ends_at = None


class FakeRuntime:
    """A `Runtime` on a `FakeNode`."""

    def __init__(self, node: FakeNode, *, clock: Callable[[], float] = time.time) -> None:
        self._node = node
        self._clock = clock

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing that runs is stopped."""

    def _step(self, container_id: str, step: str) -> None:
        script = self._node.script(container_id)
        if script.fail_at == step:
            raise RuntimeFailure(script.failure)

    async def reserve(self, container_id: str, spec: TaskSpec, beside: str = "") -> None:
        """See `Runtime.reserve`."""
        self._step(container_id, "reserve")

    async def create(self, container: Container) -> None:
        """See `Runtime.create`."""
        self._step(container.id, "create")
        self._node.containers.setdefault(container.id, FakeContainer(container))
        self._node.layers.add(container.id)

    async def start(self, container_id: str) -> Started:
        """See `Runtime.start`."""
        self._step(container_id, "start")
        found = self._node.containers.get(container_id)
        if found is None:
            raise RuntimeFailure(f"container {container_id} has not been created on this node")
        if found.started is None:
            self._node.pids += 1
            found.started = Started(self._node.pids, self._clock())
            run_for = self._node.script(container_id).run_for
            if run_for is not None:
                found.ends_at = asyncio.get_running_loop().time() + run_for
        return found.started

    async def adopt(self, container_id: str) -> Started | Exit | None:
        """See `Runtime.adopt`."""
        found = self._node.containers.get(container_id)
        if found is None:
            return None
        self._run_out(container_id, found)
        return found.ended or found.started

    async def wait(self, container_id: str) -> Exit:
        """See `Runtime.wait`."""
        found = self._node.containers.get(container_id)
        if found is None:
            raise RuntimeFailure(f"container {container_id} does not exist on this node")
        loop = asyncio.get_running_loop()
        while found.ended is None:
            self._run_out(container_id, found)
            if found.ended is not None:
                break
            left = None if found.ends_at is None else max(0.0, found.ends_at - loop.time())
            try:
                async with asyncio.timeout(left):
                    await self._node.changed.wait()
            except TimeoutError:
                continue
        return found.ended

    def _run_out(self, container_id: str, found: FakeContainer) -> None:
        if found.ends_at is not None and asyncio.get_running_loop().time() >= found.ends_at:
            script = self._node.script(container_id)
            self._node.end(container_id, script.exit_code, oom_killed=script.oom_killed)

    async def kill(self, container_id: str, signal_number: int) -> None:
        """See `Runtime.kill`. A signal that is not ignored ends the container."""
        self._step(container_id, "kill")
        found = self._node.containers.get(container_id)
        if found is None or found.ended is not None:
            return
        ignored = signal_number in self._node.script(container_id).ignores
        # As for any first process of a PID namespace: only SIGKILL ends one that has not begun.
        if signal_number == signal.SIGKILL or (found.started is not None and not ignored):
            self._node.end(container_id, 128 + signal_number)

    async def remove(self, container_id: str) -> None:
        """See `Runtime.remove`."""
        await self.release(container_id)
        self._node.layers.discard(container_id)

    async def release(self, container_id: str) -> None:
        """See `Runtime.release`."""
        self._step(container_id, "remove")
        if container_id in self._node.containers:
            self._node.end(container_id, 128 + signal.SIGKILL)
            del self._node.containers[container_id]

    async def replace_files(self, container_id: str, files: Sequence[tuple[Path, str]]) -> None:
        """See `Runtime.replace_files`."""
        self._step(container_id, "replace_files")
        self._node.replaced.setdefault(container_id, []).extend(files)

    async def resize(self, container_id: str, spec: TaskSpec) -> None:
        """See `Runtime.resize`."""
        self._step(container_id, "resize")
        self._running(container_id).limits = limits_of(spec)

    def users(self, container_id: str) -> range:
        """See `Runtime.users`."""
        return range(0)

    async def pause(self, container_id: str) -> None:
        """See `Runtime.pause`."""
        self._running(container_id).paused = True

    async def resume(self, container_id: str) -> None:
        """See `Runtime.resume`."""
        self._running(container_id).paused = False

    async def paused(self, container_id: str) -> bool:
        """See `Runtime.paused`."""
        found = self._node.containers.get(container_id)
        return found is not None and found.paused

    def _running(self, container_id: str) -> FakeContainer:
        found = self._node.containers.get(container_id)
        if found is None or found.ended is not None:
            raise RuntimeFailure("it could not be paused: it does not run")
        return found

    async def list(self) -> frozenset[str]:
        """See `Runtime.list`."""
        return frozenset(self._node.containers.keys() | self._node.layers)

    def logging(self, container_id: str) -> LogConfig:
        """See `Runtime.logging`."""
        found = self._node.containers.get(container_id)
        return found.container.logging if found is not None else LogConfig()

    def log_path(self, container_id: str) -> Path:
        """See `Runtime.log_path`. Tests write to it what they want to be read."""
        return self._node.logs / container_id / "log"
