"""A service's tasks by slot, and the draft in which a decision about them grows."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from orchestrator.manager.planning.plan import Change, earliest
from orchestrator.model.services import Service
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.tasks import Task, TaskStatus


def placed(task: Task) -> bool:
    """Whether the task has ever been given to a node."""
    return bool(task.node_id) and not waits(task)


def waits(task: Task) -> bool:
    """Whether the task waits for a node."""
    return task.status.state <= TaskState.PENDING


def ended(task: Task) -> bool:
    """Whether the task has ended for good."""
    return is_terminal(task.status.state)


def is_current(service: Service, task: Task) -> bool:
    """Whether the task is made from what the service declares now.

    The versions of its secrets and configs count, and all of the task's spec but the restart
    policy, which is read from the service when it is needed, so that a change of it restarts
    nothing.
    """
    wanted = service.spec.task
    if task.image_digest != service.image_digest or task.documents != service.documents:
        return False
    return task.spec == wanted or replace(task.spec, restart=wanted.restart) == wanted


@dataclass(frozen=True, slots=True)
class Slot:
    """A replica's number and the tasks that have filled it, oldest first (at least one)."""

    number: int
    tasks: tuple[Task, ...]

    @property
    def newest(self) -> Task:
        return self.tasks[-1]

    @property
    def vacant(self) -> bool:
        """Whether every task of it has ended."""
        return all(ended(task) for task in self.tasks)

    @property
    def live(self) -> tuple[Task, ...]:
        """The tasks that may run: at most one, but for an update that starts the new one first."""
        return tuple(
            task
            for task in self.tasks
            if not ended(task) and task.desired_state <= TaskState.RUNNING
        )

    @property
    def runnable(self) -> Task | None:
        """The newest task that may run, if there is one."""
        live = self.live
        return live[-1] if live else None

    @property
    def stopping(self) -> bool:
        """Whether a task of it was told to stop and has not ended."""
        return any(
            not ended(task) and task.desired_state > TaskState.RUNNING for task in self.tasks
        )

    @property
    def kept(self) -> bool:
        """Whether the slot goes on once its tasks have ended."""
        return any(task.desired_state < TaskState.REMOVE for task in self.tasks)


def slots_of(tasks: Mapping[str, Task]) -> dict[int, Slot]:
    """A service's tasks by slot, in ascending order of the slots' numbers."""
    groups: dict[int, list[Task]] = {}
    for task in tasks.values():
        groups.setdefault(task.slot, []).append(task)
    for group in groups.values():
        group.sort(key=lambda task: (task.created_at, task.id))
    return {number: Slot(number, tuple(groups[number])) for number in sorted(groups)}


@dataclass(frozen=True, slots=True)
class Start:
    """How a slot is filled anew."""

    not_before: float = 0.0
    attempt: int = 0
    message: str = ""
    node_id: str = ""
    """The only node that will do; empty: any."""
    job_run: int = 0
    """The run of a job that it is of."""


