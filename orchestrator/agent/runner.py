"""One task's driver: one asyncio task for each assigned task, for as long as it is assigned.

It asks `lifecycle.next_step`, does that step, and asks again. What takes long without harm when
cut short (fetching an image, waiting for the end, resting) ends at once when the order changes;
what changes the kernel (attach, create, start, remove) is always finished first.

A step's error ends the task, never the agent.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from orchestrator.agent.images.config import LocalImage
from orchestrator.agent.images.errors import ImageError
from orchestrator.agent.lifecycle import Observed, Step, fail, next_step, settle
from orchestrator.agent.network import NetworkError
from orchestrator.agent.networks import Connected
from orchestrator.agent.parts import Parts
from orchestrator.agent.reporter import Reporter
from orchestrator.agent.runtime.base import Container, RuntimeFailure, Started
from orchestrator.agent.runtime.signals import signal_number
from orchestrator.agent.statedb import Record, StateDb
from orchestrator.model.convert import from_proto
from orchestrator.model.objects import Task, TaskStatus
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.pb import dispatch_pb2

log = logging.getLogger(__name__)

_RELEASE_LIMIT = 20.0
"""Seconds after which an attempt to remove a container is given up, to be repeated."""
_RETRY_FIRST, _RETRY_MOST = 0.5, 30.0
"""Seconds between attempts to release."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    image: LocalImage
    connected: Connected


