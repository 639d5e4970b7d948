# SPDX-License-Identifier: Apache-2.0
"""The driver of one task: one asyncio task for each assigned task, for as long as it is assigned.

It repeatedly performs the step that `lifecycle.next_step` returns. A change of the order interrupts
steps that may take long and are safe to cancel (pulling an image, waiting for the end, idling);
steps that change the kernel (attach, create, start, remove) always finish first.

An error never ends the agent. While the container is prepared and started, an error ends the task,
which a manager then starts elsewhere. Once the container may run, an error concerns the agent (too
many open files, no memory, a bug) and not the container: it is left running, and the agent searches
for it again with backoff. From then on, only the container's own end ends the task.

States on the way to RUNNING are reported but not recorded: after a crash they are repeated. From
STARTING on, a status is on disk before it is reported.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import signal
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import replace

from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.runtime.interface import Exit, RuntimeFailure, Started
from orchestrator.agent.statedb import CannotRecord, Record, StateDb
from orchestrator.agent.tasks.backends import (
    CONTAINER_ERRORS,
    EXPECTED_ERRORS,
    Backends,
    ContainerEnding,
    error_message,
    root_cause,
)
from orchestrator.agent.tasks.health_checks import HealthMonitor
from orchestrator.agent.tasks.lifecycle import (
    Observed,
    Step,
    assigned_run,
    decisive_fields,
    due_post_start,
    due_pre_stop,
    failed_status,
    failing_health,
    final_status,
    grace_left,
    grace_period,
    initial,
    must_end,
    next_step,
    running_status,
)
from orchestrator.agent.tasks.secret_files import NOT_REPLACED, FileError
from orchestrator.agent.tasks.status_reporter import StatusReporter
from orchestrator.agent.tasks.task_resources import TaskResources
from orchestrator.model.convert import from_proto
from orchestrator.model.hooks import POST_START, PRE_STOP
from orchestrator.model.limits import Limits, limits_of
from orchestrator.model.networks import NOT_CONNECTED
from orchestrator.model.objects import Volume
from orchestrator.model.specs import TaskSpec
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.tasks import Health, Task, TaskStatus
from orchestrator.model.units import format_duration
from orchestrator.pb import dispatch_pb2, documents_pb2

log = logging.getLogger(__name__)


_REMOVAL_TIMEOUT = 20.0
"""Seconds of an attempt at a removal, after which the end of the task is reported without it."""
_RETRY_FIRST, _RETRY_MOST = 0.5, 30.0
"""Seconds between attempts to release resources, or to find a container that may run."""

_CONTAINER_MAY_RUN = frozenset(
    {
        Step.ADOPT,
        Step.POST_START,
        Step.RECORD_RUNNING,
        Step.CONNECT,
        Step.RESIZE,
        Step.REFRESH,
        Step.WATCH,
        Step.STOP,
        Step.RECORD_END,
    }
)
"""Steps whose failure does not affect the container, which may continue."""
NOT_RESIZED = "limits not changed: "
"""Prefix of the message of a container whose limits could not be set."""
_COMMAND_LIMIT = 60
"""Characters of a hook's command that are shown."""
_RETRYING = "agent error, retrying: "
"""Prefix of the message of a container that continues after an error of the agent."""


