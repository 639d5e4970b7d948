"""All tasks of the node: records assignments, then has a runner drive each task.

A full set is the truth: recorded tasks that it lacks are removed. Containers without a record (of a
lost state file, or of a node that was removed and joined anew) are removed after the first full
set, never before: without a manager's word, nothing is decided.

`stop_disconnected` stops tasks that must not run while no manager can see them (`--on-disconnect
stop-after=…`). The manager replaces such a task only when it is sure to have ended: that long after
it has declared this node down, which is later than this node notices, because a dead session is
noticed in four seconds, and a node is down after five.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from orchestrator.agent.network.name_server import DnsClient, dns_client
from orchestrator.agent.statedb import CannotRecord, Record, StateDb
from orchestrator.agent.tasks.backends import EXPECTED_ERRORS, Backends, error_message
from orchestrator.agent.tasks.runner import TaskRunner
from orchestrator.agent.tasks.status_reporter import StatusReporter
from orchestrator.agent.volumes.volume_errors import VolumeError
from orchestrator.model.convert import from_proto
from orchestrator.model.formats.generic_resources import supply_names
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.pb import dispatch_pb2, documents_pb2

log = logging.getLogger(__name__)

STARTS_AT_A_TIME = 8
"""Containers that are being made at once. A start is mostly waiting for conmon and crun: with 1, 4
and 8 at once, 77, 137 and 173 a second were made on 2 cores; more only makes each slower."""


_SWEEP_FIRST, _SWEEP_MOST = 1.0, 60.0
"""Seconds between attempts to remove what is nobody's."""
_SWEEP_LIMIT = 20.0
"""Seconds that one container may keep the others waiting."""


