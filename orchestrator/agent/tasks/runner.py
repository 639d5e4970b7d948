"""The driver of one task: one asyncio task for each assigned task, for as long as it is assigned.

It asks `lifecycle.next_step`, does that step, and asks again. A change of the order interrupts what
may take long and is safe to cancel (fetching an image, waiting for the end, idling); what changes
the kernel (attach, create, start, remove) always finishes first.

An error never ends the agent. While the container is prepared and started, it ends the task, which
a manager then starts elsewhere. Once the container may run, an error is the agent's own (too many
open files, no memory, a bug) and says nothing about the container: it is left running, and the
agent looks for it again with backoff. Only what the container itself does ends the task then.

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
    begin,
    fail,
    given_run,
    grace_left,
    grace_of,
    next_step,
    post_start,
    pre_stop,
    runs,
    sense,
    settle,
    sick,
    to_end,
)
from orchestrator.agent.tasks.resources import TaskResources
from orchestrator.agent.tasks.secret_files import NOT_REPLACED, FileError
from orchestrator.agent.tasks.status_reporter import StatusReporter
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


class StatusRecorder:
    """One task's status; `begun` and `ended` are of its newest run."""

    def __init__(
        self,
        task_id: str,
        status: TaskStatus,
        clock: Callable[[], float],
        boot_id: str,
        db: StateDb,
        reporter: StatusReporter,
    ) -> None:
        """`status` is what is known so far; it is told at once."""
        self._id = task_id
        self._status = status
        self._clock = clock
        self._boot_id = boot_id
        self._db = db
        self._reporter = reporter
        self.begun = asyncio.Event()
        """Set once it runs or has ended."""
        self.ended = asyncio.Event()
        """Set once it has ended."""
        self._mark()
        self.tell()

    @property
    def status(self) -> TaskStatus:
        """The newest."""
        return self._status

    def tell(self) -> None:
        """Report the status as it is."""
        self._reporter.put(self._id, self._status)

    def advance(self, state: TaskState) -> None:
        """Report a step forward on the way to RUNNING. Nothing is lost if it is forgotten."""
        if self._status.state < state:
            self._status = replace(self._status, state=state, at=self._clock())
            self.tell()

    def say(self, message: str) -> None:
        """Report what it waits for; empty: nothing any more."""
        self._status = replace(self._status, message=message, at=self._clock())
        self.tell()

    def record(self, status: TaskStatus, *, durably: bool = False) -> None:
        """Write a status down, then report it; of a last one only `tell` speaks, when all is
        released. One that the disk refuses is reported all the same and written down later;
        `durably`, it raises CannotRecord, and the status is as it was."""
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
            self._db.after(self.tell)

    async def wait_writable(self) -> None:
        """Until something can be written down again, and report meanwhile what it waits for."""
        trouble = self._db.trouble
        if trouble:
            self.say(f"waits: {trouble}")
        await self._db.writable()
        if trouble:
            self.say("")

    def record_released(self) -> None:
        """Write down that it holds nothing any more, then report its end."""
        self._db.put_released(self._id)
        self._db.after(self.tell)

    def renew(self, run: int) -> None:
        """Begin anew, with the run of this number. Who waits for the end of the run before has
        it."""
        self._status = TaskStatus(state=TaskState.ACCEPTED, at=self._clock(), run=run)
        self._db.put_renewed(self._id, self._status, self._boot_id)
        self.begun, self.ended = asyncio.Event(), asyncio.Event()
        self._db.after(self.tell)

    def _mark(self) -> None:
        if self._status.state >= TaskState.RUNNING:
            self.begun.set()
        if is_terminal(self._status.state):
            self.ended.set()


