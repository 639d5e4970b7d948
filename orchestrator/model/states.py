"""The life of a task, as a table.

States only grow (a Lamport clock: whoever is behind ignores what is smaller), with gaps for
states that may come later. Each move has one owner; `check_move` is applied to every change that
a plan makes and to every status that an agent reports.
"""

from __future__ import annotations

from enum import IntEnum


class TaskState(IntEnum):
    """Where a task is in its one-shot life."""

    NEW = 0
    PENDING = 64
    """Wanted, but no node yet; the status carries the reason."""
    ASSIGNED = 192
    ACCEPTED = 256
    PREPARING = 320
    """Image and network are being made ready."""
    READY = 384
    STARTING = 448
    RUNNING = 512
    COMPLETE = 576
    """Ended by itself with exit status 0."""
    SHUTDOWN = 640
    """Ended because it was told to."""
    FAILED = 704
    """Ended by itself with another exit status, or could not be started."""
    REJECTED = 768
    """The node refused it before it started."""
    ORPHANED = 832
    """Its node is gone or silent; nobody knows what became of it."""
    REMOVE = 896
    """Only as a desired state: stop it, and forget it when it has ended."""


class Owner(IntEnum):
    """Who may move a task."""

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
"""Exit statuses of what could not be run, as shells have them: it is no program that this node can
run, or it is not there."""
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
    # The manager gives a task a node, or ends one that never had one.
    for source in _BEFORE_NODE:
        for target in (TaskState.PENDING, TaskState.ASSIGNED, TaskState.SHUTDOWN):
            if target > source:
                table[source, target] = Owner.MANAGER
    # On a node the agent owns every step forward; steps may be skipped (reports coalesce).
    for source in _ON_NODE:
        for target in (*_ON_NODE, *TERMINAL):
            if target > source and target is not TaskState.ORPHANED:
                table[source, target] = Owner.AGENT
        # A silent node's tasks are given up by the manager.
        table[source, TaskState.ORPHANED] = Owner.MANAGER
    return table


MOVES: dict[tuple[TaskState, TaskState], Owner] = _table()
"""(from, to) → the one who may make this move. What is not here is illegal."""


def may_move(owner: Owner, source: TaskState, target: TaskState) -> bool:
    """Whether `owner` may move a task from `source` to `target`."""
    return MOVES.get((source, target)) is owner


def may_run_again(run: int, state: TaskState, next_run: int) -> bool:
    """Whether the manager may begin `next_run` of a standalone container (as PENDING or ASSIGNED,
    on the node that it has) when `run` is in `state`. The clock is (run, state): it still only
    grows."""
    return next_run > run and is_terminal(state) and state is not TaskState.ORPHANED


def is_terminal(state: TaskState) -> bool:
    """Whether a task in this state has ended: for good, but for the next run of a container."""
    return state in TERMINAL
