# SPDX-License-Identifier: Apache-2.0
"""Runtimes to test: the scripted one, and crun with conmon on this very kernel.

crun refuses hosts with both cgroup versions unless one is hidden in a private mount namespace. The
process that runs the tests must not enter one, as all later tests would be in it. But a namespace
belongs to a thread: so each test on the real runtime runs its own event loop in a thread of its
own, and what it mounts is gone with it.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import shutil
import signal
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakeruntime import FakeNode, FakeRuntime, Script

from orchestrator.agent.images.image_spec import ImageConfig, LocalImage
from orchestrator.agent.runtime.engine.conmon import find_monitor
from orchestrator.agent.runtime.engine.crun import CrunRuntime
from orchestrator.agent.runtime.interface import Container, Runtime
from orchestrator.agent.runtime.io import logfiles
from orchestrator.agent.runtime.isolation.mountns import enter_private_mounts
from orchestrator.agent.runtime.resources import cgroup_limits
from orchestrator.agent.runtime.resources.cgroups import CgroupMode, Cgroups, detect
from orchestrator.linux.libc import mount
from orchestrator.linux.mounts import unshare_mounts
from orchestrator.model.specs import ContainerSpec, Resources, TaskSpec

BUSYBOX = Path("/bin/busybox")
APPLETS = (
    *("cat", "dd", "echo", "env", "id", "ls", "mknod", "mount"),
    *("hostname", "pwd", "seq", "sh", "sleep", "tail", "touch", "true"),
)
PREFIX = "orc-test-"
_numbers = itertools.count()


def private(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test in a thread with a mount namespace of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        failure: list[BaseException] = []

        def body() -> None:
            try:
                # A host with one cgroup version needs no such namespace, but these tests do.
                if not enter_private_mounts(None):
                    unshare_mounts()
                asyncio.run(asyncio.wait_for(test(*args, **kwargs), 60))  # type: ignore[arg-type]
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=body, name=test.__name__, daemon=True)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]

    return run


def remove_leftovers() -> None:
    """Kill and remove the containers of test runs that were themselves killed."""
    for root in detect().roots:
        for folder in root.glob(f"{PREFIX}*-*"):
            pid = int(folder.name.removeprefix(PREFIX).partition("-")[0])
            if pid == os.getpid() or Path(f"/proc/{pid}").exists():
                continue
            for members in folder.rglob("cgroup.procs"):
                for member in members.read_text().split():
                    with suppress(ProcessLookupError):
                        os.kill(int(member), signal.SIGKILL)
            Cgroups(detect(), f"/{folder.name}").remove_parent()


def make_layer(folder: Path) -> Path:
    """A layer with busybox and the links to it."""
    (folder / "bin").mkdir(parents=True)
    (folder / "etc").mkdir()
    (folder / "tmp").mkdir(mode=0o777)
    shutil.copy(BUSYBOX, folder / "bin/busybox")
    for name in APPLETS:
        (folder / "bin" / name).symlink_to("busybox")
    (folder / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/srv:/bin/sh\n")
    (folder / "etc/group").write_text("root:x:0:\nweb:x:1001:\nlogs:x:44:web\n")
    return folder


GRACEFUL = "trap 'exit 143' TERM; echo ready; while :; do sleep 0.02; done"
STUBBORN = "trap '' TERM; echo ready; while :; do sleep 0.02; done"
HUNGRY = "x=0123456789abcdef; while :; do x=$x$x; done"


class CrunWorld:
    """A node with crun and conmon."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path
        self.parent = f"/{PREFIX}{os.getpid()}-{next(_numbers)}"
        self.image = LocalImage("sha256:test", (make_layer(tmp_path / "base"),), ImageConfig())
        self._patch: pytest.MonkeyPatch | None = None

    @property
    def bundles(self) -> Path:
        return self.path / "run/containers"

    def runtime(self, **options: Any) -> CrunRuntime:
        """A runtime as an agent that starts has it."""
        return CrunRuntime(
            self.path / "state", self.path / "run", cgroup_parent=self.parent, **options
        )

    def container(self, container_id: str, *argv: str, **changes: Any) -> Container:
        """A container that runs argv; `changes` are of the container spec, or `limit`, `netns`."""
        limit = changes.pop("limit", Resources())
        shares = changes.pop("shares", 0)
        netns = changes.pop("netns", None)
        spec = TaskSpec(
            container=ContainerSpec(entrypoint=argv, **changes), limit=limit, shares=shares
        )
        return Container(container_id, f"{container_id}.1", spec, self.image, netns)

    def exits(self, container_id: str, code: int) -> Container:
        return self.container(container_id, "sh", "-c", f"exit {code}")

    def graceful(self, container_id: str) -> Container:
        return self.container(container_id, "sh", "-c", GRACEFUL)

    def stubborn(self, container_id: str) -> Container:
        return self.container(container_id, "sh", "-c", STUBBORN)

    def hungry(self, container_id: str) -> Container:
        made = self.container(container_id, "sh", "-c", HUNGRY)
        return replace(made, spec=replace(made.spec, limit=Resources(memory=16 << 20)))

    async def ready(
        self, runtime: Runtime, container_id: str, text: bytes = b"ready", times: int = 1
    ) -> None:
        """Until the container has said so; `times` counts all its runs, which share a log."""
        said = 0
        async for records in logfiles.read(runtime.log_path(container_id), follow=True):
            said += sum(record.line == text for record in records)
            if said >= times:
                return

    def lose_monitor(self, container_id: str) -> None:
        monitor = find_monitor(self.bundles / container_id, container_id)
        assert monitor is not None
        os.kill(monitor.pid, signal.SIGKILL)

    def cgroup_pids(self, container_id: str) -> list[int]:
        return Cgroups(detect(), self.parent).pids(container_id)

    async def __aenter__(self) -> CrunWorld:
        return self

    async def __aexit__(self, *_: object) -> None:
        async with self.runtime() as runtime:
            await runtime.purge()
        assert not any(root.joinpath(self.parent[1:]).exists() for root in detect().roots)


