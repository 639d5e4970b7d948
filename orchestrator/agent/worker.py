"""All tasks of the node: takes assignments, writes them down, then lets a runner drive each.

A full set is the truth: what is recorded and not in it goes. Containers that no record knows
(from a lost state file, or of a node that was removed and joined anew) are removed after the first
full set, never before: until a manager has spoken, nobody decides anything.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Self

from orchestrator.agent.names import Client, client_of
from orchestrator.agent.parts import Parts
from orchestrator.agent.reporter import Reporter
from orchestrator.agent.runner import TaskRunner
from orchestrator.agent.statedb import Record, StateDb
from orchestrator.agent.volumes.errors import VolumeError
from orchestrator.model.generic import supply_names
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task
from orchestrator.pb import dispatch_pb2, documents_pb2

log = logging.getLogger(__name__)

STARTS_AT_A_TIME = 8
"""Containers that are being made at once. A start is mostly waiting for conmon and crun: with 1, 4
and 8 at once, 77, 137 and 173 a second were made on 2 cores; more only makes each slower."""


class Worker:
    """Drives every assigned task; an async context manager. Leaving it stops the driving, not the
    containers."""

    def __init__(
        self, parts: Parts, db: StateDb, reporter: Reporter, *, starts: int = STARTS_AT_A_TIME
    ) -> None:
        self._parts = parts
        self._db = db
        self._reporter = reporter
        self._gate = asyncio.Semaphore(starts)
        self._runners: dict[str, TaskRunner] = {}
        self._swept = False
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        records = self._db.records()
        self._parts.logs.retain(records)
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

    def clients(self) -> list[Client]:
        """The containers of which the name server must know more than their network."""
        runners = self._runners.values()
        found = (client_of(runner.task, runner.connected) for runner in runners)
        return [client for client in found if client is not None]

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
        `networks` is the complete list or None; with `full`, whatever is not in `tasks` goes."""
        self._db.put_assignments(tasks, networks, self._parts.boot_id)
        if networks is not None:
            self._parts.network.order(networks)
        for assigned in tasks:
            runner = self._runners.get(assigned.task.id)
            if runner is None:
                self._begin(assigned, None)
            else:
                runner.order(assigned)
        if full:
            removed = list(self._runners.keys() - {assigned.task.id for assigned in tasks})
        for task_id in removed:
            if (runner := self._runners.get(task_id)) is not None:
                runner.order(None)
        self._retain_files(assigned=True)
        if full and not self._swept:
            self._swept = True
            self._spawn(self._sweep(), "sweep")

    def take(self, payload: documents_pb2.Payload) -> None:
        """Keep the data of a secret or config, of which the next assignment tells."""
        self._parts.files.take(payload)

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
            predecessors=self._predecessors,
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
        await runner.run()
        self._db.forget(runner.id)
        self._reporter.forget(runner.id)
        self._parts.logs.forget(runner.id)
        del self._runners[runner.id]
        self._retain_files(assigned=False)

    def _retain_files(self, *, assigned: bool) -> None:
        """Forget the data of secrets and configs that no task names any more."""
        self._parts.files.retain(
            {file.payload for runner in self._runners.values() for file in runner.files},
            assigned=assigned,
        )

    async def _sweep(self) -> None:
        """Remove containers that are nobody's."""
        for container_id in sorted(await self._parts.runtime.list()):
            if container_id in self._runners:
                continue
            log.warning("removing a container that is not assigned", extra={"task": container_id})
            try:
                await self._parts.runtime.remove(container_id)
                await self._parts.network.detach(container_id)
            except Exception:
                log.exception("cannot remove it", extra={"task": container_id})
        self._parts.files.retain_tasks(self._runners.keys())
        try:
            await self._parts.volumes.retain(self._runners.keys())
        except VolumeError as error:
            log.warning("volumes of containers that are gone: %s", error)


def _given(task: Task) -> set[tuple[str, str]]:
    """The generic resources that the task was given by name: pairs of kind and name."""
    given = task.generic_resources.items()
    return {(kind, name) for kind, value in given for name in supply_names(value)}