class Interrupt:
    """One block at a time may be cut short by it; where there is none, nobody hears of it."""

    def __init__(self) -> None:
        self._scope: asyncio.Timeout | None = None

    def arrive(self) -> None:
        """Cut short the block that is under way, if there is one."""
        if self._scope is not None:
            self._scope.reschedule(asyncio.get_running_loop().time())
            self._scope = None

    @asynccontextmanager
    async def may_interrupt(self) -> AsyncIterator[None]:
        """Leave the block quietly when news arrives; what it awaits must bear that."""
        try:
            async with asyncio.timeout(None) as scope:
                self._scope = scope
                yield
        except TimeoutError:
            if not scope.expired():
                raise
        finally:
            self._scope = None


_RELEASE_LIMIT = 20.0
"""Seconds that a removal may take until the end of the task is reported without it."""
_RETRY_FIRST, _RETRY_MOST = 0.5, 30.0
"""Seconds between attempts to release, and to look after a container that may run."""

_UNATTENDED = frozenset(
    {
        *(Step.ADOPT, Step.POST_START, Step.RUN, Step.CONNECT, Step.RESIZE, Step.REFRESH),
        *(Step.WATCH, Step.STOP),
        Step.SETTLE,
    }
)
"""Steps about a container that may run, whatever goes wrong with them."""
NOT_RESIZED = "limits not changed: "
"""Begins the message of a container whose limits could not be set."""
_COMMAND_LIMIT = 60
"""Characters of a hook's command that are shown."""
_RETRYING = "not attended by its node's agent, which retries: "
"""Begins the message of a container that runs on after an error of the agent."""