class UnifiedWorld(CrunWorld):
    """A node whose cgroups are version 2, also on a host where they are not.

    There the version 2 tree has no controllers to limit with, so containers ask for no limits; all
    else, the device filter included, is as it is on a host of today.
    """

    async def __aenter__(self) -> UnifiedWorld:
        if detect().mode is not CgroupMode.V2:
            mount("none", Path("/sys/fs/cgroup"), "cgroup2", 0, "")
            self._patch = pytest.MonkeyPatch()
            devices = [{"allow": False, "access": "rwm"}]
            self._patch.setattr(cgroup_limits, "resources", lambda *_: {"devices": devices})
            self._patch.setattr(cgroup_limits, "changes", lambda *_: {})
        return self

    async def __aexit__(self, *_: object) -> None:
        await super().__aexit__()
        if self._patch is not None:
            self._patch.undo()


class FakeWorld:
    """A node with nothing on it."""

    def __init__(self, tmp_path: Path) -> None:
        self.node = FakeNode(tmp_path)

    def runtime(self) -> FakeRuntime:
        return FakeRuntime(self.node)

    def _container(self, container_id: str, script: Script) -> Container:
        self.node.scripts[container_id] = script
        image = LocalImage("sha256:test", (), ImageConfig())
        return Container(container_id, container_id, TaskSpec(), image, None)

    def exits(self, container_id: str, code: int) -> Container:
        return self._container(container_id, Script(run_for=0.0, exit_code=code))

    def graceful(self, container_id: str) -> Container:
        return self._container(container_id, Script())

    def stubborn(self, container_id: str) -> Container:
        return self._container(container_id, Script(ignores=frozenset({signal.SIGTERM})))

    def hungry(self, container_id: str) -> Container:
        return self._container(container_id, Script(run_for=0, exit_code=137, oom_killed=True))

    async def ready(self, runtime: Runtime, container_id: str, times: int = 1) -> None:
        """At once."""

    def lose_monitor(self, container_id: str) -> None:
        self.node.lose_monitor(container_id)

    async def __aenter__(self) -> FakeWorld:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is left anywhere."""
