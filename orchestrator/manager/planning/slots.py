# SPDX-License-Identifier: Apache-2.0
"""Slots: a service's tasks by replica number, and the draft of the next plan for them."""

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
    """Whether the task has been assigned to a node."""
    return bool(task.node_id) and not waits(task)


def waits(task: Task) -> bool:
    """Whether the task is pending."""
    return task.status.state <= TaskState.PENDING


def ended(task: Task) -> bool:
    """Whether the task is in a terminal state."""
    return is_terminal(task.status.state)


def is_current(service: Service, task: Task) -> bool:
    """Whether the task has the service's current spec.

    The versions of its secrets and configs count, and all of the task's spec but the restart
    policy, which is read from the service when it is needed, so that changing it restarts
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
        """The tasks that may run: at most one, except during an update that starts first."""
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
        """Whether a task of it is being stopped."""
        return any(
            not ended(task) and task.desired_state > TaskState.RUNNING for task in self.tasks
        )

    @property
    def kept(self) -> bool:
        """Whether the slot remains once its tasks have ended."""
        return any(task.desired_state < TaskState.REMOVE for task in self.tasks)


def slots_of(tasks: Mapping[str, Task]) -> dict[int, Slot]:
    """A service's tasks by slot, in ascending order of the slots' numbers."""
    groups: dict[int, list[Task]] = {}
    for task in tasks.values():
        groups.setdefault(task.slot, []).append(task)
    for group in groups.values():
        if len(group) > 1:
            group.sort(key=_age)
    return {number: Slot(number, tuple(groups[number])) for number in sorted(groups)}


def _age(task: Task) -> tuple[float, str]:
    return task.created_at, task.id


@dataclass(frozen=True, slots=True)
class Start:
    """How a slot is refilled."""

    not_before: float = 0.0
    attempt: int = 0
    message: str = ""
    node_id: str = ""
    """The only eligible node; empty: any."""
    job_run: int = 0
    """Number of the job's run."""
    moved_from: str = ""
    """The node from which the slot is moved; empty: it is not."""