class TaskRunner:
    """Drives one task to what its newest order says."""

    def __init__(
        self,
        assigned: dispatch_pb2.AssignedTask,
        record: Record | None,
        *,
        parts: Backends,
        db: StateDb,
        reporter: StatusReporter,
        gate: asyncio.Semaphore,
        removals: asyncio.Semaphore,
        predecessors: Callable[[Task], Iterable[asyncio.Event]] = lambda task: (),
        running: Callable[[str], Task | None] = lambda word: None,
    ) -> None:
        """`record` is what an earlier agent left, None for a new task; `gate` bounds how many
        containers are made at a time, `removals` how many are removed; `predecessors` are the ends
        that are waited for first."""
        self._parts = parts
        self._gate = gate
        self._removals = removals
        self._overdue = False
        """Its removal has taken too long already."""
        self._not_started = ""
        """What went wrong when it was started, if it is unknown whether it was."""
        self._hooks_took = 0.0
        """Seconds of the stop grace period that hooks have used."""
        self._predecessors = predecessors
        self._task: Task = from_proto(assigned.task)
        self._holding = TaskResources(parts, assigned, lambda: self.begun.is_set(), running)
        self._caretaker = HealthMonitor(parts.probes, parts.clock)
        self._resizing = asyncio.Lock()
        self._limits: Limits | None = None
        """Those that its container was made with, or was given since; None: not known."""
        self._refused: Limits | None = None
        """Those that could not be set."""
        self._assigned = True
        self.stop_after: float = assigned.stop_after
        """Seconds without a manager after which it is to be stopped; 0: never."""
        self.lonely = False
        """It was stopped for want of a manager, and none has said anything since."""
        self._news = Interrupt()
        status, self._observed = begin(
            self._task,
            record.status if record else None,
            released=record is not None and record.released,
            rebooted=record is not None and record.boot_id != parts.boot_id,
            now=parts.clock(),
        )
        self._account = StatusRecorder(self.id, status, parts.clock, parts.boot_id, db, reporter)

    @property
    def id(self) -> str:
        """The task's id, and so its container's."""
        return self._task.id

    @property
    def task(self) -> Task:
        """The newest order."""
        return self._task

    @property
    def volumes(self) -> Mapping[str, Volume]:
        """The named volumes of the newest order."""
        return self._holding.volumes

    @property
    def files(self) -> tuple[documents_pb2.AssignedFile, ...]:
        """The secrets and configs of the newest order."""
        return self._holding.files

    @property
    def status(self) -> TaskStatus:
        """The newest status."""
        return self._account.status

    @property
    def begun(self) -> asyncio.Event:
        """Set once the newest run is under way or has ended."""
        return self._account.begun

    @property
    def ended(self) -> asyncio.Event:
        """Set once the newest run has ended."""
        return self._account.ended

    @property
    def connected(self) -> TaskStatus:
        """The newest status, with the addresses that its container has before it starts."""
        status = self.status
        known = status.addresses or status.addresses6
        return status if known else self._holding.addressed(status)

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
            self._holding.take(assigned)
            self.stop_after, self.lonely = assigned.stop_after, False
            task = from_proto(assigned.task)
        stale = self._holding.stale(task)
        news = assigned is None or not self._observed.confirmed or sense(task) != sense(self._task)
        news = news or stale
        self._task = task
        self._observed = replace(self._observed, confirmed=True, stale=stale)
        self._compare_limits()
        news = news or self._observed.resize
        if news:
            self._news.arrive()

    def isolate(self) -> None:
        """Stop, since no manager has been there for too long."""
        self.lonely = True
        self._task = replace(self._task, desired_state=TaskState.SHUTDOWN)
        self._news.arrive()

    async def run(self) -> None:
        """Drive the task until it is no longer assigned and nothing of it is left."""
        retry = _RETRY_FIRST
        while True:
            step = next_step(self._task, self.status, self._observed)
            if step is Step.REST and not self._assigned:
                return
            try:
                await self._do(step)
                if step is not Step.ADOPT:
                    retry = _RETRY_FIRST
                if self.status.message.startswith(_RETRYING):
                    self._account.say("")
            except Exception as raised:
                error = root_cause(raised)
                reason = error_message(error)
                log.warning(
                    "%s failed: %s",
                    step.name.lower(),
                    reason,
                    extra={"task": self.id},
                    exc_info=None if isinstance(error, EXPECTED_ERRORS) else error,
                )
                if step in (Step.RELEASE, Step.DISCARD):
                    # The container's end is known, whatever still clings to it.
                    self._account.tell()
                    await asyncio.sleep(retry)
                    retry = min(2 * retry, _RETRY_MOST)
                elif step in _UNATTENDED:
                    self._account.say(f"{_RETRYING}{reason}")
                    async with self._news.may_interrupt():
                        await asyncio.sleep(retry)
                    retry = min(2 * retry, _RETRY_MOST)
                    self._look_again()
                elif step is Step.START and not isinstance(error, CONTAINER_ERRORS):
                    self._not_started = reason
                    self._look_again()
                else:
                    code = error.exit_code if isinstance(error, RuntimeFailure) else 0
                    now = self._parts.clock()
                    self._account.record(fail(self._task, self.status, reason, now, code))

    def _look_again(self) -> None:
        """Find out anew what there is of the container, unless its end is known."""
        if not isinstance(self._observed.container, Exit):
            self._observed = replace(self._observed, looked=False, container=None)

    async def _do(self, step: Step) -> None:
        match step:
            case Step.ADOPT:
                await self._adopt()
            case Step.PREPARE:
                await self._prepare()
            case Step.START:
                await self._start()
            case Step.POST_START:
                await self._post_start()
            case Step.RUN:
                await self._record_running()
            case Step.CONNECT:
                await self._connect()
            case Step.RESIZE:
                await self._resize()
            case Step.REFRESH:
                await self._refresh()
            case Step.WATCH:
                async with self._news.may_interrupt():
                    end = await self._watch()
                    self._observed = replace(self._observed, container=end)
            case Step.STOP:
                await self._stop()
            case Step.SETTLE:
                last = settle(self._task, self.status, self._observed, self._parts.clock())
                if self.lonely:
                    alone = format_duration(self.stop_after)
                    last = replace(last, message=f"stopped: no manager was there for {alone}")
                self._account.record(last)
            case Step.RELEASE:
                await self._release()
            case Step.RENEW:
                self._renew()
            case Step.DISCARD:
                await self._discard()
            case Step.REST:
                async with self._news.may_interrupt():
                    await asyncio.get_running_loop().create_future()

    async def _adopt(self) -> None:
        found = await self._parts.runtime.adopt(self.id)
        if found is None:
            # Whatever lies around of it cannot be used; a later start begins on clean ground.
            try:
                async with self._removing():
                    gone = await self._holding.clear(self._task)
                self._observed = replace(self._observed, discarded=gone)
            except (RuntimeFailure, OSError) as error:
                # That it is lost is known, whatever still clings to it.
                log.warning(
                    "what an earlier agent left cannot be removed yet",
                    extra={"task": self.id, "error": error_message(error)},
                )
        elif isinstance(found, Started) and self.status.state is TaskState.RUNNING:
            paused = await self._parts.runtime.paused(self.id)
            if paused is not self.status.paused:
                self._account.record(replace(self.status, paused=paused))
        log.info(
            "adopted: %s",
            "runs" if isinstance(found, Started) else "ended" if found else "nothing left",
            extra={"task": self.id},
        )
        stale = isinstance(found, Started) and self._holding.stale(self._task)
        self._observed = replace(self._observed, looked=True, container=found, stale=stale)
        # An earlier agent may have ended before it could set them.
        self._limits = None
        self._compare_limits()
        if self._not_started:
            if found is None:
                now = self._parts.clock()
                self._account.record(fail(self._task, self.status, self._not_started, now))
            self._not_started = ""

    async def _prepare(self) -> None:
        self._account.advance(TaskState.PREPARING)
        mounts = None
        async with self._news.may_interrupt():
            for end in self._predecessors(self._task):
                await end.wait()
            image = await self._holding.image(self._task, self._account.say)
            mounts = await self._holding.mount(self._task, image, self._account.say)
            await self._await_files()
        if mounts is None:
            return
        await self._holding.connect(self._task, image, mounts, self._account.say)
        if self._task.standalone and self._task.desired_state is TaskState.READY:
            # Then clients can attach before its program says a word.
            async with self._gate:
                self._limits = limits_of(self._task.spec)
                await self._holding.create(self._task)
        self._observed = replace(self._observed, prepared=True)
        self._account.advance(TaskState.READY)

    async def _await_files(self) -> None:
        """Until its secrets and configs are there. They are kept in memory only, so after a reboot
        a manager has to send them again."""
        if missing := self._parts.files.missing(self.files):
            reason = f"waits for {missing}, which a manager has yet to send"
            log.info(reason, extra={"task": self.id})
            self._account.say(reason)
        await self._parts.files.wait(self.files)
        if missing:
            self._account.say("")

    async def _start(self) -> None:
        started = None
        async with self._gate:
            if self._task.desired_state is not TaskState.RUNNING:
                return
            # From here on it counts as "may have run"; see the module `lifecycle`.
            starting = replace(self._holding.addressed(self.status), hooks=0)
            if starting.state < TaskState.STARTING:
                starting = replace(starting, state=TaskState.STARTING, at=self._parts.clock())
            with suppress(CannotRecord):
                self._account.record(starting, durably=True)
                self._limits = self._limits or limits_of(self._task.spec)
                started = await self._holding.start(self._task)
        if started is None:
            async with self._news.may_interrupt():
                await self._account.wait_writable()
            return
        self._observed = replace(self._observed, container=started, rebooted=False)
        self._compare_limits()

    async def _post_start(self) -> None:
        started = self._observed.container
        assert isinstance(started, Started)
        if self.status.started_at != started.started_at:
            self._account.record(replace(self.status, started_at=started.started_at))
        await self._attend_hooks(
            POST_START, lambda: 0.0 if to_end(self._task, self.status) else None
        )

    async def _pre_stop(self) -> float:
        """Run the hooks before a stop. Returns the seconds that they took."""
        if not pre_stop(self._task, self.status) or self._observed.hook_failure:
            return 0.0
        if self.status.paused:
            await self._parts.runtime.resume(self.id)
        now = asyncio.get_running_loop().time
        began = now()
        if not await self._attend_hooks(
            PRE_STOP, lambda: max(began + grace_of(self._task) - now(), 0.0)
        ):
            grace = format_duration(grace_of(self._task))
            self._hook_failed(PRE_STOP, f"not done within the grace period of {grace}")
        return now() - began

    async def _attend_hooks(self, phase: str, left: Callable[[], float | None]) -> bool:
        """Run the hooks of a phase until they are done or one fails, or the container has ended,
        or none of the time is `left` (in seconds; None: no limit); each order may change that.
        Returns False if the time ran out."""
        async with asyncio.TaskGroup() as group:
            hooks = group.create_task(self._run_hooks(phase), name=f"{phase} {self.id}")
            ended = group.create_task(self._parts.runtime.wait(self.id), name=f"end {self.id}")
            while not (hooks.done() or ended.done()) and (seconds := left()) != 0:
                async with self._news.may_interrupt():
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
        """Run the hooks of a phase that have not succeeded yet, in turn, up to one that fails."""
        due = post_start if phase == POST_START else pre_stop
        while hooks := due(self._task, self.status):
            title = self._hook_title(phase)
            self._account.say(f"runs {title}")
            try:
                failure = await self._parts.hooks.run(self.id, hooks[0])
            except ContainerEnding:
                # Its end says why.
                await asyncio.get_running_loop().create_future()
            if failure:
                self._hook_failed(phase, failure)
                return
            log.info("lifecycle hook succeeded", extra={"task": self.id, "hook": title})
            done = self.status.hooks + 1
            now = self._parts.clock()
            self._account.record(replace(self.status, hooks=done, message="", at=now))

    def _hook_title(self, phase: str) -> str:
        """Which hook is the next to run, such as `post_start hook 1 of 2 (/prepare)`."""
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
        probed = await self._holding.health(self._task) is not None
        self._account.record(runs(self.status, started, probed, self._parts.clock()))
        log.info("running", extra={"task": self.id, "pid": started.pid})

    async def _watch(self) -> Exit:
        if self.status.health is Health.NONE:
            return await self._parts.runtime.wait(self.id)
        async with asyncio.TaskGroup() as group:
            care = group.create_task(self._care(), name=f"health {self.id}")
            end = await self._parts.runtime.wait(self.id)
            care.cancel()
        return end

    async def _care(self) -> None:
        if (check := await self._holding.health(self._task)) is not None:
            await self._caretaker.attend(self, check, self._record_health)

    def _record_health(self, health: Health, output: str) -> None:
        self._account.record(self._holding.judged(self.status, health, output))
        if sick(self._task, self.status):
            self._news.arrive()

    async def _connect(self) -> None:
        try:
            status = await self._holding.reconnect(self._task, self.status)
        except NetworkError as error:
            # It runs on as it is; another order may be one that can be followed.
            self._observed = replace(self._observed, unconnected=self._task.spec.networks)
            self._account.record(replace(self.status, message=f"{NOT_CONNECTED}{error}"))
            return
        if status.message.startswith(NOT_CONNECTED):
            status = replace(status, message="")
        self._account.record(status)

    def _compare_limits(self) -> None:
        """Note whether the container has other limits than the newest order says."""
        wanted = limits_of(self._task.spec)
        runs = isinstance(self._observed.container, Started)
        resize = runs and wanted not in (self._limits, self._refused)
        self._observed = replace(self._observed, resize=resize)

    async def _resize(self) -> None:
        wanted = limits_of(self._task.spec)
        try:
            await self._enforce(self._task.spec)
        except (RuntimeFailure, OSError) as error:
            # It is tried again only by another order: the program runs on.
            self._refused = wanted
            reason = error_message(error)
            log.warning("limits cannot be set", extra={"task": self.id, "error": reason})
            self._account.record(replace(self.status, message=f"{NOT_RESIZED}{reason}"))
        else:
            if self.status.message.startswith(NOT_RESIZED):
                self._account.record(replace(self.status, message=""))
        self._compare_limits()

    async def _enforce(self, spec: TaskSpec) -> None:
        async with self._resizing:
            await self._parts.runtime.resize(self.id, spec)
            self._limits, self._refused = limits_of(spec), None

    async def _refresh(self) -> None:
        # Whatever comes of it, it is tried again only by another order: the program runs on.
        self._observed = replace(self._observed, stale=False)
        try:
            await self._holding.refresh(self._task)
        except (FileError, RuntimeFailure, OSError) as error:
            reason = error_message(error)
            log.warning("its files are as they were: %s", reason, extra={"task": self.id})
            self._account.record(replace(self.status, message=f"{NOT_REPLACED}{reason}"))
            return
        log.info("secrets and configs replaced", extra={"task": self.id})
        if self.status.message.startswith(NOT_REPLACED):
            self._account.record(replace(self.status, message=""))

    async def _stop(self) -> None:
        runtime = self._parts.runtime
        self._hooks_took += await self._pre_stop()
        if isinstance(self._observed.container, Exit):
            return
        await runtime.kill(self.id, await self._holding.stop_signal(self._task))
        if self.status.paused:
            await runtime.resume(self.id)
        end: Exit | None = None
        # Another order may give it less time.
        async with self._news.may_interrupt():
            try:
                async with asyncio.timeout(grace_left(self._task, self._hooks_took)) as grace:
                    end = await runtime.wait(self.id)
            except TimeoutError:
                if not grace.expired():
                    raise
                await runtime.kill(self.id, signal.SIGKILL)
                end = await runtime.wait(self.id)
        if end is not None:
            self._observed = replace(self._observed, container=end)

    async def _release(self) -> None:
        # The end is reported after the first attempt: a replacement on this node may need the
        # same published port, and must not find it taken by what has just ended.
        async with self._removing():
            gone = await self._holding.release(self._task)
        self._account.record_released()
        self._observed = replace(
            self._observed,
            released=True,
            discarded=gone or self._observed.discarded,
            container=None,
        )

    async def _discard(self) -> None:
        async with self._removing():
            gone = await self._holding.discard(self._task)
        self._observed = replace(self._observed, discarded=gone)

    @asynccontextmanager
    async def _removing(self) -> AsyncIterator[None]:
        """For an attempt at a removal: not too many at a time, but for those that hang, which are
        not to keep others waiting."""
        turn = nullcontext() if self._overdue else self._removals
        try:
            async with turn, asyncio.timeout(_RELEASE_LIMIT):
                yield
        except TimeoutError:
            self._overdue = True
            raise
        self._overdue = False

    def _renew(self) -> None:
        self._account.renew(given_run(self._task))
        self._limits = self._refused = None
        self._observed = Observed(confirmed=self._observed.confirmed)
        self._hooks_took = 0.0

    async def send_signal(self, number: int) -> None:
        """Send a signal to the container's first process. Raises RuntimeFailure."""
        self._check_running()
        await self._parts.runtime.kill(self.id, number)

    async def freeze(self, paused: bool) -> None:
        """Pause the container, or let it go on. Raises RuntimeFailure."""
        self._check_running()
        runtime = self._parts.runtime
        await (runtime.pause(self.id) if paused else runtime.resume(self.id))
        if self.status.state is TaskState.RUNNING:
            self._account.record(replace(self.status, paused=paused))

    async def resize(self, spec: TaskSpec) -> None:
        """Enforce the limits of `spec`, which the next order will have. Raises RuntimeFailure."""
        self._check_running()
        await self._enforce(spec)

    def _check_running(self) -> None:
        if self.status.state is not TaskState.RUNNING:
            raise RuntimeFailure("it is not running")