class TaskRunner:
    """Drives one task to the desired state of its newest order."""

    def __init__(
        self,
        assigned: dispatch_pb2.AssignedTask,
        record: Record | None,
        *,
        backends: Backends,
        db: StateDb,
        reporter: StatusReporter,
        gate: asyncio.Semaphore,
        removals: asyncio.Semaphore,
        predecessors: Callable[[Task], Iterable[asyncio.Event]] = lambda task: (),
        running: Callable[[str], Task | None] = lambda word: None,
    ) -> None:
        """`record` is what an earlier agent recorded, None for a new task. `gate` bounds concurrent
        starts, `removals` concurrent removals. `predecessors` are the ends to wait for before it
        starts; `running` finds a running task by name or id."""
        self._backends = backends
        self._gate = gate
        self._removals = removals
        self._removal_hangs = False
        """An attempt at its removal has timed out."""
        self._start_error = ""
        """The error of a start of which it is unknown whether it succeeded."""
        self._retry = _RETRY_FIRST
        self._hook_seconds = 0.0
        """Seconds of the stop grace period that `pre_stop` hooks have used."""
        self._predecessors = predecessors
        self._task: Task = from_proto(assigned.task)
        self._resources = TaskResources(backends, assigned, lambda: self.begun.is_set(), running)
        self._health_monitor = HealthMonitor(backends.probes, backends.clock)
        self._resizing = asyncio.Lock()
        self._limits: Limits | None = None
        """The limits of its container; None: not known."""
        self._rejected_limits: Limits | None = None
        """Limits that could not be set."""
        self._assigned = True
        self.stop_after: float = assigned.stop_after
        """Seconds without a manager after which it is stopped; 0: never."""
        self.stopped_disconnected = False
        """It was stopped because no manager was reachable, and has had no order since."""
        self._interrupt = Interrupt()
        status, self._observed = initial(
            self._task,
            record.status if record else None,
            released=record is not None and record.released,
            rebooted=record is not None and record.boot_id != backends.boot_id,
            now=backends.clock(),
        )
        self._recorder = StatusRecorder(
            self.id, status, backends.clock, backends.boot_id, db, reporter
        )

    @property
    def id(self) -> str:
        """The id of the task, and of its container."""
        return self._task.id

    @property
    def task(self) -> Task:
        """The newest order."""
        return self._task

    @property
    def volumes(self) -> Mapping[str, Volume]:
        """The named volumes of the newest order."""
        return self._resources.volumes

    @property
    def files(self) -> tuple[documents_pb2.AssignedFile, ...]:
        """The secrets and configs of the newest order."""
        return self._resources.files

    @property
    def status(self) -> TaskStatus:
        """The newest status."""
        return self._recorder.status

    @property
    def begun(self) -> asyncio.Event:
        """Set once the newest run is running or has ended."""
        return self._recorder.begun

    @property
    def ended(self) -> asyncio.Event:
        """Set once the newest run has ended."""
        return self._recorder.ended

    @property
    def status_with_addresses(self) -> TaskStatus:
        """The newest status, with its addresses as soon as it is connected."""
        status = self.status
        known = status.addresses or status.addresses6
        return status if known else self._resources.with_addresses(status)

    @property
    def may_hold_resources(self) -> bool:
        """Whether it may have a container, an address or ports in the running kernel."""
        return not self._observed.released and not self._observed.rebooted

    def assign(self, assigned: dispatch_pb2.AssignedTask) -> None:
        """Take a new order."""
        self._assigned = True
        self._resources.assign(assigned)
        self.stop_after, self.stopped_disconnected = assigned.stop_after, False
        self._follow(from_proto(assigned.task))

    def unassign(self) -> None:
        """Stop and remove the task: it is no longer assigned."""
        self._assigned = False
        self._follow(replace(self._task, desired_state=TaskState.REMOVE))

    def _follow(self, task: Task) -> None:
        """Make `task` the newest order, and interrupt the step if it may depend on it."""
        before, confirmed = self._task, self._observed.confirmed
        stale = self._resources.has_outdated_files(task)
        self._task = task
        self._observed = replace(self._observed, confirmed=True, stale=stale)
        self._compare_limits()
        if (
            not self._assigned
            or not confirmed
            or stale
            or self._observed.resize
            or decisive_fields(task) != decisive_fields(before)
        ):
            self._interrupt.trigger()

    def stop_disconnected(self) -> None:
        """Stop it, because no manager was reachable for too long."""
        self.stopped_disconnected = True
        self._task = replace(self._task, desired_state=TaskState.SHUTDOWN)
        self._interrupt.trigger()

    async def run(self) -> None:
        """Drive the task until it is no longer assigned and is removed."""
        while True:
            step = next_step(self._task, self.status, self._observed)
            if step is Step.IDLE and not self._assigned:
                return
            try:
                await self._perform(step)
            except Exception as raised:
                await self._handle_failure(step, root_cause(raised))
                continue
            if step is not Step.ADOPT:
                self._retry = _RETRY_FIRST
            if self.status.message.startswith(_RETRYING):
                self._recorder.set_message("")

    async def _handle_failure(self, step: Step, error: Exception) -> None:
        """Decide what the failure of a step means: a retry, or the end of the task."""
        reason = error_message(error)
        log.warning(
            "%s failed: %s",
            step.name.lower(),
            reason,
            extra={"task": self.id},
            exc_info=None if isinstance(error, EXPECTED_ERRORS) else error,
        )
        if step in (Step.RELEASE, Step.DISCARD):
            # The container's end is known, even if its removal fails.
            self._recorder.report()
            await asyncio.sleep(self._next_retry())
        elif step in _CONTAINER_MAY_RUN:
            self._recorder.set_message(f"{_RETRYING}{reason}")
            async with self._interrupt.interruptible():
                await asyncio.sleep(self._next_retry())
            self._forget_container()
        elif step is Step.START and not isinstance(error, CONTAINER_ERRORS):
            self._start_error = reason
            self._forget_container()
        else:
            code = error.exit_code if isinstance(error, RuntimeFailure) else 0
            now = self._backends.clock()
            self._recorder.record(failed_status(self._task, self.status, reason, now, code))

    def _next_retry(self) -> float:
        """Seconds until the next attempt, with backoff."""
        retry = self._retry
        self._retry = min(2 * retry, _RETRY_MOST)
        return retry

    def _forget_container(self) -> None:
        """Have the container searched for again (ADOPT), unless its end is known."""
        if not isinstance(self._observed.container, Exit):
            self._observed = replace(self._observed, searched=False, container=None)

    async def _perform(self, step: Step) -> None:
        match step:
            case Step.ADOPT:
                await self._adopt()
            case Step.PREPARE:
                await self._prepare()
            case Step.START:
                await self._start()
            case Step.POST_START:
                await self._post_start()
            case Step.RECORD_RUNNING:
                await self._record_running()
            case Step.CONNECT:
                await self._connect()
            case Step.RESIZE:
                await self._resize()
            case Step.REFRESH:
                await self._replace_files()
            case Step.WATCH:
                async with self._interrupt.interruptible():
                    end = await self._watch()
                    self._observed = replace(self._observed, container=end)
            case Step.STOP:
                await self._stop()
            case Step.RECORD_END:
                last = final_status(self._task, self.status, self._observed, self._backends.clock())
                if self.stopped_disconnected:
                    seconds = format_duration(self.stop_after)
                    last = replace(last, message=f"stopped: no manager reachable for {seconds}")
                self._recorder.record(last)
            case Step.RELEASE:
                await self._release()
            case Step.NEXT_RUN:
                self._begin_next_run()
            case Step.DISCARD:
                await self._discard()
            case Step.IDLE:
                async with self._interrupt.interruptible():
                    await asyncio.get_running_loop().create_future()

    async def _adopt(self) -> None:
        found = await self._backends.runtime.adopt(self.id)
        if found is None:
            # Remains of it cannot be used: a later start needs a clean state.
            try:
                async with self._removing():
                    gone = await self._resources.remove_container(self._task)
                self._observed = replace(self._observed, discarded=gone)
            except (RuntimeFailure, OSError) as error:
                # The container is lost, even if the removal of its remains fails.
                log.warning(
                    "remains of a lost container cannot be removed yet",
                    extra={"task": self.id, "error": error_message(error)},
                )
        elif isinstance(found, Started) and self.status.state is TaskState.RUNNING:
            paused = await self._backends.runtime.paused(self.id)
            if paused is not self.status.paused:
                self._recorder.record(replace(self.status, paused=paused))
        log.info(
            "adopted: %s",
            "running" if isinstance(found, Started) else "ended" if found else "not found",
            extra={"task": self.id},
        )
        stale = isinstance(found, Started) and self._resources.has_outdated_files(self._task)
        self._observed = replace(self._observed, searched=True, container=found, stale=stale)
        # An earlier agent may have ended before it could set them.
        self._limits = None
        self._compare_limits()
        if self._start_error:
            if found is None:
                now = self._backends.clock()
                self._recorder.record(
                    failed_status(self._task, self.status, self._start_error, now)
                )
            self._start_error = ""

    async def _prepare(self) -> None:
        self._recorder.advance(TaskState.PREPARING)
        mounts = None
        async with self._interrupt.interruptible():
            for end in self._predecessors(self._task):
                await end.wait()
            image = await self._resources.pull(self._task, self._recorder.set_message)
            mounts = await self._resources.mount(self._task, image, self._recorder.set_message)
            await self._wait_for_files()
        if mounts is None:
            return
        await self._resources.connect(self._task, image, mounts, self._recorder.set_message)
        if self._task.standalone and self._task.desired_state is TaskState.READY:
            # Clients can then attach before its program writes output.
            async with self._gate:
                self._limits = limits_of(self._task.spec)
                await self._resources.create(self._task)
        self._observed = replace(self._observed, prepared=True)
        self._recorder.advance(TaskState.READY)

    async def _wait_for_files(self) -> None:
        """Wait for its secrets and configs. They are in memory only, so a manager has to send them
        again after a reboot."""
        if missing := self._backends.files.missing(self.files):
            reason = f"waits for {missing}: not received from a manager yet"
            log.info(reason, extra={"task": self.id})
            self._recorder.set_message(reason)
        await self._backends.files.wait(self.files)
        if missing:
            self._recorder.set_message("")

    async def _start(self) -> None:
        started = None
        async with self._gate:
            if self._task.desired_state is not TaskState.RUNNING:
                return
            # From here on it may have run; see `lifecycle`.
            starting = replace(self._resources.with_addresses(self.status), hooks=0)
            if starting.state < TaskState.STARTING:
                starting = replace(starting, state=TaskState.STARTING, at=self._backends.clock())
            with suppress(CannotRecord):
                self._recorder.record(starting, durably=True)
                self._limits = self._limits or limits_of(self._task.spec)
                started = await self._resources.start(self._task)
        if started is None:
            async with self._interrupt.interruptible():
                await self._recorder.wait_writable()
            return
        self._observed = replace(self._observed, container=started, rebooted=False)
        self._compare_limits()

    async def _post_start(self) -> None:
        started = self._observed.container
        assert isinstance(started, Started)
        if self.status.started_at != started.started_at:
            self._recorder.record(replace(self.status, started_at=started.started_at))
        await self._run_hooks_within(
            POST_START, lambda: 0.0 if must_end(self._task, self.status) else None
        )

    async def _pre_stop(self) -> float:
        """Run the `pre_stop` hooks. Returns the seconds that they took."""
        if not due_pre_stop(self._task, self.status) or self._observed.hook_failure:
            return 0.0
        if self.status.paused:
            await self._backends.runtime.resume(self.id)
        now = asyncio.get_running_loop().time
        began = now()
        if not await self._run_hooks_within(
            PRE_STOP, lambda: max(began + grace_period(self._task) - now(), 0.0)
        ):
            grace = format_duration(grace_period(self._task))
            self._hook_failed(PRE_STOP, f"not done within the grace period of {grace}")
        return now() - began

    async def _run_hooks_within(self, phase: str, left: Callable[[], float | None]) -> bool:
        """Run the hooks of a phase until all succeed or one fails, the container ends, or no time
        is `left` (seconds; None: no limit), which each order may change. Returns False if the time
        ran out."""
        async with asyncio.TaskGroup() as group:
            hooks = group.create_task(self._run_hooks(phase), name=f"{phase} {self.id}")
            ended = group.create_task(self._backends.runtime.wait(self.id), name=f"end {self.id}")
            while not (hooks.done() or ended.done()) and (seconds := left()) != 0:
                async with self._interrupt.interruptible():
                    await asyncio.wait(
                        {hooks, ended}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
                    )
            hooks.cancel()
            ended.cancel()
        if not ended.cancelled():
            self._observed = replace(self._observed, container=ended.result())
            return True
        return not hooks.cancelled()

    async def _run_hooks(self, phase: str) -> None:
        """Run the hooks of a phase that have not succeeded yet, one by one, until one fails."""
        due = due_post_start if phase == POST_START else due_pre_stop
        while hooks := due(self._task, self.status):
            title = self._hook_title(phase)
            self._recorder.set_message(f"runs {title}")
            try:
                failure = await self._backends.hooks.run(self.id, hooks[0])
            except ContainerEnding:
                # The end of the container says why.
                await asyncio.get_running_loop().create_future()
            if failure:
                self._hook_failed(phase, failure)
                return
            log.info("lifecycle hook succeeded", extra={"task": self.id, "hook": title})
            done = self.status.hooks + 1
            now = self._backends.clock()
            self._recorder.record(replace(self.status, hooks=done, message="", at=now))

    def _hook_title(self, phase: str) -> str:
        """The next hook to run, such as `post_start hook 1 of 2 (/prepare)`."""
        spec = self._task.spec.container
        hooks, done = spec.post_start, self.status.hooks
        if phase == PRE_STOP:
            hooks, done = spec.pre_stop, done - len(spec.post_start)
        command = shlex.join(hooks[done].command)
        if len(command) > _COMMAND_LIMIT:
            command = command[: _COMMAND_LIMIT - 1] + "…"
        return f"{phase} hook {done + 1} of {len(hooks)} ({command})"

    def _hook_failed(self, phase: str, reason: str) -> None:
        title = self._hook_title(phase)
        log.warning(
            "lifecycle hook failed", extra={"task": self.id, "hook": title, "error": reason}
        )
        self._observed = replace(self._observed, hook_failure=f"{title} failed: {reason}")

    async def _record_running(self) -> None:
        started = self._observed.container
        assert isinstance(started, Started)
        probed = await self._resources.health_check(self._task) is not None
        self._recorder.record(running_status(self.status, started, probed, self._backends.clock()))
        log.info("running", extra={"task": self.id, "pid": started.pid})

    async def _watch(self) -> Exit:
        if self.status.health is Health.NONE:
            return await self._backends.runtime.wait(self.id)
        async with asyncio.TaskGroup() as group:
            checks = group.create_task(self._check_health(), name=f"health {self.id}")
            end = await self._backends.runtime.wait(self.id)
            checks.cancel()
        return end

    async def _check_health(self) -> None:
        if (check := await self._resources.health_check(self._task)) is not None:
            await self._health_monitor.run(self, check, self._record_health)

    def _record_health(self, health: Health, output: str) -> None:
        self._recorder.record(self._resources.with_health(self.status, health, output))
        if failing_health(self._task, self.status):
            self._interrupt.trigger()

    async def _connect(self) -> None:
        try:
            status = await self._resources.reconnect(self._task, self.status)
        except NetworkError as error:
            # It continues unchanged until another order.
            self._observed = replace(self._observed, unconnected=self._task.spec.networks)
            self._recorder.record(replace(self.status, message=f"{NOT_CONNECTED}{error}"))
            return
        if status.message.startswith(NOT_CONNECTED):
            status = replace(status, message="")
        self._recorder.record(status)

    def _compare_limits(self) -> None:
        """Note whether the limits of the container differ from the newest order."""
        wanted = limits_of(self._task.spec)
        runs = isinstance(self._observed.container, Started)
        resize = runs and wanted not in (self._limits, self._rejected_limits)
        self._observed = replace(self._observed, resize=resize)

    async def _resize(self) -> None:
        wanted = limits_of(self._task.spec)
        try:
            await self._enforce(self._task.spec)
        except (RuntimeFailure, OSError) as error:
            # The program continues; only another order leads to another attempt.
            self._rejected_limits = wanted
            reason = error_message(error)
            log.warning("limits cannot be set", extra={"task": self.id, "error": reason})
            self._recorder.record(replace(self.status, message=f"{NOT_RESIZED}{reason}"))
        else:
            if self.status.message.startswith(NOT_RESIZED):
                self._recorder.record(replace(self.status, message=""))
        self._compare_limits()

    async def _enforce(self, spec: TaskSpec) -> None:
        async with self._resizing:
            await self._backends.runtime.resize(self.id, spec)
            self._limits, self._rejected_limits = limits_of(spec), None

    async def _replace_files(self) -> None:
        # The program continues; after a failure only another order leads to another attempt.
        self._observed = replace(self._observed, stale=False)
        try:
            await self._resources.replace_files(self._task)
        except (FileError, RuntimeFailure, OSError) as error:
            reason = error_message(error)
            log.warning("secrets and configs not replaced: %s", reason, extra={"task": self.id})
            self._recorder.record(replace(self.status, message=f"{NOT_REPLACED}{reason}"))
            return
        log.info("secrets and configs replaced", extra={"task": self.id})
        if self.status.message.startswith(NOT_REPLACED):
            self._recorder.record(replace(self.status, message=""))

    async def _stop(self) -> None:
        runtime = self._backends.runtime
        self._hook_seconds += await self._pre_stop()
        if isinstance(self._observed.container, Exit):
            return
        await runtime.kill(self.id, await self._resources.stop_signal(self._task))
        if self.status.paused:
            await runtime.resume(self.id)
        end: Exit | None = None
        # A new order may shorten the grace period.
        async with self._interrupt.interruptible():
            try:
                async with asyncio.timeout(grace_left(self._task, self._hook_seconds)) as grace:
                    end = await runtime.wait(self.id)
            except TimeoutError:
                if not grace.expired():
                    raise
                await runtime.kill(self.id, signal.SIGKILL)
                end = await runtime.wait(self.id)
        if end is not None:
            self._observed = replace(self._observed, container=end)

    async def _release(self) -> None:
        # The end is reported after the first attempt: a replacement on this node may need the same
        # published port.
        async with self._removing():
            gone = await self._resources.release(self._task)
        self._recorder.record_released()
        self._observed = replace(
            self._observed,
            released=True,
            discarded=gone or self._observed.discarded,
            container=None,
        )

    async def _discard(self) -> None:
        async with self._removing():
            gone = await self._resources.discard(self._task)
        self._observed = replace(self._observed, discarded=gone)

    @asynccontextmanager
    async def _removing(self) -> AsyncIterator[None]:
        """Bound the concurrency and the time of an attempt at a removal. A removal that hung once
        is not counted, so that it delays no other."""
        turn = nullcontext() if self._removal_hangs else self._removals
        try:
            async with turn, asyncio.timeout(_REMOVAL_TIMEOUT):
                yield
        except TimeoutError:
            self._removal_hangs = True
            raise
        self._removal_hangs = False

    def _begin_next_run(self) -> None:
        self._recorder.begin_run(assigned_run(self._task))
        self._limits = self._rejected_limits = None
        self._observed = Observed(confirmed=self._observed.confirmed)
        self._hook_seconds = 0.0

    async def send_signal(self, number: int) -> None:
        """Send a signal to the container's init process. Raises RuntimeFailure."""
        self._check_running()
        await self._backends.runtime.kill(self.id, number)

    async def freeze(self, paused: bool) -> None:
        """Pause or resume the container. Raises RuntimeFailure."""
        self._check_running()
        runtime = self._backends.runtime
        await (runtime.pause(self.id) if paused else runtime.resume(self.id))
        if self.status.state is TaskState.RUNNING:
            self._recorder.record(replace(self.status, paused=paused))

    async def resize(self, spec: TaskSpec) -> None:
        """Enforce the limits of `spec`, which the next order will have. Raises RuntimeFailure."""
        self._check_running()
        await self._enforce(spec)

    def _check_running(self) -> None:
        if self.status.state is not TaskState.RUNNING:
            raise RuntimeFailure("it is not running")


