# SPDX-License-Identifier: Apache-2.0
"""Containers by crun, or another program with runc's command line, each under a conmon."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from orchestrator.agent.runtime.engine import conmon, process_watch
from orchestrator.agent.runtime.engine.bundle import Bundle, ContainerHandle, Identity
from orchestrator.agent.runtime.engine.bundle_builder import BundleBuilder, release_null_device
from orchestrator.agent.runtime.engine.process_watch import MonitorWatch, ProgramStart
from orchestrator.agent.runtime.engine.program_errors import failure, known_failure
from orchestrator.agent.runtime.interface import Container, Exit, RuntimeFailure, Started
from orchestrator.agent.runtime.io.logfiles import LogLimits, LogRotation, last_line
from orchestrator.agent.runtime.isolation.idranges import FIRST, IdRanges, subordinate_ids
from orchestrator.agent.runtime.resources import cgroup_limits, cgroups, resizing
from orchestrator.agent.runtime.resources.cgroups import Cgroups, detect
from orchestrator.agent.runtime.spec import apparmor, cdi
from orchestrator.agent.runtime.spec.node_facts import (
    NodeFacts,
    check_mode,
    find_program,
    read_node_facts,
)
from orchestrator.agent.runtime.spec.seccomp import DEFAULT_PROFILE
from orchestrator.daemon import bareprogram
from orchestrator.linux import spawn
from orchestrator.linux.processes import boot_id, identify
from orchestrator.linux.threads import KeyedThreads
from orchestrator.linux.trees import spread_inodes
from orchestrator.model.formats import log_options
from orchestrator.model.specs import LogConfig, TaskSpec
from orchestrator.model.states import NOT_RUNNABLE

logger = logging.getLogger(__name__)

MONITOR_DIED = "the container's monitor died"
OUT_OF_MEMORY = "it used more memory than its limit, and the kernel killed it"
NODE_OUT_OF_MEMORY = (
    "its node ran out of memory, and the kernel killed it; --reserve-memory protects it"
)

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_REPLACE_FILES = (
    *bareprogram.command("orchestrator.agent.runtime.isolation.container_mounts"),
    "replace",
)
_CREATE_TIMEOUT = 60.0
"""Seconds until a `create` fails: a hanging disk must not block the agent."""
_UNROTATED = 10
"""Without an agent that rotates it, a log may grow to this multiple of its size."""


@dataclass(frozen=True, slots=True)
class _Removal:
    """A running removal of a container."""

    keep: bool
    """Its writable layer and logs are kept."""
    work: asyncio.Task[Exception | None]


class CrunRuntime:
    """The `Runtime` of a real node; an async context manager. See the package for an overview.

    Leaving it stops no container. Calls for one id must be sequential, except `wait` and `kill`,
    which may run concurrently with others.
    """

    def __init__(
        self,
        state_dir: Path,
        run_dir: Path,
        *,
        cgroup_parent: str = "/orc",
        runtime: str = "crun",
        monitor: str = "conmon",
        seccomp_profile: Path = DEFAULT_PROFILE,
        first_id: int = FIRST,
        cdi_folders: Sequence[Path] = cdi.FOLDERS,
        log_limits: LogLimits | None = None,
        rotation_interval: float = 1.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`run_dir` should be on a tmpfs, `state_dir` on a disk that supports overlay's upper
        layers; both are made. `runtime` and `monitor` are names or paths of the programs; user ids
        from `first_id` on are allocated to containers; log sizes are checked every
        `rotation_interval` seconds."""
        self._state = state_dir.absolute()
        self._containers = run_dir.absolute() / "containers"
        self._records = run_dir.absolute() / "crun"
        self._parent = "/" + cgroup_parent.strip("/")
        self._runtime, self._monitor = runtime, monitor
        self._profile_path = seccomp_profile
        self._first_id = first_id
        self._cdi_folders = tuple(cdi_folders)
        self._rotation = LogRotation(log_limits or LogLimits())
        self._log_limits: dict[str, LogLimits] = {}
        """Of logs, by container."""
        self._interval = rotation_interval
        self._clock = clock
        self._watch = MonitorWatch(self._determine_exit)
        self._stack = AsyncExitStack()
        self._group: asyncio.TaskGroup
        self._removals: dict[str, _Removal] = {}
        """Under way, by container."""
        self._removing = KeyedThreads("remove")
        self._file_threads = KeyedThreads("look into")
        self._cgroups: Cgroups
        self._facts: NodeFacts
        self._builder: BundleBuilder
        self._boot = ""

    async def __aenter__(self) -> Self:
        """Raises RuntimeFailure, with the reason, when the node cannot run containers."""
        self._runtime = find_program(self._runtime)
        self._monitor = find_program(self._monitor)
        hierarchy = detect()
        check_mode(hierarchy)
        self._cgroups = Cgroups(hierarchy, self._parent)
        self._boot = boot_id()
        for folder in (self._state, self._containers, self._records):
            folder.mkdir(parents=True, exist_ok=True, mode=0o711)
        await conmon.end_unrecorded(self._containers)
        facts = read_node_facts(hierarchy)
        self._facts = replace(facts, apparmor=await apparmor.ensure_loaded())
        spread_inodes(self._state)
        self._builder = await self._stack.enter_async_context(
            BundleBuilder(
                IdRanges(self._state.parent / "ids", self._first_id, taken=subordinate_ids()),
                self._cgroups,
                netns_dir=self._containers.parent / "netns",
                facts=self._facts,
                seccomp_profile=self._profile_path,
                hidden=(self._state.parent, self._containers.parent),
                cdi_folders=self._cdi_folders,
            )
        )
        self._group = await self._stack.enter_async_context(asyncio.TaskGroup())
        rotation = self._group.create_task(self._rotate_logs())
        self._stack.callback(rotation.cancel)
        self._stack.callback(self._end_removals)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._watch.close()
        await self._stack.__aexit__(kind, error, trace)

    async def reserve(self, container_id: str, spec: TaskSpec, beside: str = "") -> None:
        """See `Runtime.reserve`. Raises RuntimeFailure."""
        await self._builder.reserve(self._bundle(container_id).run.name, spec, beside)

    async def create(self, container: Container) -> None:
        """Mount the root, write the bundle, start the monitor, create the container.

        No-op for a created container; a partially created one is removed and created again. A
        failure leaves nothing behind; after a cancellation `remove` cleans up. Raises
        RuntimeFailure.
        """
        bundle = self._bundle(container.id)
        if bundle.exists():
            identity = bundle.identity()
            if identity is not None and (self._lives(identity) or bundle.exit_status()):
                return
            await self._clear(container.id, container.keep)
        try:
            async with asyncio.timeout(_CREATE_TIMEOUT):
                await self._create(container, bundle)
        except TimeoutError as error:
            await self._undo(container)
            raise RuntimeFailure(
                f"the container was not created within {_CREATE_TIMEOUT:.0f} s; is the disk stuck?"
            ) from error
        except (RuntimeFailure, OSError) as error:
            await self._undo(container)
            if isinstance(error, RuntimeFailure):
                raise
            raise RuntimeFailure(f"the container could not be created: {error}") from error

    async def _undo(self, container: Container) -> None:
        await self._clear(container.id, container.keep)
        if not container.keep:
            self._builder.release(container.id)

    async def _create(self, container: Container, bundle: Bundle) -> None:
        neighbour = self.access(container.beside).running() if container.beside else None
        async with self._builder.build(container, bundle, neighbour) as runtime:
            if container.logging != LogConfig():
                bundle.write_logging(container.logging)
            kept = self._kept(container.logging)
            argv = conmon.command(
                self._monitor,
                bundle.run,
                container.id,
                container.name,
                runtime or self._runtime,
                self._records,
                max(kept.size, self._rotation.limits.size) * _UNROTATED,
                tty=container.spec.container.tty,
                stdin=container.spec.container.open_stdin,
                logged=container.logging.driver != log_options.NONE,
            )
            try:
                report = await conmon.launch(argv, bundle.run)
            finally:
                release_null_device()
        if report.pid < 0:
            raise failure(report.message, "created")
        pid = identify(report.pid)
        monitor = conmon.find_monitor(bundle.run, container.id)
        if pid is None or monitor is None:
            raise RuntimeFailure("the container ended while it was created; was it killed?")
        bundle.write_limits(cgroup_limits.changes(container.spec, self._facts))
        bundle.write_identity(Identity(self._boot, pid, monitor))
        self._watch.add(container.id, monitor)

    async def start(self, container_id: str) -> Started:
        """Start the created container's program. Raises RuntimeFailure when there is no such
        container, or when the kernel does not execute the program."""
        bundle = self._bundle(container_id)
        if (started := bundle.started()) is not None:
            return started
        identity = bundle.identity()
        if identity is None:
            raise RuntimeFailure(f"container {container_id} has not been created on this node")
        with ProgramStart(identity.container) as program:
            status, stderr = await spawn.run([*self._command(bundle), "start", container_id])
            if status != 0 and not await self._has_run(container_id, bundle):
                raise failure(stderr, "started")
            if not await program.wait():
                # It was quick, or could not be executed, as its exit shows.
                ended = await self.wait(container_id)
                if ended.message and ended.code in NOT_RUNNABLE:
                    raise RuntimeFailure(ended.message, ended.code)
        started = Started(identity.container.pid, self._clock())
        bundle.write_started(started)
        return started

    async def adopt(self, container_id: str) -> Started | Exit | None:
        """See `Runtime.adopt`. A container that was created but not started cannot be used."""
        bundle = self._bundle(container_id)
        if (ended := bundle.result()) is not None:
            return ended
        identity = bundle.identity()
        if identity is None:
            return None
        if identity.boot != self._boot and bundle.exit_status() is None:
            return None
        if not self._lives(identity):
            return self._determine_exit(container_id)
        started = bundle.started()
        if started is None:
            # Either it was not started, or the agent was killed before it recorded the start.
            if not await self._has_run(container_id, bundle):
                return None
            started = Started(identity.container.pid, self._clock())
            bundle.write_started(started)
        self._watch.add(container_id, identity.monitor)
        return started

    async def wait(self, container_id: str) -> Exit:
        """Wait until the container has ended. Raises RuntimeFailure when there is none."""
        if container_id not in self._watch:
            bundle = self._bundle(container_id)
            if (ended := bundle.result()) is not None:
                return ended
            identity = bundle.identity()
            if identity is None:
                raise RuntimeFailure(f"container {container_id} does not exist on this node")
            self._watch.add(container_id, identity.monitor)
        return await self._watch.wait(container_id)

    async def kill(self, container_id: str, signal_number: int) -> None:
        """Send a signal. No-op when the container has ended or does not exist."""
        bundle = self._bundle(container_id)
        if signal_number == signal.SIGKILL:
            self._kill_all(container_id, bundle)
        else:
            self._signal_first(bundle, signal_number)

    async def remove(self, container_id: str) -> None:
        """See `Runtime.remove`. Raises RuntimeFailure when something cannot be removed."""
        await self._clear(container_id, keep=False)
        self._builder.release(container_id)

    async def release(self, container_id: str) -> None:
        """See `Runtime.release`. Raises RuntimeFailure when something cannot be removed."""
        await self._clear(container_id, keep=True)

    async def _clear(self, container_id: str, keep: bool) -> None:
        """Remove the container, but keep its user ids allocated.

        One removal of a container runs at a time and is not cancelled with its caller: concurrent
        callers wait for it and share its outcome.
        """
        while True:
            removal = self._removals.get(container_id)
            if removal is None:
                work = self._group.create_task(self._removed(container_id, keep))
                removal = self._removals[container_id] = _Removal(keep, work)
            error = await asyncio.shield(removal.work)
            if error is not None:
                raise error
            if keep or not removal.keep:
                return

    async def _removed(self, container_id: str, keep: bool) -> Exception | None:
        """Remove a container; what went wrong, if anything."""
        try:
            await self._remove(container_id, keep)
        except Exception as error:
            return error
        finally:
            self._removals.pop(container_id, None)
        return None

    def _end_removals(self) -> None:
        for removal in self._removals.values():
            removal.work.cancel()

    async def _remove(self, container_id: str, keep: bool) -> None:
        bundle = self._bundle(container_id)
        self._kill_all(container_id, bundle)
        await process_watch.end_monitor(
            conmon.find_monitor(bundle.run, container_id),
            partial(self._kill_all, container_id, bundle),
        )
        # Waiters must get the exit before the files that it is determined from are removed.
        self._watch.resolve(container_id)
        if (self._records / container_id).exists():
            await spawn.run([*self._command(bundle), "delete", "--force", container_id])
        await process_watch.clear_cgroup(self._cgroups, container_id)
        shutil.rmtree(self._records / container_id, ignore_errors=True)
        await self._removing.run(container_id, bundle.release if keep else bundle.discard)
        self._watch.forget(container_id)
        self._rotation.forget(bundle.log)
        self._log_limits.pop(container_id, None)

    async def replace_files(self, container_id: str, files: Sequence[tuple[Path, str]]) -> None:
        """See `Runtime.replace_files`. Raises RuntimeFailure."""
        process = self.access(container_id).running().open()
        if process is None:
            raise RuntimeFailure("the container is not running any more; see 'orc ps -a'")
        try:
            argv = [*_REPLACE_FILES, str(process)]
            for source, target in files:
                argv += [str(source), target]
            status, stderr = await spawn.run(argv, pass_fds=(process,))
        finally:
            os.close(process)
        if status != 0:
            raise RuntimeFailure(f"its files cannot be replaced ({stderr.strip()})")

    async def resize(self, container_id: str, spec: TaskSpec) -> None:
        """See `Runtime.resize`. Raises RuntimeFailure."""
        await resizing.resize(self.access(container_id), spec, self._facts)

    async def pause(self, container_id: str) -> None:
        """See `Runtime.pause`. Raises RuntimeFailure."""
        await cgroups.freeze(self._cgroups, container_id)

    async def resume(self, container_id: str) -> None:
        """See `Runtime.resume`. Raises RuntimeFailure."""
        cgroups.thaw(self._cgroups, container_id)

    async def paused(self, container_id: str) -> bool:
        """See `Runtime.paused`."""
        return self._cgroups.freezing(container_id)

    def upper(self, container_id: str) -> Path:
        """The folder of a container's writable layer."""
        return self._bundle(container_id).upper

    def root(self, container_id: str) -> Path:
        """Where a container's root is mounted, in the agent's mount namespace."""
        return self._bundle(container_id).root

    def users(self, container_id: str) -> range:
        """See `Runtime.users`."""
        return self._builder.users(container_id)

    async def list(self) -> frozenset[str]:
        """Ids with a folder, a record of the OCI runtime, a cgroup, or allocated user ids."""
        found = self._cgroups.ids() | self._builder.held()
        for folder in (self._state, self._containers, self._records):
            found.update(entry.name for entry in os.scandir(folder))
        return frozenset(name for name in found if _ID.fullmatch(name))

    def log_path(self, container_id: str) -> Path:
        """See `Runtime.log_path`."""
        return self._bundle(container_id).log

    def logging(self, container_id: str) -> LogConfig:
        """See `Runtime.logging`."""
        return self._bundle(container_id).logging()

    def access(self, container_id: str) -> ContainerHandle:
        """A handle to a container, for `execs`, `attach` and statistics."""
        bundle = self._bundle(container_id)
        return ContainerHandle(
            container_id,
            bundle,
            self._command(bundle),
            self._cgroups,
            self._boot,
            self._file_threads,
        )

    async def purge(self) -> None:
        """Remove all containers and their parent cgroup."""
        for container_id in await self.list():
            await self.remove(container_id)
        self._cgroups.remove_parent()

    def _bundle(self, container_id: str) -> Bundle:
        if not _ID.fullmatch(container_id):
            raise RuntimeFailure(f"`{container_id}` cannot be a container's id")
        return Bundle(self._containers / container_id, self._state / container_id)

    def _command(self, bundle: Bundle) -> tuple[str, ...]:
        return (bundle.runtime() or self._runtime, "--root", str(self._records))

    def _lives(self, identity: Identity) -> bool:
        return identity.boot == self._boot and identity.monitor.alive()

    async def _has_run(self, container_id: str, bundle: Bundle) -> bool:
        """Whether the container's program was started, if there is no record of it."""
        if bundle.exit_status() is not None:
            return True
        status = await spawn.output([*self._command(bundle), "state", container_id])
        return re.search(r'"status"\s*:\s*"(running|paused|stopped)"', status) is not None

    def _determine_exit(self, container_id: str) -> Exit:
        """The exit of a container without a monitor; recorded, so that it is determined once."""
        bundle = self._bundle(container_id)
        if (ended := bundle.result()) is not None:
            return ended
        status = bundle.exit_status()
        oom_killed = self._cgroups.oom_kills(container_id) > 0
        if status is None:
            self._kill_all(container_id, bundle)
            ended = Exit(-1, oom_killed, self._clock(), MONITOR_DIED)
        else:
            code, finished_at = status
            # A container that lost a child to the OOM killer and then exited with 0 was not killed.
            oom_killed = oom_killed and code != 0
            message = self._oom_message(container_id) if oom_killed else ""
            if code == 1 and (known := known_failure(last_line(bundle.log))):
                code, message = known.exit_code, message or str(known)
            ended = Exit(code, oom_killed, finished_at, message)
        if bundle.run.exists():
            bundle.write_result(ended)
        return ended

    def _oom_message(self, container_id: str) -> str:
        limited = self._cgroups.reached_memory_limit(container_id)
        return OUT_OF_MEMORY if limited else NODE_OUT_OF_MEMORY

    def _kill_all(self, container_id: str, bundle: Bundle) -> None:
        """Send SIGKILL to the first process, which ends the PID namespace, and to the cgroup."""
        self._signal_first(bundle, signal.SIGKILL)
        self._cgroups.kill(container_id)

    def _signal_first(self, bundle: Bundle, signal_number: int) -> None:
        identity = bundle.identity()
        if identity is not None and identity.boot == self._boot:
            identity.container.send(signal_number)

    async def _rotate_logs(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            for container_id in self._watch.ids():
                bundle = self._bundle(container_id)
                try:
                    if (kept := self._log_limits.get(container_id)) is None:
                        kept = self._log_limits[container_id] = self._kept(bundle.logging())
                    reopen = partial(conmon.reopen_log, bundle.run)
                    self._rotation.rotate(bundle.log, reopen, kept)
                except OSError as error:
                    logger.warning("log of %s cannot be rotated: %s", container_id, error)

    def _kept(self, config: LogConfig) -> LogLimits:
        """The limits of a container's log on this node."""
        default = self._rotation.limits
        return LogLimits(*log_options.kept(config, default.size, default.files))
