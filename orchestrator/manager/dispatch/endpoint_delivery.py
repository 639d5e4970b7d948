# SPDX-License-Identifier: Apache-2.0
"""Delivery of the endpoint table to nodes, and draining of tasks that are about to stop.

Each manager has one table (`planning.networking.endpoint_table`). Each change is a revision, sent
to all of its sessions as a chained diff. A node acknowledges a revision once its name server and
load balancer have applied it.

**Drain before stop.** A task that is to stop is first marked not ready in the table. Its node gets
the stop order only when all nodes that are up have acknowledged that revision, so that no new
connection reaches a stopping container. A node that does not answer delays the stop by
`DRAIN_TIMEOUT` at most.

Every manager drains every task that is to stop. When all nodes in session with it have followed, it
stores how far that is, as a revision of the store (`EndpointProgress`), and the manager that has
the task's node waits for those that have other nodes. With one manager, nothing is stored. A
manager that starts sends the table again and starts its own timeouts.
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

DRAIN_TIMEOUT = 2.0
"""Seconds that nodes may take to apply a revision; after that the task is stopped anyway."""

_KEPT = 256
"""Changes kept for sessions that lag behind; a session further behind gets the whole table."""


@dataclass(slots=True)
class _Drain:
    """Tasks that were withdrawn with one revision."""

    tasks: frozenset[str]
    waiting: set[str]
    """Ids of the nodes in session with this manager that have not acknowledged it."""
    before: int
    """Store revision of the table before it."""
    stopped_at: int
    """Store revision of the last of their stop orders."""
    until: float


class EndpointFeed:
    """The endpoint table of one manager, and how far each node follows it."""

    def __init__(
        self,
        view: ClusterView,
        now: Callable[[], float],
        limit: float,
        through: int = 0,
        manager_id: str = "",
        publish: Callable[[int], None] = lambda through: None,
    ) -> None:
        """`now` is a monotonic clock; `limit` the longest delay of a stop. Both in seconds.
        `through` is the store's revision of the view. `publish` stores the revision that all nodes
        of this manager follow, for the others."""
        self._manager_id = manager_id
        self._publish = publish
        self._through = through
        """Store revision of the table."""
        self._stops = 0
        """The last store revision at which a task that is to stop changed."""
        self._published = 0
        self._view = view
        self._others_of = ClusterView()
        self._others: frozenset[str] = frozenset()
        """Ids of the other managers that have nodes which are up, as of the view `_others_of`."""
        self._now = now
        self._limit = limit
        self._table = Table.of(view)
        self._revision = 1
        self._whole: dispatch_pb2.ManagerMessage | None = None
        self._encoded: dict[tuple[bool, int], bytes] = {}
        """Encoded messages by (whole table?, revision)."""
        self._changes: deque[dispatch_pb2.ManagerMessage] = deque(maxlen=_KEPT)
        self._drains: dict[int, _Drain] = {}
        """By revision."""
        self._draining: set[str] = set()
        """Ids of the tasks in `_drains`."""
        # It is unknown what nodes of an earlier leader knew of these.
        stopping = frozenset(task.id for task in view.tasks.values() if _is_stopping(task))
        if stopping:
            self._stops = through
            self._start_drain(stopping, 0)

    @property
    def revision(self) -> int:
        """The table's current revision."""
        return self._revision

    @property
    def deadline(self) -> float | None:
        """When to call `update` even though nothing has changed."""
        return earliest(*(leave.until for leave in self._drains.values()))

    def update(self, view: ClusterView, changes: Iterable[Change], through: int = 0) -> bool:
        """Process a view of the store's revision `through`, which these changes led to, and the
        clock; whether a held task can stop now."""
        changes = list(changes)
        touched = {change.subject.id for change in changes if isinstance(change.subject, Task)}
        before, self._through = self._through, through
        if any(_is_stopping(task) for id in touched if (task := view.tasks.get(id))):
            self._stops = through
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
        self._start_drain(
            frozenset(
                task_id
                for task_id in served
                if (task := view.tasks.get(task_id)) and _is_stopping(task)
            ),
            before,
        )
        for leave in self._drains.values():
            leave.waiting = {node_id for node_id in leave.waiting if self._is_mine(node_id)}
        return self._finish_drains()

    def since(self, revision: int) -> tuple[list[dispatch_pb2.ManagerMessage], int]:
        """The messages for a session that is at `revision` (0 for a new one), and the revision that
        it reaches with them."""
        behind = self._revision - revision
        if revision and behind <= len(self._changes):
            return list(self._changes)[len(self._changes) - behind :], self._revision
        if self._whole is None:
            self._whole = _message(self._table.whole(), None, self._revision)
        return [self._whole], self._revision

    def encoded(self, message: dispatch_pb2.ManagerMessage) -> bytes:
        """A message of `since`, encoded once for all sessions."""
        key = message.endpoints.full, message.endpoints.revision
        if (encoded := self._encoded.get(key)) is None:
            encoded = self._encoded[key] = message.SerializeToString()
        return encoded

    def acknowledge(self, node_id: str, revision: int) -> bool:
        """Record that a node has applied the table of `revision`; whether a held task can stop
        now."""
        for number, leave in self._drains.items():
            if number <= revision:
                leave.waiting.discard(node_id)
        return self._finish_drains()

    def holds(self, task: Task) -> bool:
        """Whether to withhold the stop order from the task's node."""
        return _is_stopping(task) and (task.id in self._draining or self._table.serving(task.id))

    def _is_mine(self, node_id: str) -> bool:
        """Whether a node is up, and in session with this manager or with none."""
        record = self._view.sessions.get(node_id)
        mine = record is None or record.manager_id == self._manager_id
        return mine and _up(self._view, node_id)

    def _start_drain(self, tasks: frozenset[str], before: int) -> None:
        if tasks:
            waiting = {node_id for node_id in self._view.nodes if self._is_mine(node_id)}
            until = self._now() + self._limit
            known = self._drains.get(self._revision)
            if known is not None:
                tasks, before = tasks | known.tasks, known.before
            stopped_at = max(
                (task.revision for id in tasks if (task := self._view.tasks.get(id))), default=0
            )
            self._drains[self._revision] = _Drain(tasks, waiting, before, stopped_at, until)
            self._draining |= tasks

    def _other_managers(self) -> frozenset[str]:
        view, known = self._view, self._others_of
        if view.sessions is not known.sessions or view.nodes is not known.nodes:
            self._others_of = view
            self._others = frozenset(
                record.manager_id
                for record in view.sessions.values()
                if record.manager_id != self._manager_id
                and not record.silent
                and _up(view, record.id)
            )
        return self._others

    def _publish_progress(self) -> None:
        """Store how far all nodes of this manager are, if that is news about a stop."""
        behind = [leave.before for leave in self._drains.values() if leave.waiting]
        through = min(behind, default=self._through)
        if through > self._published:
            self._published = through
            self._publish(through)

    def _finish_drains(self) -> bool:
        now = self._now()
        over = []
        others, progress = self._other_managers(), self._view.endpoint_progress
        if others and self._published < self._stops:
            self._publish_progress()
        for revision, leave in self._drains.items():
            late = any(
                id not in progress or progress[id].through < leave.stopped_at for id in others
            )
            if not (leave.waiting or late) or leave.until <= now:
                over.append(revision)
        for revision in over:
            self._draining -= self._drains.pop(revision).tasks
        return bool(over)


def without_stop_order(task: Task) -> Task:
    """The task without its stop order, as its node sees it meanwhile."""
    return replace(task, desired_state=TaskState.RUNNING, run=task.status.run)


def _is_stopping(task: Task) -> bool:
    """Whether the task runs and is to stop."""
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
