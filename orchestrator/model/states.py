# SPDX-License-Identifier: Apache-2.0
"""Task states and their transitions, as a table.

States only advance (a Lamport clock: a smaller state is ignored), with gaps for states that may
come later. Each transition has one owner. The table is applied to every change of a plan
(`planning.plan`) and to every status that an agent reports (`planning.reports.claims`).
"""

from __future__ import annotations

from enum import IntEnum


class TaskState(IntEnum):
    """Where a task is in its one-shot life."""

    NEW = 0
    PENDING = 64
    """Waits for a node; the status carries the reason."""
    ASSIGNED = 192
    ACCEPTED = 256
    PREPARING = 320
    """Its image, volumes and networks are being prepared."""
    READY = 384
    STARTING = 448
    RUNNING = 512
    COMPLETE = 576
    """Ended by itself with exit status 0."""
    SHUTDOWN = 640
    """Stopped by order."""
    FAILED = 704
    """Ended by itself with another exit status, or could not be started."""
    REJECTED = 768
    """The node refused it before it started."""
    ORPHANED = 832
    """Its node is removed or down; whether it still runs is unknown."""
    REMOVE = 896
    """Only as a desired state: stop it, and delete it when it has ended."""


class Owner(IntEnum):
    """Who owns a transition."""

    MANAGER = 0
    AGENT = 1


TERMINAL = frozenset(
    {
        TaskState.COMPLETE,
        TaskState.SHUTDOWN,
        TaskState.FAILED,
        TaskState.REJECTED,
        TaskState.ORPHANED,
    }
)

CANNOT_INVOKE, NOT_FOUND = 126, 127
"""Exit statuses of a program that cannot be executed or was not found, as in shells."""
NOT_RUNNABLE = frozenset({CANNOT_INVOKE, NOT_FOUND})

_BEFORE_NODE = (TaskState.NEW, TaskState.PENDING)
_ON_NODE = (
    TaskState.ASSIGNED,
    TaskState.ACCEPTED,
    TaskState.PREPARING,
    TaskState.READY,
    TaskState.STARTING,
    TaskState.RUNNING,
)


def _table() -> dict[tuple[TaskState, TaskState], Owner]:
    table: dict[tuple[TaskState, TaskState], Owner] = {}
    # The manager assigns a node to a task, or ends one that never had one.
    for source in _BEFORE_NODE:
        for target in (TaskState.PENDING, TaskState.ASSIGNED, TaskState.SHUTDOWN):
            if target > source:
                table[source, target] = Owner.MANAGER
    # On a node the agent owns every transition; steps may be skipped (reports coalesce).
    for source in _ON_NODE:
        for target in (*_ON_NODE, *TERMINAL):
            if target > source and target is not TaskState.ORPHANED:
                table[source, target] = Owner.AGENT
        # The manager gives up the tasks of a node that is down.
        table[source, TaskState.ORPHANED] = Owner.MANAGER
    return table


MOVES: dict[tuple[TaskState, TaskState], Owner] = _table()
"""(from, to) → the owner of the transition. Any other is illegal."""


def may_move(owner: Owner, source: TaskState, target: TaskState) -> bool:
    """Whether `owner` may change a task's state from `source` to `target`."""
    return MOVES.get((source, target)) is owner


def may_run_again(run: int, state: TaskState, next_run: int) -> bool:
    """Whether the manager may begin `next_run` of a standalone container (as PENDING or ASSIGNED,
    on the node that it has) when `run` is in `state`. The clock is (run, state): it still only
    grows."""
    return next_run > run and is_terminal(state) and state is not TaskState.ORPHANED


def is_terminal(state: TaskState) -> bool:
    """Whether a task in this state has ended: for good, but for the next run of a container."""
    return state in TERMINAL