class Worker:
    """Drives every assigned task; an async context manager. Leaving it stops the driving, not the
    containers."""

    def __init__(
        self,
        parts: Backends,
        db: StateDb,
        reporter: StatusReporter,
        *,
        starts: int = STARTS_AT_A_TIME,
    ) -> None:
        self._parts = parts
        self._db = db
        self._reporter = reporter
        self._gate = asyncio.Semaphore(starts)
        self._removals = asyncio.Semaphore(starts)
        self._held: dict[str, dispatch_pb2.AssignedTask] = {}
        """New tasks that begin once they are recorded."""
        self._runners: dict[str, TaskRunner] = {}
        self._swept = False
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        records = self._db.records()
        self._parts.logs.retain(records)
        self._parts.log_drivers.retain(records)
        self._parts.network.order(self._db.networks())
        await self._group.__aenter__()
        for record in records.values():
            self._begin(record.assigned, record)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(kind, error, trace)

    @property
    def runners(self) -> Mapping[str, TaskRunner]:
        """The tasks that this node has, by id."""
        return self._runners

    def holders(self) -> frozenset[str]:
        """Ids of the tasks of which anything may be in this host's kernel."""
        return frozenset(task_id for task_id, runner in self._runners.items() if runner.holds)

    def clients(self) -> dict[str, DnsClient]:
        """The containers of which the name server must know more than their network, by task."""
        found = ((task_id, self.client(task_id)) for task_id in self._runners)
        return {task_id: client for task_id, client in found if client is not None}

    def client(self, task_id: str) -> DnsClient | None:
        """One of `clients`; None for another task."""
        runner = self._runners.get(task_id)
        return None if runner is None else dns_client(runner.task, runner.connected)

    def running(self, word: str) -> Task | None:
        """The running task that a user means by a name, an id, or the beginning of one."""
        running = [
            runner.task
            for runner in self._runners.values()
            if runner.status.state is TaskState.RUNNING
        ]
        named = [task for task in running if word in (task.id, task.name)]
        found = named or [task for task in running if task.id.startswith(word)]
        return max(found, key=lambda task: task.created_at, default=None)

    def apply(
        self,
        tasks: Sequence[dispatch_pb2.AssignedTask],
        removed: Sequence[str],
        networks: Sequence[dispatch_pb2.AssignedNetwork] | None,
        *,
        full: bool,
    ) -> None:
        """Write an assignment down, then act on it: `tasks` are new or changed, `removed` go,
        `networks` is the complete list or None; with `full`, whatever is not in `tasks` goes.

        While the disk takes nothing, new tasks wait. Orders for others are followed all the same:
        after a restart the agent may know an older one, until a manager repeats the newest.
        """
        if full:
            told = {assigned.task.id for assigned in tasks}
            removed = [each for each in (*self._runners, *self._held) if each not in told]
        try:
            self._db.put_assignments(tasks, networks, self._parts.boot_id)
            wait: set[str] = set()
        except CannotRecord:
            wait = {each.task.id for each in tasks if each.task.id not in self._runners}
            known = [each for each in tasks if each.task.id not in wait]
            self._db.put_assignments(known, networks, self._parts.boot_id, defer=True)
        if networks is not None:
            self._parts.network.order(networks)
        for assigned in tasks:
            runner = self._runners.get(assigned.task.id)
            if runner is not None:
                runner.order(assigned)
                self._reporter.changed(runner.id)
            elif assigned.task.id in wait:
                self._hold(assigned)
            else:
                self._held.pop(assigned.task.id, None)
                self._begin(assigned, None)
        for task_id in removed:
            if self._held.pop(task_id, None) is not None:
                self._reporter.forget(task_id)
            if (runner := self._runners.get(task_id)) is not None:
                runner.order(None)
        self._retain_files(assigned=True)
        if full and not self._swept:
            self._swept = True
            self._spawn(self._sweep(), "sweep")

    async def clear(self) -> None:
        """Stop and remove all tasks; return when nothing of them is left. Volumes stay."""
        self.apply((), (), (), full=True)
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def take(self, payload: documents_pb2.Payload) -> None:
        """Keep the data of a secret or config, of which the next assignment tells."""
        self._parts.files.take(payload)

    def _hold(self, assigned: dispatch_pb2.AssignedTask) -> None:
        """Begin a task once it is recorded; one that is to end anyway ends now."""
        if assigned.task.desired_state > TaskState.RUNNING:
            self._db.put_assignments([assigned], None, self._parts.boot_id, defer=True)
            self._held.pop(assigned.task.id, None)
            self._begin(assigned, None)
            return
        if not self._held:
            self._spawn(self._begin_held(), "tasks that wait for the disk")
        self._held[assigned.task.id] = assigned
        status: TaskStatus = from_proto(assigned.task.status)
        if self._db.trouble and status.state <= TaskState.ASSIGNED:
            message = f"waits: {self._db.trouble}"
            now = self._parts.clock()
            waits = replace(status, state=TaskState.ASSIGNED, at=now, message=message)
            self._reporter.put(assigned.task.id, waits)

    async def _begin_held(self) -> None:
        while self._held:
            await self._db.writable()
            held, self._held = self._held, {}
            try:
                self._db.put_assignments(list(held.values()), None, self._parts.boot_id)
            except CannotRecord:
                self._held = held
                continue
            for assigned in held.values():
                self._begin(assigned, None)

    def _begin(self, assigned: dispatch_pb2.AssignedTask, record: Record | None) -> None:
        if record is None and assigned.task.status.state <= TaskState.ASSIGNED:
            now = self._parts.clock()
            self._parts.tracer.record("dispatch", assigned.sent_at, now, assigned.trace)
        runner = TaskRunner(
            assigned,
            record,
            parts=self._parts,
            db=self._db,
            reporter=self._reporter,
            gate=self._gate,
            removals=self._removals,
            predecessors=self._predecessors,
            running=self.running,
        )
        self._runners[runner.id] = runner
        self._spawn(self._drive(runner), f"task {runner.id}")

    def _predecessors(self, task: Task) -> list[asyncio.Event]:
        """The ends of older tasks that have generic resources which this one was given. A manager
        gives them away anew when it has lost sight of this node and of what runs here."""
        names = _given(task)
        return [
            runner.ended
            for runner in self._runners.values()
            if names & _given(runner.task) and runner.task.created_at < task.created_at
        ]

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> None:
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drive(self, runner: TaskRunner) -> None:
        places = (self._parts.runtime.log_path(runner.id), self._parts.logs.path(runner.id))
        async with self._parts.log_drivers.sending(
            # Asked anew each time: another run has other events.
            runner.task,
            lambda: runner.begun.wait(),
            lambda: runner.ended.is_set(),
            places,
        ):
            await runner.run()
        self._db.forget(runner.id)
        del self._runners[runner.id]
        self._reporter.forget(runner.id)
        self._parts.logs.forget(runner.id)
        self._parts.log_drivers.forget(runner.id)
        self._retain_files(assigned=False)

    def _retain_files(self, *, assigned: bool) -> None:
        """Forget the data of secrets and configs that no task names any more."""
        self._parts.files.retain(
            {
                file.payload
                for files in (
                    *(runner.files for runner in self._runners.values()),
                    *(assigned.files for assigned in self._held.values()),
                )
                for file in files
            },
            assigned=assigned,
        )

    async def _sweep(self) -> None:
        """Remove what is nobody's, until nothing of it is left."""
        left: set[str] = set()
        """Containers of which something may be left, perhaps only in the network."""
        pause = _SWEEP_FIRST
        while not await self._swept_clean(left):
            await asyncio.sleep(pause)
            pause = min(2 * pause, _SWEEP_MOST)

    async def _swept_clean(self, left: set[str]) -> bool:
        """Try to remove all that is nobody's; whether nothing is left."""
        clean = True
        try:
            left |= await self._parts.runtime.list()
        except OSError as error:
            log.warning("containers cannot be listed", extra={"error": str(error)})
            clean = False
        left -= self._runners.keys() | self._held.keys()
        for container_id in sorted(left):
            log.warning("removing a container that is not assigned", extra={"task": container_id})
            try:
                async with self._removals, asyncio.timeout(_SWEEP_LIMIT):
                    await self._parts.runtime.remove(container_id)
                    await self._parts.network.detach(container_id)
            except Exception as error:
                log.warning(
                    "container that is not assigned cannot be removed; retrying",
                    extra={"task": container_id, "error": error_message(error)},
                    exc_info=None if isinstance(error, EXPECTED_ERRORS) else error,
                )
                clean = False
            else:
                left.discard(container_id)
        try:
            self._parts.files.retain_tasks(self._runners.keys())
            await self._parts.volumes.retain(self._runners.keys())
        except (VolumeError, OSError) as error:
            log.warning(
                "volumes of containers that are gone cannot be given back; retrying",
                extra={"error": error_message(error)},
            )
            clean = False
        return clean


def _given(task: Task) -> set[tuple[str, str]]:
    """The generic resources that the task was given by name: pairs of kind and name."""
    given = task.generic_resources.items()
    return {(kind, name) for kind, value in given for name in supply_names(value)}


CONNECTION_PERIOD = 0.5
"""Seconds between two looks."""


async def watch_connection(
    connected: Callable[[], bool],
    runners: Callable[[], Iterable[TaskRunner]],
    clock: Callable[[], float],
) -> None:
    """Look until cancelled; `clock` is monotonic, in seconds. An agent that has just started counts
    from then."""
    alone_since = clock()
    while True:
        await asyncio.sleep(CONNECTION_PERIOD)
        now = clock()
        if connected():
            alone_since = now
        else:
            stop_disconnected(runners(), now - alone_since)


def stop_disconnected(runners: Iterable[TaskRunner], alone: float) -> None:
    """Stop those that may not be alone for so many seconds."""
    for runner in runners:
        if 0 < runner.stop_after <= alone and not runner.lonely:
            log.warning("stopped: no manager for too long", extra={"task": runner.id})
            runner.isolate()