class Draft:
    """The tasks of one service as a decision would leave them.

    Only legal changes can be drafted, and what a draft does twice it does once.
    """

    def __init__(
        self,
        service: Service | None,
        tasks: Mapping[str, Task],
        now: float,
        new_id: Callable[[], str],
        limit: int = sys.maxsize,
    ) -> None:
        """`limit`: the most slots that may be added."""
        self.service = service
        """As it is to be; a decision may change it."""
        self.service_before = service
        self.now = now
        self.requeue_at: float | None = None
        self.service_gone = False
        """The service's last task has gone, and so it goes too."""
        self.limited = False
        """More slots are to be added than this draft may add."""
        self._room = limit
        self._before = tasks
        self._tasks = dict(tasks)
        self._touched: set[str] = set()
        self._new_id = new_id
        self._slots: dict[int, Slot] | None = None

    @property
    def tasks(self) -> Mapping[str, Task]:
        return self._tasks

    @property
    def touched(self) -> int:
        """How many tasks were drafted anew so far."""
        return len(self._touched)

    def may_add(self, count: int) -> int:
        """How many of `count` new slots may be added now; the rest is for another pass."""
        allowed = min(count, self._room)
        self.limited = self.limited or allowed < count
        self._room -= allowed
        return allowed

    def slots(self) -> Mapping[int, Slot]:
        """All slots by number, in ascending order."""
        if self._slots is None:
            self._slots = slots_of(self._tasks)
        return self._slots

    def kept_slots(self) -> list[Slot]:
        """The slots that go on, in ascending order."""
        return [slot for slot in self.slots().values() if slot.kept]

    def free_numbers(self, count: int) -> list[int]:
        """The lowest `count` slot numbers (from 1) that are neither kept nor still running."""
        taken = {slot.number for slot in self.slots().values() if slot.kept or not slot.vacant}
        free: list[int] = []
        number = 1
        while len(free) < count:
            if number not in taken:
                free.append(number)
            number += 1
        return free

    def create(self, service: Service, number: int, start: Start, old: Slot | None) -> None:
        """Fill a slot with a new task, which waits for its node; `old` is what is known of it.

        Times of creation grow within a slot even if clocks do not, so that "newest" is certain.
        """
        created_at = self.now
        if old is not None:
            created_at = max(created_at, math.nextafter(old.newest.created_at, math.inf))
        self._put(
            Task(
                id=self._new_id(),
                created_at=created_at,
                service_id=service.id,
                service_name=service.spec.name,
                slot=number,
                spec=service.spec.task,
                spec_version=service.spec_version,
                image_digest=service.image_digest,
                documents=service.documents,
                node_id=start.node_id,
                desired_state=TaskState.RUNNING,
                status=TaskStatus(TaskState.PENDING, at=self.now, message=start.message),
                not_before=start.not_before,
                attempt=start.attempt,
                job_run=start.job_run,
            )
        )

    def assign(self, task: Task, node_id: str, generic: Mapping[str, str]) -> None:
        """Give a waiting task its node, and what it is given of the node's generic resources."""
        status = TaskStatus(TaskState.ASSIGNED, at=self.now, run=task.run)
        given = dict(generic)
        self._put(replace(task, node_id=node_id, status=status, generic_resources=given))

    def keep_waiting(self, task: Task, reason: str) -> None:
        """Say why a task still waits; nothing is written if that has been said already."""
        if task.status.state is not TaskState.PENDING or task.status.message != reason:
            status = replace(task.status, state=TaskState.PENDING, at=self.now, message=reason)
            self._put(replace(task, status=status))

    def stop(self, task: Task, desired: TaskState, reason: str = "") -> None:
        """Order a task to end: SHUTDOWN when its slot goes on, REMOVE when it does not.

        One that never had a node ends here and now; one that this very draft has made was never
        there.
        """
        if ended(task):
            return
        if waits(task):
            if desired is TaskState.REMOVE or task.id not in self._before:
                self.delete(task)
                return
            status = replace(task.status, state=TaskState.SHUTDOWN, at=self.now, message=reason)
            self._put(replace(task, desired_state=desired, status=status))
        elif task.desired_state < desired:
            self._put(replace(task, desired_state=desired))

    def run_again(
        self,
        task: Task,
        run: int,
        *,
        not_before: float = 0.0,
        attempt: int = 0,
        restarts: int = 0,
        message: str = "",
    ) -> None:
        """Begin another run of a standalone container that has ended, on the node that it has. How
        the run before ended is remembered until this one is assigned."""
        status = TaskStatus(
            TaskState.PENDING,
            at=self.now,
            message=message,
            exit_code=task.status.exit_code,
            started_at=task.status.started_at,
            finished_at=task.status.finished_at,
            run=run,
        )
        self._put(
            replace(
                task,
                run=run,
                status=status,
                not_before=not_before,
                attempt=attempt,
                restarts=restarts,
                stop_signal="",
                stop_grace=0.0,
            )
        )

    def redocument(self, task: Task, documents: Mapping[str, int]) -> None:
        """Give a task other versions of its secrets and configs."""
        self._put(replace(task, documents=dict(documents)))

    def say(self, task: Task, message: str) -> None:
        """Tell something of a task; nothing is written if that has been said already."""
        if task.status.message != message:
            self._put(replace(task, status=replace(task.status, message=message)))

    def dismiss(self, task: Task) -> None:
        """Order what has ended to go. It is forgotten by the next pass, not by this one, so that
        whoever watches the store sees its end."""
        self._put(replace(task, desired_state=TaskState.REMOVE))

    def give_up(self, task: Task, reason: str) -> None:
        """The task's node is lost: nobody knows what became of it, and it must stop if it lives."""
        status = replace(task.status, state=TaskState.ORPHANED, at=self.now, message=reason)
        desired = max(task.desired_state, TaskState.SHUTDOWN)
        self._put(replace(task, desired_state=desired, status=status))

    def delete(self, task: Task) -> None:
        """Forget a task that has ended or never had a node.

        One that this very draft has given up stays until that is written; it is marked REMOVE, so
        that it goes with the next pass.
        """
        before = self._before.get(task.id)
        if before is not None and not (ended(before) or waits(before)):
            self._put(replace(task, desired_state=TaskState.REMOVE))
            return
        del self._tasks[task.id]
        self._touched.add(task.id)
        self._slots = None

    def abandon(self, slot: Slot) -> None:
        """Give a slot up: stop what runs, forget what has ended."""
        for task in slot.tasks:
            if ended(task):
                self.delete(task)
            else:
                self.stop(task, TaskState.REMOVE)

    def look_again(self, at: float | None) -> None:
        self.requeue_at = earliest(self.requeue_at, at)

    def changes(self) -> tuple[Change, ...]:
        """What differs from before: what makes room (stops, ends) before what takes it, then by
        slot and by age; the service itself comes last."""
        changed = [
            Change(self._before.get(id), self._tasks.get(id))
            for id in self._touched
            if self._before.get(id) is not self._tasks.get(id)
        ]
        changed.sort(key=_order)
        before = self.service_before
        if before is not None and (self.service_gone or self.service is not before):
            changed.append(Change(before, None if self.service_gone else self.service))
        return tuple(changed)

    def _put(self, task: Task) -> None:
        self._tasks[task.id] = task
        self._touched.add(task.id)
        self._slots = None


def _order(change: Change) -> tuple[bool, int, float, str]:
    task = change.subject
    assert isinstance(task, Task)
    takes = change.after is not None and task.desired_state <= TaskState.RUNNING
    return (takes, task.slot, task.created_at, task.id)
