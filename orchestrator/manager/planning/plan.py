# SPDX-License-Identifier: Apache-2.0
"""The contract between planning and the leader: changes, and what must still hold at commit.

A `Plan` is data. The leader turns it into guarded transactions: every object in `changes` (its
`before`) and in `requires` must still have the revision that was read, or nothing of it is
written and the plan is computed anew. (The command `orc plan` is a dry run: see `dry_run`.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from orchestrator.model.objects import Object
from orchestrator.model.states import (
    Owner,
    TaskState,
    is_terminal,
    may_move,
    may_run_again,
)
from orchestrator.model.tasks import Task


class IllegalChange(Exception):
    """A plan contains an illegal change of a task: a bug of the planner."""


@dataclass(frozen=True, slots=True)
class Change:
    """One object created (`before` is None), updated, or deleted (`after` is None)."""

    before: Object | None
    after: Object | None

    def __post_init__(self) -> None:
        before, after = self.before, self.after
        if before is None and after is None:
            raise IllegalChange("a change needs an object")
        if before is not None and after is not None:
            if type(before) is not type(after):
                raise IllegalChange(f"{before.id}: a change cannot make another kind of object")
            if before.id != after.id:
                raise IllegalChange(f"{before.id}: a change cannot rename it to {after.id}")

    @property
    def subject(self) -> Object:
        """The object as it will be, or as it was if it goes."""
        subject = self.after if self.after is not None else self.before
        assert subject is not None  # __post_init__ saw to it
        return subject


@dataclass(frozen=True, slots=True)
class Decision:
    """Changes that are written together or, if there are too many for that, in this order."""

    changes: tuple[Change, ...] = ()
    requires: tuple[Object, ...] = ()
    """Objects that all changes have read, and that must not have changed: the service."""
    reads: Mapping[str, tuple[Object, ...]] = field(default_factory=dict)
    """Id of a changed task → what its change alone has read: a placement's node and volumes."""
    owner: str = ""
    """Id of the service or standalone container that it is about, if it is about one."""
    reason: str = ""
    """What it is about, for the log and for `orc plan`."""


@dataclass(frozen=True, slots=True)
class Plan(Decision):
    """A decision of the manager. Legal by construction: see `check_change`.

    The changes of a service are ordered: what stops or has ended comes before what starts, so that
    a plan too large for one transaction may be cut anywhere.
    """

    requeue_at: float | None = None
    """When to plan again even if nothing changes (seconds since the epoch)."""

    def __post_init__(self) -> None:
        for change in self.changes:
            check_change(change)


def check_change(change: Change) -> None:
    """Raise `IllegalChange` unless the manager may make this change.

    Only tasks have rules: the move must be the manager's by the table of states, desired_state
    only grows, a task's node is for life, and a task is deleted only when it has ended or never
    reached a node. A standalone container may begin another run, with a desired state of its own.
    """
    before, after = change.before, change.after
    if isinstance(after, Task):
        if before is None:
            _check_birth(after)
        elif isinstance(before, Task):
            _check_move(before, after)
    elif isinstance(before, Task) and _may_be_running(before):
        raise IllegalChange(f"task {before.id} is deleted while it may be running")


def earliest(*times: float | None) -> float | None:
    """The earliest of some points in time, of which any may be None ("never")."""
    return min((time for time in times if time is not None), default=None)


def requeue(plans: Iterable[Plan]) -> float | None:
    """When the first of these plans is to be computed again."""
    return earliest(*(plan.requeue_at for plan in plans))


def _may_be_running(task: Task) -> bool:
    return task.status.state >= TaskState.ASSIGNED and not is_terminal(task.status.state)


def _check_birth(task: Task) -> None:
    if task.status.state not in (TaskState.NEW, TaskState.PENDING, TaskState.ASSIGNED):
        raise IllegalChange(f"task {task.id} is created as {task.status.state.name}")
    if task.status.state is TaskState.ASSIGNED and not task.node_id:
        raise IllegalChange(f"task {task.id} is assigned to no node")


def _check_move(before: Task, after: Task) -> None:
    source, target = before.status.state, after.status.state
    if after.status.run != before.status.run:
        _check_next_run(before, after)
    elif source is not target and not may_move(Owner.MANAGER, source, target):
        raise IllegalChange(
            f"task {before.id}: the manager may not move it from {source.name} to {target.name}"
        )
    if after.desired_state < before.desired_state and after.run <= before.run:
        raise IllegalChange(
            f"task {before.id}: its desired state would shrink from"
            f" {before.desired_state.name} to {after.desired_state.name}"
        )
    if before.node_id and after.node_id != before.node_id:
        raise IllegalChange(f"task {before.id} is bound to node {before.node_id} for life")
    if target is TaskState.ASSIGNED and not after.node_id:
        raise IllegalChange(f"task {before.id} is assigned to no node")


def _check_next_run(before: Task, after: Task) -> None:
    """A task begins another run from the end of one before: it waits for its node to have room,
    or is given it at once."""
    legal = (
        after.standalone
        and after.status.state in (TaskState.PENDING, TaskState.ASSIGNED)
        and may_run_again(before.status.run, before.status.state, after.status.run)
    )
    if not legal:
        raise IllegalChange(
            f"task {before.id} cannot go from {before.status.state.name} of run"
            f" {before.status.run} to {after.status.state.name} of run {after.status.run}"
        )