class Draft:
    """The tasks of one service as a plan would leave them.

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
        """As planned: reconciling may change it."""
        self.service_before = service
        self.now = now
        self.requeue_at: float | None = None
        self.service_gone = False
        """The last task of a removed service is gone, so the service is deleted, too."""
        self.limited = False
        """More slots are needed than this draft may add."""
        self._room = limit
        self._before = tasks
        self._tasks = dict(tasks)
        self._touched: set[str] = set()
        self._new_id = new_id
        self._slots: dict[int, Slot] | None = None
        self._in_order = True
        """Whether the slots are in ascending order."""

    @property
    def tasks(self) -> Mapping[str, Task]:
        return self._tasks

    @property
    def touched(self) -> int:
        """How many tasks were changed so far."""
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
        elif not self._in_order:
            self._slots = {number: self._slots[number] for number in sorted(self._slots)}
        self._in_order = True
        return self._slots

    def kept_slots(self) -> list[Slot]:
        """The slots that remain, in ascending order."""
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
        """Fill a slot with a new pending task; `old` is the slot's history, if any.

        Times of creation grow within a slot even if clocks do not, so that "newest" is certain.
        """
        created_at = self.now
        before = old.newest if old is not None else None
        # A crashing task must not lose its room to one that it has preempted.
        holds = start.not_before > self.now and service.spec.priority > 0
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
                nominated_node=before.node_id if before is not None and holds else "",
                preempted_by=before.preempted_by if before is not None else "",
                moved_from=start.moved_from,
            )
        )

    def assign(self, task: Task, node_id: str, generic: Mapping[str, str]) -> None:
        """Assign a pending task to a node, with its share of the node's generic resources."""
        status = TaskStatus(TaskState.ASSIGNED, at=self.now, run=task.run)
        given = dict(generic)
        self._put(
            replace(
                task,
                node_id=node_id,
                status=status,
                generic_resources=given,
                nominated_node="",
                preempted_by="",
            )
        )

    def set_pending(self, task: Task, reason: str, nominated: str = "") -> None:
        """Set the reason why a task is pending, and the node that holds room for it; no change if
        it has these already."""
        if task.status.state is not TaskState.PENDING or task.status.message != reason:
            status = replace(task.status, state=TaskState.PENDING, at=self.now, message=reason)
            self._put(replace(task, status=status, nominated_node=nominated))
        elif task.nominated_node != nominated:
            self._put(replace(task, nominated_node=nominated))

    def give_up_move(self, task: Task) -> None:
        """Leave a task on its node that was to be moved."""
        self._put(replace(task, move_to=""))

    def preempt(self, task: Task, by: Task) -> None:
        """Stop a task to make room for another one. Its slot is filled again when there is room."""
        self._put(replace(task, preempted_by=by.name))
        self.stop(self._tasks[task.id], TaskState.SHUTDOWN)

    def stop(self, task: Task, desired: TaskState, reason: str = "") -> None:
        """Stop a task: SHUTDOWN if its slot remains, REMOVE if it does not.

        A pending one ends at once; one that this draft created is dropped from it.
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
        """Begin another run of a standalone container that has ended, on its node. The result
        of the previous run is kept until this one is assigned."""
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

    def set_documents(self, task: Task, documents: Mapping[str, int]) -> None:
        """Set the versions of a task's secrets and configs."""
        self._put(replace(task, documents=dict(documents)))

    def set_message(self, task: Task, message: str) -> None:
        """Set a task's message; no change if it has that message already."""
        if task.status.message != message:
            self._put(replace(task, status=replace(task.status, message=message)))

    def mark_removed(self, task: Task) -> None:
        """Mark an ended task for removal. The next pass deletes it, so that watchers of the store
        see its end."""
        self._put(replace(task, desired_state=TaskState.REMOVE))

    def orphan(self, task: Task, reason: str) -> None:
        """Give up a task whose node is down or removed: it must stop if it still runs."""
        status = replace(task.status, state=TaskState.ORPHANED, at=self.now, message=reason)
        desired = max(task.desired_state, TaskState.SHUTDOWN)
        self._put(replace(task, desired_state=desired, status=status))

    def delete(self, task: Task) -> None:
        """Delete a task that has ended or is pending.

        One that this draft has orphaned stays until that is written; it is marked REMOVE, so that
        the next pass deletes it.
        """
        before = self._before.get(task.id)
        if before is not None and not (ended(before) or waits(before)):
            self._put(replace(task, desired_state=TaskState.REMOVE))
            return
        del self._tasks[task.id]
        self._touched.add(task.id)
        self._refill(task, None)

    def remove_slot(self, slot: Slot) -> None:
        """Remove a slot: stop its tasks, delete those that have ended."""
        for task in slot.tasks:
            if ended(task):
                self.delete(task)
            else:
                self.stop(task, TaskState.REMOVE)

    def requeue_by(self, at: float | None) -> None:
        self.requeue_at = earliest(self.requeue_at, at)

    def changes(self) -> tuple[Change, ...]:
        """The changes: what frees capacity (stops, ends) before what takes it, then by slot and
        age; the service comes last."""
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
        self._refill(task, task)

    def _refill(self, old: Task, new: Task | None) -> None:
        """Replace a task in its slot, so that a change costs the slot and not the service."""
        if self._slots is None:
            return
        number = old.slot
        slot = self._slots.get(number)
        tasks = [task for task in slot.tasks if task.id != old.id] if slot is not None else []
        if new is not None:
            tasks.append(new)
            tasks.sort(key=_age)
        if not tasks:
            del self._slots[number]
        else:
            self._in_order = self._in_order and (
                slot is not None or not self._slots or number > next(reversed(self._slots))
            )
            self._slots[number] = Slot(number, tuple(tasks))


def _order(change: Change) -> tuple[bool, int, float, str]:
    task = change.subject
    assert isinstance(task, Task)
    takes = change.after is not None and task.desired_state <= TaskState.RUNNING
    return (takes, task.slot, task.created_at, task.id)