class TaskRunner:
    """Drives one task to what its newest order says."""

    def __init__(
        self,
        assigned: dispatch_pb2.AssignedTask,
        record: Record | None,
        *,
        parts: Parts,
        db: StateDb,
        reporter: Reporter,
        gate: asyncio.Semaphore,
    ) -> None:
        """`record` is what an earlier agent left, None for a new task; `gate` bounds how many
        containers are made at a time."""
        self._parts = parts
        self._db = db
        self._reporter = reporter
        self._gate = gate
        self._task: Task = from_proto(assigned.task)
        self._sources = tuple(assigned.image_sources)
        self._assigned = True
        self._scope: asyncio.Timeout | None = None
        self._prepared: _Prepared | None = None
        self.begun = asyncio.Event()
        """Set once it runs or has ended."""
        self.ended = asyncio.Event()
        """Set once it has ended."""
        known: TaskStatus = self._task.status
        if record is None and known.state > TaskState.ACCEPTED:
            # The manager remembers more of it than this node, whose state file was lost: what
            # has ended stays ended, and what may run is looked for, not started twice.
            self._status = known
            self._observed = Observed(looked=False)
        elif record is None:
            self._status = TaskStatus(state=TaskState.ACCEPTED, at=parts.clock())
            self._observed = Observed()
        else:
            self._status = record.status
            ran = record.status.state >= TaskState.STARTING
            rebooted = ran and record.boot_id != parts.boot_id
            self._observed = Observed(
                looked=False, released=record.released, rebooted=rebooted, confirmed=False
            )
        self._mark()
        reporter.put(self.id, self._status)

    @property
    def id(self) -> str:
        """The task's id, and so its container's."""
        return self._task.id

    @property
    def task(self) -> Task:
        """The newest order."""
        return self._task

    @property
    def status(self) -> TaskStatus:
        """The newest status."""
        return self._status

    @property
    def holds(self) -> bool:
        """Whether anything in this boot's kernel may be its own: container, address, ports."""
        return not self._observed.released and not self._observed.rebooted

    def order(self, assigned: dispatch_pb2.AssignedTask | None) -> None:
        """Take a new order; None: it is no longer assigned, so it must go."""
        if assigned is None:
            self._assigned = False
            task = replace(self._task, desired_state=TaskState.REMOVE)
        else:
            self._assigned = True
            self._sources = tuple(assigned.image_sources)
            task = from_proto(assigned.task)
        news = (
            assigned is None
            or not self._observed.confirmed
            or task.desired_state is not self._task.desired_state
        )
        self._task = task
        self._observed = replace(self._observed, confirmed=True)
        if news and self._scope is not None:
            self._scope.reschedule(asyncio.get_running_loop().time())
            self._scope = None

    async def run(self) -> None:
        """Drive the task until it is no longer assigned and nothing of it is left."""
        retry = _RETRY_FIRST
        while True:
            step = next_step(self._task, self._status, self._observed)
            if step is Step.REST and not self._assigned:
                return
            try:
                await self._do(step)
                retry = _RETRY_FIRST
            except Exception as error:
                reason = _reason(error)
                log.warning(
                    "%s failed: %s",
                    step.name.lower(),
                    reason,
                    extra={"task": self.id},
                    exc_info=None if isinstance(error, _EXPECTED) else error,
                )
                if step is Step.RELEASE:
                    # The container's end is known, whatever still clings to it.
                    self._reporter.put(self.id, self._status)
                    await asyncio.sleep(retry)
                    retry = min(2 * retry, _RETRY_MOST)
                else:
                    self._record(fail(self._task, self._status, reason, self._parts.clock()))

    async def _do(self, step: Step) -> None:
        match step:
            case Step.ADOPT:
                await self._adopt()
            case Step.PREPARE:
                await self._prepare()
            case Step.START:
                await self._start()
            case Step.RUN:
                self._record_running()
            case Step.WATCH:
                async with self._until_new_order():
                    end = await self._parts.runtime.wait(self.id)
                    self._observed = replace(self._observed, container=end)
            case Step.STOP:
                await self._stop()
            case Step.SETTLE:
                now = self._parts.clock()
                self._record(settle(self._task, self._status, self._observed, now))
            case Step.RELEASE:
                await self._release()
            case Step.REST:
                async with self._until_new_order():
                    await asyncio.get_running_loop().create_future()

    async def _adopt(self) -> None:
        found = await self._parts.runtime.adopt(self.id)
        if found is None:
            # Whatever lies around of it cannot be used; a later start begins on clean ground.
            await self._parts.runtime.remove(self.id)
        log.info(
            "adopted: %s",
            "runs" if isinstance(found, Started) else "ended" if found else "nothing left",
            extra={"task": self.id},
        )
        self._observed = replace(self._observed, looked=True, container=found)

    async def _prepare(self) -> None:
        self._advance(TaskState.PREPARING)
        image = None
        async with self._until_new_order():
            image = await self._image()
        if image is None:
            return
        connected = await self._parts.network.attach(self.id, self._task.spec.ports)
        self._prepared = _Prepared(image, connected)
        self._observed = replace(self._observed, prepared=True)
        self._advance(TaskState.READY)

    async def _start(self) -> None:
        assert self._prepared is not None
        connected = self._prepared.connected
        async with self._gate:
            if self._task.desired_state is not TaskState.RUNNING:
                return
            # From here on it counts as "may have run"; see the module `lifecycle`.
            starting = replace(self._status, addresses=dict(connected.addresses))
            if starting.state < TaskState.STARTING:
                starting = replace(starting, state=TaskState.STARTING, at=self._parts.clock())
            self._record(starting)
            await self._parts.runtime.create(self._container(self._prepared))
            started = await self._parts.runtime.start(self.id)
        self._observed = replace(self._observed, container=started, rebooted=False)

    def _container(self, prepared: _Prepared) -> Container:
        task = self._task
        addresses = prepared.connected.addresses
        return Container(
            id=task.id,
            name=task.name,
            spec=task.spec,
            image=prepared.image,
            netns=prepared.connected.netns,
            address=next(iter(addresses.values()), ""),
            hostname=task.spec.container.hostname or task.id,
            env=(
                f"ORC_SERVICE_NAME={task.service_name}",
                f"ORC_TASK_ID={task.id}",
                f"ORC_TASK_NAME={task.name}",
                f"ORC_TASK_SLOT={task.slot}",
                f"ORC_NODE_HOSTNAME={self._parts.hostname}",
            ),
            labels=dict(task.spec.container.labels),
        )

    def _record_running(self) -> None:
        started = self._observed.container
        assert isinstance(started, Started)
        message = "started again after a reboot of the node" if self._status.pid else ""
        self._record(
            replace(
                self._status,
                state=TaskState.RUNNING,
                at=self._parts.clock(),
                message=message,
                pid=started.pid,
                started_at=started.started_at,
            )
        )
        log.info("running", extra={"task": self.id, "pid": started.pid})

    async def _stop(self) -> None:
        runtime = self._parts.runtime
        spec = self._task.spec.container
        await runtime.kill(self.id, await self._stop_signal())
        try:
            async with asyncio.timeout(spec.stop_grace) as grace:
                end = await runtime.wait(self.id)
        except TimeoutError:
            if not grace.expired():
                raise
            await runtime.kill(self.id, signal.SIGKILL)
            end = await runtime.wait(self.id)
        self._observed = replace(self._observed, container=end)

    async def _stop_signal(self) -> int:
        """The spec's, else the image's, else SIGTERM."""
        name = self._task.spec.container.stop_signal
        if not name:
            try:
                name = (await self._image()).config.stop_signal
            except ImageError:
                log.info("its image is gone, so SIGTERM stops it", extra={"task": self.id})
        return signal_number(name or "SIGTERM")

    async def _image(self) -> LocalImage:
        if self._prepared is not None:
            return self._prepared.image
        spec = self._task.spec.container
        return await self._parts.images.prepare(spec.image, self._task.image_digest, self._sources)

    async def _release(self) -> None:
        # The end is reported after the first attempt: a replacement on this node may need the
        # same published port, and must not find it taken by what has just ended.
        async with self._gate, asyncio.timeout(_RELEASE_LIMIT):
            self._parts.logs.keep(self.id, self._parts.runtime.log_path(self.id))
            await self._parts.runtime.remove(self.id)
            await self._parts.network.detach(self.id)
        self._db.put_released(self.id)
        self._observed = replace(self._observed, released=True, container=None)
        self._prepared = None
        self._reporter.put(self.id, self._status)

    def _advance(self, state: TaskState) -> None:
        """Report a step forward on the way to RUNNING. Nothing is lost if it is forgotten."""
        if self._status.state < state:
            self._status = replace(self._status, state=state, at=self._parts.clock())
            self._reporter.put(self.id, self._status)

    def _record(self, status: TaskStatus) -> None:
        """Write a status down, then report it; a last one only when all is released."""
        self._db.put_status(self.id, status, self._parts.boot_id)
        self._status = status
        self._mark()
        if is_terminal(status.state):
            log.info(
                "%s: %s",
                status.state.name.lower(),
                status.message or f"exit status {status.exit_code}",
                extra={"task": self.id},
            )
        else:
            self._reporter.put(self.id, status)

    def _mark(self) -> None:
        if self._status.state >= TaskState.RUNNING:
            self.begun.set()
        if is_terminal(self._status.state):
            self.ended.set()

    @asynccontextmanager
    async def _until_new_order(self) -> AsyncIterator[None]:
        """Cut the block short when the order changes; what it awaits must bear that."""
        try:
            async with asyncio.timeout(None) as scope:
                self._scope = scope
                yield
        except TimeoutError:
            if not scope.expired():
                raise
        finally:
            self._scope = None


_EXPECTED = (RuntimeFailure, ImageError, NetworkError, OSError)


def _reason(error: Exception) -> str:
    """One line for the user."""
    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, _EXPECTED):
        return str(error)
    return f"internal error of the agent: {type(error).__name__}: {error}"
