"""What the nodes are told of endpoints, how far each follows, and what waits for that.

The leader has one table (`planning/endpoints.py`); each change of it is a revision, sent to every
session as a difference that chains. A node acknowledges a revision when its names and its balance
follow it.

**A task leaves before it stops.** From the moment that a task is to stop it is no longer ready in
the table, and its node hears of the order only when all nodes that are up have acknowledged that
revision: so no new connection goes to a container that has been told to end. A node that does not
answer holds it up for `LEAVE_LIMIT` at most. None of it is stored: a new leader tells everything
anew, and counts its own patience.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from orchestrator.manager.planning.networking.endpoint_table import (
    Endpoint,
    EntryChange,
    Table,
    TableChange,
)
from orchestrator.manager.planning.plan import Change, earliest
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.convert import to_proto
from orchestrator.model.nodes import NodeState
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task
from orchestrator.pb import dispatch_pb2

LEAVE_LIMIT = 2.0
"""Seconds that nodes may take to follow; after them a task is stopped all the same."""

_KEPT = 256
"""Changes kept for sessions that are behind; one that is further behind gets the whole table."""


@dataclass(slots=True)
class _Leave:
    """Tasks that left the table with one revision."""

    tasks: frozenset[str]
    waiting: set[str]
    """Ids of the nodes that have not acknowledged it."""
    until: float


class EndpointFeed:
    """The endpoint table of one term, and who follows it."""

    def __init__(self, view: ClusterView, now: Callable[[], float], limit: float) -> None:
        """`now` is a clock that only goes forward; `limit` is how long a task may be held up.
        Both in seconds."""
        self._view = view
        self._now = now
        self._limit = limit
        self._table = Table.of(view)
        self._revision = 1
        self._whole: dispatch_pb2.ManagerMessage | None = None
        self._encoded: dict[tuple[bool, int], bytes] = {}
        """Messages as they are sent, by whether it is the whole table, and by revision."""
        self._changes: deque[dispatch_pb2.ManagerMessage] = deque(maxlen=_KEPT)
        self._leaves: dict[int, _Leave] = {}
        """By revision."""
        self._leaving: set[str] = set()
        """Ids of the tasks in `_leaves`."""
        # What an earlier leader's nodes knew of these is not known.
        self._leave(frozenset(task.id for task in view.tasks.values() if _to_stop(task)))

    @property
    def revision(self) -> int:
        """Of the table as it is now."""
        return self._revision

    @property
    def deadline(self) -> float | None:
        """When `update` should be called though nothing has changed."""
        return earliest(*(leave.until for leave in self._leaves.values()))

    def update(self, view: ClusterView, changes: Iterable[Change]) -> bool:
        """Follow the view, which these changes led to, and the clock; whether that sets any task
        free."""
        changes = list(changes)
        touched = {change.subject.id for change in changes if isinstance(change.subject, Task)}
        served = {task_id for task_id in touched if self._table.serving(task_id)}
        difference = self._table.update(view, changes)
        self._view = view
        if difference:
            self._revision += 1
            self._changes.append(_message(difference, self._revision - 1, self._revision))
            self._whole = None
            self._encoded = {
                (full, revision): encoded
                for (full, revision), encoded in self._encoded.items()
                if not full and revision > self._revision - _KEPT
            }
        self._leave(
            frozenset(
                task_id
                for task_id in served
                if (task := view.tasks.get(task_id)) and _to_stop(task)
            )
        )
        for leave in self._leaves.values():
            leave.waiting = {node_id for node_id in leave.waiting if _up(view, node_id)}
        return self._settle()

    def since(self, revision: int) -> tuple[list[dispatch_pb2.ManagerMessage], int]:
        """The messages for a session that was told of everything up to `revision`, 0 for a new
        one; and what it will have been told of then."""
        behind = self._revision - revision
        if revision and behind <= len(self._changes):
            return list(self._changes)[len(self._changes) - behind :], self._revision
        if self._whole is None:
            self._whole = _message(self._table.whole(), None, self._revision)
        return [self._whole], self._revision

    def encoded(self, message: dispatch_pb2.ManagerMessage) -> bytes:
        """A message of `since` as it is sent: encoded once for all sessions."""
        key = message.endpoints.full, message.endpoints.revision
        if (encoded := self._encoded.get(key)) is None:
            encoded = self._encoded[key] = message.SerializeToString()
        return encoded

    def acknowledge(self, node_id: str, revision: int) -> bool:
        """A node follows the table of `revision`; whether that sets any task free."""
        for number, leave in self._leaves.items():
            if number <= revision:
                leave.waiting.discard(node_id)
        return self._settle()

    def holds(self, task: Task) -> bool:
        """Whether the order to stop is yet to be kept from the task's node."""
        return _to_stop(task) and (task.id in self._leaving or self._table.serving(task.id))

    def _leave(self, tasks: frozenset[str]) -> None:
        if tasks:
            waiting = {node.id for node in self._view.nodes.values() if _up(self._view, node.id)}
            until = self._now() + self._limit
            known = self._leaves.get(self._revision)
            tasks |= known.tasks if known else frozenset()
            self._leaves[self._revision] = _Leave(tasks, waiting, until)
            self._leaving |= tasks

    def _settle(self) -> bool:
        now = self._now()
        over = [
            revision
            for revision, leave in self._leaves.items()
            if not leave.waiting or leave.until <= now
        ]
        for revision in over:
            self._leaving -= self._leaves.pop(revision).tasks
        return bool(over)


def held_back(task: Task) -> Task:
    """The order that the node of a task has for as long as that is to run on."""
    return replace(task, desired_state=TaskState.RUNNING, run=task.status.run)


def _to_stop(task: Task) -> bool:
    """Whether it runs and shall not."""
    return task.status.state is TaskState.RUNNING and (
        task.desired_state > TaskState.RUNNING or task.run > task.status.run
    )


def _up(view: ClusterView, node_id: str) -> bool:
    node = view.nodes.get(node_id)
    return node is not None and node.state is NodeState.READY


def _message(
    change: TableChange, applies_to: int | None, revision: int
) -> dispatch_pb2.ManagerMessage:
    return dispatch_pb2.ManagerMessage(
        endpoints=dispatch_pb2.EndpointTable(
            full=applies_to is None,
            applies_to=applies_to or 0,
            revision=revision,
            changed=map(_entry, change.changed),
            removed=[
                dispatch_pb2.EndpointKey(id=id, network_id=network_id)
                for id, network_id in change.removed
            ],
        )
    )


def _entry(change: EntryChange) -> dispatch_pb2.ServiceEndpoints:
    entry = change.entry
    return dispatch_pb2.ServiceEndpoints(
        id=entry.id,
        name=entry.name,
        network_id=entry.network_id,
        vip=entry.vip,
        vip6=entry.vip6,
        ports=map(to_proto, entry.ports),
        endpoints=map(_endpoint, change.endpoints),
        gone=change.gone,
        container=entry.container,
        publishes=entry.publishes,
        aliases=entry.aliases,
    )


def _endpoint(endpoint: Endpoint) -> dispatch_pb2.Endpoint:
    return dispatch_pb2.Endpoint(
        task_id=endpoint.task_id,
        node_id=endpoint.node_id,
        slot=endpoint.slot,
        name=endpoint.name,
        aliases=endpoint.aliases,
        address=endpoint.address,
        address6=endpoint.address6,
        ready=endpoint.ready,
    )
