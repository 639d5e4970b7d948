# SPDX-License-Identifier: Apache-2.0
"""All tasks of the node: records assignments and starts a runner for each task.

A full set is authoritative: recorded tasks that it lacks are removed. Containers without a record
(after the loss of the state file, or of a node that was removed and has joined again) are removed
after the first full set, never before: without a manager, nothing is decided.

`stop_disconnected` stops tasks that must not run without a connection to a manager
(`--on-disconnect stop-after=…`). The manager replaces such a task only when it must have ended:
that long after it has declared this node down. This node detects the disconnection earlier, because
a dead session is detected within four seconds, and a node is down after five.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from orchestrator.agent.network.name_server import DnsClient, dns_client
from orchestrator.agent.statedb import CannotRecord, Record, StateDb
from orchestrator.agent.tasks.backends import EXPECTED_ERRORS, Backends, error_message
from orchestrator.agent.tasks.orphans import Orphans
from orchestrator.agent.tasks.runner import TaskRunner
from orchestrator.agent.tasks.status_reporter import StatusReporter
from orchestrator.agent.volumes.volume_errors import VolumeError
from orchestrator.model.convert import from_proto
from orchestrator.model.formats.generic_resources import supply_names
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.pb import dispatch_pb2, documents_pb2

log = logging.getLogger(__name__)

CONCURRENT_STARTS = 8
"""Maximum number of concurrent starts. A start mostly waits for conmon and crun: with 1, 4 and 8
concurrent starts, 77, 137 and 173 per second were measured on 2 cores; more only delay each
other."""

_SWEEP_FIRST, _SWEEP_MOST = 1.0, 60.0
"""Seconds between attempts to remove leftovers."""
_SWEEP_LIMIT = 20.0
"""Seconds that the removal of one container may delay the others."""


class Worker:
    """Runs every assigned task; an async context manager. Leaving it stops the runners, not the
    containers."""

    def __init__(
        self,
        backends: Backends,
        db: StateDb,
        reporter: StatusReporter,
        *,
        starts: int = CONCURRENT_STARTS,
    ) -> None:
        self._backends = backends
        self._db = db
        self._reporter = reporter
        self._gate = asyncio.Semaphore(starts)
        self._removals = asyncio.Semaphore(starts)
        self._unrecorded: dict[str, dispatch_pb2.AssignedTask] = {}
        """New tasks that start once they are recorded."""
        self._runners: dict[str, TaskRunner] = {}
        self.orphans = Orphans(db, self._runners)
        self._swept = False
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        records = self._db.records()
        self._backends.logs.retain(records)
        self._backends.log_drivers.retain(records)
        self._backends.network.order(self._db.networks())
        await self._group.__aenter__()
        for record in records.values():
            self._start_runner(record.assigned, record)
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
        """The runners of all tasks, by task id."""
        return self._runners

    def holders(self) -> frozenset[str]:
        """Ids of the tasks that may have resources in the kernel."""
        return frozenset(
            task_id for task_id, runner in self._runners.items() if runner.may_hold_resources
        )

    def clients(self) -> dict[str, DnsClient]:
        """The containers with DNS settings of their own, by task."""
        found = ((task_id, self.client(task_id)) for task_id in self._runners)
        return {task_id: client for task_id, client in found if client is not None}

    def client(self, task_id: str) -> DnsClient | None:
        """One of `clients`; None for another task."""
        runner = self._runners.get(task_id)
        return None if runner is None else dns_client(runner.task, runner.status_with_addresses)

    def running(self, word: str) -> Task | None:
        """The running task with a name, an id, or a prefix of an id."""
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
        incarnation: str | None = None,
    ) -> None:
        """Record an assignment, then act on it: `tasks` are new or changed, `removed` are removed,
        `networks` is the complete list or None; with `full`, tasks that are not listed are removed,
        but for orphans if the `incarnation` of the cluster is given.

        While the disk refuses records, new tasks wait. Orders for known tasks are followed anyway:
        after a restart the agent may have an older order, until a manager sends the newest.
        """
        if full:
            listed = {assigned.task.id for assigned in tasks}
            if incarnation is None:
                self.orphans.release(list(self._runners))
            else:
                self.orphans.hold(listed, incarnation)
            known_ids = (*self._runners, *self._unrecorded)
            removed = [
                each for each in known_ids if each not in listed and each not in self.orphans
            ]
        else:
            self.orphans.release([assigned.task.id for assigned in tasks])
        if networks is not None:
            networks = self.orphans.with_networks(networks)
        try:
            self._db.put_assignments(tasks, networks, self._backends.boot_id)
            wait: set[str] = set()
        except CannotRecord:
            wait = {each.task.id for each in tasks if each.task.id not in self._runners}
            known = [each for each in tasks if each.task.id not in wait]
            self._db.put_assignments(known, networks, self._backends.boot_id, defer=True)
        if networks is not None:
            self._backends.network.order(networks)
        for assigned in tasks:
            runner = self._runners.get(assigned.task.id)
            if runner is not None:
                runner.assign(assigned)
                self._reporter.changed(runner.id)
            elif assigned.task.id in wait:
                self._start_when_recorded(assigned)
            else:
                self._unrecorded.pop(assigned.task.id, None)
                self._start_runner(assigned, None)
        for task_id in removed:
            if self._unrecorded.pop(task_id, None) is not None:
                self._reporter.forget(task_id)
            if (runner := self._runners.get(task_id)) is not None:
                runner.unassign()
        self._retain_files(assigned=True)
        if full and not self._swept:
            self._swept = True
            self._spawn(self._sweep(), "sweep")

    def remove_orphans(self, times: int, tasks: Collection[str] = ()) -> None:
        """Remove those of the orphans that are in `tasks`; or all, if a user has asked for that
        more often than before: `times`."""
        for task_id in self.orphans.taken(times, tasks):
            if (runner := self._runners.get(task_id)) is not None:
                runner.unassign()

    async def clear(self) -> None:
        """Stop and remove all tasks; return when they are removed. Volumes stay."""
        self.apply((), (), (), full=True)
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def take(self, payload: documents_pb2.Payload) -> None:
        """Keep the data of a secret or config that the next assignment uses."""
        self._backends.files.take(payload)

    def _start_when_recorded(self, assigned: dispatch_pb2.AssignedTask) -> None:
        """Start a task once it is recorded; one that is to stop anyway ends now."""
        if assigned.task.desired_state > TaskState.RUNNING:
            self._db.put_assignments([assigned], None, self._backends.boot_id, defer=True)
            self._unrecorded.pop(assigned.task.id, None)
            self._start_runner(assigned, None)
            return
        if not self._unrecorded:
            self._spawn(self._start_unrecorded(), "tasks that wait for the disk")
        self._unrecorded[assigned.task.id] = assigned
        status: TaskStatus = from_proto(assigned.task.status)
        if self._db.trouble and status.state <= TaskState.ASSIGNED:
            message = f"waits: {self._db.trouble}"
            now = self._backends.clock()
            waits = replace(status, state=TaskState.ASSIGNED, at=now, message=message)
            self._reporter.put(assigned.task.id, waits)

    async def _start_unrecorded(self) -> None:
        while self._unrecorded:
            await self._db.writable()
            unrecorded, self._unrecorded = self._unrecorded, {}
            try:
                self._db.put_assignments(list(unrecorded.values()), None, self._backends.boot_id)
            except CannotRecord:
                self._unrecorded = unrecorded
                continue
            for assigned in unrecorded.values():
                self._start_runner(assigned, None)

    def _start_runner(self, assigned: dispatch_pb2.AssignedTask, record: Record | None) -> None:
        if record is None and assigned.task.status.state <= TaskState.ASSIGNED:
            now = self._backends.clock()
            self._backends.tracer.record("dispatch", assigned.sent_at, now, assigned.trace)
        runner = TaskRunner(
            assigned,
            record,
            backends=self._backends,
            db=self._db,
            reporter=self._reporter,
            gate=self._gate,
            removals=self._removals,
            predecessors=self._predecessors,
            running=self.running,
        )
        self._runners[runner.id] = runner
        self._spawn(self._run(runner), f"task {runner.id}")

    def _predecessors(self, task: Task) -> list[asyncio.Event]:
        """The ends of older tasks with generic resources of this one: a manager reassigns them when
        it has lost the connection to this node."""
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

    async def _run(self, runner: TaskRunner) -> None:
        places = (self._backends.runtime.log_path(runner.id), self._backends.logs.path(runner.id))
        async with self._backends.log_drivers.sending(
            # Looked up each time: each run has events of its own.
            runner.task,
            lambda: runner.begun.wait(),
            lambda: runner.ended.is_set(),
            places,
        ):
            await runner.run()
        self._db.forget(runner.id)
        del self._runners[runner.id]
        self.orphans.ended(runner.id)
        self._reporter.forget(runner.id)
        self._backends.logs.forget(runner.id)
        self._backends.log_drivers.forget(runner.id)
        self._retain_files(assigned=False)

    def _retain_files(self, *, assigned: bool) -> None:
        """Drop the data of secrets and configs that no task uses any more."""
        self._backends.files.retain(
            {
                file.payload
                for files in (
                    *(runner.files for runner in self._runners.values()),
                    *(assigned.files for assigned in self._unrecorded.values()),
                )
                for file in files
            },
            assigned=assigned,
        )

    async def _sweep(self) -> None:
        """Remove containers, files and volumes without a task, until none is left."""
        left: set[str] = set()
        """Containers with possible remains, such as only an attachment."""
        pause = _SWEEP_FIRST
        while not await self._remove_leftovers(left):
            await asyncio.sleep(pause)
            pause = min(2 * pause, _SWEEP_MOST)

    async def _remove_leftovers(self, left: set[str]) -> bool:
        """Try once to remove containers, files and volumes without a task; return whether none is
        left."""
        clean = True
        try:
            left |= await self._backends.runtime.list()
        except OSError as error:
            log.warning("containers cannot be listed", extra={"error": str(error)})
            clean = False
        left -= self._runners.keys() | self._unrecorded.keys()
        for container_id in sorted(left):
            log.warning("removing a container that is not assigned", extra={"task": container_id})
            try:
                async with self._removals, asyncio.timeout(_SWEEP_LIMIT):
                    await self._backends.runtime.remove(container_id)
                    await self._backends.network.detach(container_id)
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
            self._backends.files.retain_tasks(self._runners.keys())
            await self._backends.volumes.retain(self._runners.keys())
        except (VolumeError, OSError) as error:
            log.warning(
                "volumes of removed containers cannot be released; retrying",
                extra={"error": error_message(error)},
            )
            clean = False
        return clean


def _given(task: Task) -> set[tuple[str, str]]:
    """The named generic resources of the task: pairs of kind and name."""
    given = task.generic_resources.items()
    return {(kind, name) for kind, value in given for name in supply_names(value)}


CONNECTION_PERIOD = 0.5
"""Seconds between two checks."""


async def watch_connection(
    connected: Callable[[], bool],
    runners: Callable[[], Iterable[TaskRunner]],
    clock: Callable[[], float],
) -> None:
    """Stop tasks that must not run without a manager, until cancelled. `clock` is monotonic, in
    seconds; a disconnection begins with this agent process at the earliest."""
    disconnected_since = clock()
    while True:
        await asyncio.sleep(CONNECTION_PERIOD)
        now = clock()
        if connected():
            disconnected_since = now
        else:
            stop_disconnected(runners(), now - disconnected_since)


def stop_disconnected(runners: Iterable[TaskRunner], seconds: float) -> None:
    """Stop tasks that must not be disconnected for that many seconds."""
    for runner in runners:
        if 0 < runner.stop_after <= seconds and not runner.stopped_disconnected:
            log.warning(
                "stopping task: no manager reachable for too long", extra={"task": runner.id}
            )
            runner.stop_disconnected()