class StatusRecorder:
    """Records and reports the status of one task; `begun` and `ended` are of its newest run."""

    def __init__(
        self,
        task_id: str,
        status: TaskStatus,
        clock: Callable[[], float],
        boot_id: str,
        db: StateDb,
        reporter: StatusReporter,
    ) -> None:
        """`status`, the last known one, is reported immediately."""
        self._id = task_id
        self._status = status
        self._clock = clock
        self._boot_id = boot_id
        self._db = db
        self._reporter = reporter
        self.begun = asyncio.Event()
        """Set once it is running or has ended."""
        self.ended = asyncio.Event()
        """Set once it has ended."""
        self._mark()
        self.report()

    @property
    def status(self) -> TaskStatus:
        """The newest status."""
        return self._status

    def report(self) -> None:
        """Report the status."""
        self._reporter.put(self._id, self._status)

    def advance(self, state: TaskState) -> None:
        """Report a state on the way to RUNNING, without recording it."""
        if self._status.state < state:
            self._status = replace(self._status, state=state, at=self._clock())
            self.report()

    def set_message(self, message: str) -> None:
        """Report what the task waits for; empty: nothing."""
        self._status = replace(self._status, message=message, at=self._clock())
        self.report()

    def record(self, status: TaskStatus, *, durably: bool = False) -> None:
        """Record a status, then report it, unless it is final: that is reported when its resources
        are released. If the disk refuses it, it is reported all the same and recorded later; with
        `durably`, CannotRecord is raised instead and the status stays unchanged."""
        self._db.put_status(self._id, status, self._boot_id, defer=not durably)
        self._status = status
        self._mark()
        if is_terminal(status.state):
            log.info(
                "%s: %s",
                status.state.name.lower(),
                status.message or f"exit status {status.exit_code}",
                extra={"task": self._id},
            )
        else:
            self._db.after(self.report)

    async def wait_writable(self) -> None:
        """Wait until the disk accepts records again; report the reason meanwhile."""
        trouble = self._db.trouble
        if trouble:
            self.set_message(f"waits: {trouble}")
        await self._db.writable()
        if trouble:
            self.set_message("")

    def record_released(self) -> None:
        """Record that its resources are released, then report its end."""
        self._db.put_released(self._id)
        self._db.after(self.report)

    def begin_run(self, run: int) -> None:
        """Begin the run of this number."""
        self._status = TaskStatus(state=TaskState.ACCEPTED, at=self._clock(), run=run)
        self._db.put_renewed(self._id, self._status, self._boot_id)
        self.begun, self.ended = asyncio.Event(), asyncio.Event()
        self._db.after(self.report)

    def _mark(self) -> None:
        if self._status.state >= TaskState.RUNNING:
            self.begun.set()
        if is_terminal(self._status.state):
            self.ended.set()


class Interrupt:
    """Cancels an interruptible block from outside; without such a block it has no effect."""

    def __init__(self) -> None:
        self._scope: asyncio.Timeout | None = None

    def trigger(self) -> None:
        """End the current interruptible block, if there is one."""
        if self._scope is not None:
            self._scope.reschedule(asyncio.get_running_loop().time())
            self._scope = None

    @asynccontextmanager
    async def interruptible(self) -> AsyncIterator[None]:
        """Leave the block silently when triggered; what it awaits must be safe to cancel."""
        try:
            async with asyncio.timeout(None) as scope:
                self._scope = scope
                yield
        except TimeoutError:
            if not scope.expired():
                raise
        finally:
            self._scope = None
