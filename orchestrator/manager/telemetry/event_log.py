# SPDX-License-Identifier: Apache-2.0
"""Events of the cluster, derived from changes of the store.

Every manager follows the store, so each can derive them: it keeps the newest events since its start
in memory, and streams new ones. An event is what a change means to a user; changes without meaning
to users (heartbeats, retries) produce none.
"""

from __future__ import annotations

import re
import shlex
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import IntEnum

from orchestrator.manager.planning.disruptions import was_preempted
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView, Quarantined
from orchestrator.manager.store.cache import Cache
from orchestrator.model.administration.access import Certificate, PageSession, Revocation
from orchestrator.model.administration.managers import Manager, ManagerPresence
from orchestrator.model.administration.orphans import Orphan
from orchestrator.model.documents import Document
from orchestrator.model.hooks import POST_START, PRE_STOP, Hook
from orchestrator.model.limits import resized
from orchestrator.model.nodes import EndpointProgress, Node, NodeState, SessionRecord
from orchestrator.model.objects import Cluster, Image, Network, Object
from orchestrator.model.services import JobState, Service, UpdateState
from orchestrator.model.specs import TaskSpec
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.tasks import Health, Task, TaskStatus

MAX_EVENTS = 4096
"""Events that a manager keeps."""
MAX_REMOVED = 256
"""Removed containers that a manager keeps."""

_FAILURE_WORDS = re.compile(
    "fail|oom|unhealthy|down|trouble|undecodable|set_aside|read_only|rolling back"
)
"""Substrings of actions that report a failure."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to one object."""

    at: float
    type: str
    """`container`, `service`, `node`, `image`, `network`, …"""
    action: str
    id: str
    name: str
    node: str = ""
    """Hostname of a container's node, of a node, or of the nodes that have got or lost an image."""
    attributes: dict[str, str] = field(default_factory=dict)
    revision: int = 0
    """Store revision of the change; 0: an event of one manager alone."""
    number: int = 0
    """Number among the events of that revision."""

    @property
    def position(self) -> tuple[int, int]:
        """Where it is among all events: the same at all managers."""
        return self.revision, self.number

    @property
    def is_failure(self) -> bool:
        """Whether it reports a failure. The end of a container does if it failed and was not
        requested."""
        if self.action == "die":
            failed = self.attributes.get("exitCode", "0") != "0"
            return failed and "reason" in self.attributes
        return bool(_FAILURE_WORDS.search(self.action))


class EventLog:
    """The newest events, and their followers."""

    def __init__(self, cache: Cache, now: Callable[[], float]) -> None:
        self._cache = cache
        self._now = now
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._followers: dict[int, tuple[deque[Event], Callable[[], None]]] = {}
        self._next = 0
        self._complete_after = 0
        """Store revision from which on no event is missing."""
        self._removed: dict[str, Task] = {}
        """The last state of the newest removed containers, by id."""

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Record events while the body runs."""
        async with self._cache.subscribe() as feed:
            self._complete_after = self._cache.revision
            # Immediately, because the feed folds what it holds, and every change counts.
            feed.on_change = lambda: self._take(feed.take())
            yield

    def _take(self, changes: list[Change]) -> None:
        now, revision, number = self._now(), self._cache.revision, 0
        for change in changes:
            for event in events_of(change, self._cache.view, now):
                self._add(replace(event, revision=revision, number=number))
                number += 1
            if change.after is None and isinstance(change.before, Task):
                self._removed[change.before.id] = change.before
                if len(self._removed) > MAX_REMOVED:
                    del self._removed[next(iter(self._removed))]

    def removed(self, id: str) -> Task | None:
        """The last state of a recently removed container."""
        return self._removed.get(id)

    def _add(self, event: Event) -> None:
        if len(self._events) == MAX_EVENTS:
            self._complete_after = max(self._complete_after, self._events[0].revision)
        self._events.append(event)
        for waiting, wake in self._followers.values():
            waiting.append(event)
            wake()

    def undecodable(self, found: Quarantined) -> None:
        """A stored object cannot be decoded."""
        about = {"kind": found.kind, "reason": found.reason}
        self._add(Event(self._now(), "store", "undecodable", found.id, found.key, "", about))

    def set_aside(self, id: str, reason: str) -> None:
        """A service or standalone container cannot be planned or committed; it is retried."""
        view = self._cache.view
        if (task := view.tasks.get(id)) is not None:
            kind, name = "container", task.name
        else:
            service = view.services.get(id)
            kind, name = "service", service.spec.name if service is not None else id
        self._add(Event(self._now(), kind, "set_aside", id, name, "", {"reason": reason}))

    def read_only(self, reason: str) -> None:
        """The store rejects writes."""
        self._add(Event(self._now(), "store", "read_only", "", "store", "", {"reason": reason}))

    def writable(self) -> None:
        """The store accepts writes again."""
        self._add(Event(self._now(), "store", "writable", "", "store"))

    def since(self, moment: float) -> list[Event]:
        """The recorded events since `moment`, oldest first."""
        return [event for event in self._events if event.at >= moment]

    def after(self, position: tuple[int, int]) -> list[Event]:
        """The recorded events after a position, oldest first. If some may be missing, the first one
        says so."""
        found = [event for event in self._events if event.position > position]
        if position[0] < self._complete_after:
            reason = "this manager's record of events begins later; some may be missing"
            found.insert(0, Event(self._now(), "manager", "gap", "", "", "", {"reason": reason}))
        return found

    @asynccontextmanager
    async def follow(self, wake: Callable[[], None]) -> AsyncIterator[deque[Event]]:
        """A queue of new events; `wake` is called for each. A reader that lags too far behind loses
        the oldest."""
        number, self._next = self._next, self._next + 1
        queue: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._followers[number] = (queue, wake)
        try:
            yield queue
        finally:
            del self._followers[number]


def events_of(change: Change, view: ClusterView, now: float) -> Iterator[Event]:
    """The events of a change. `view` resolves node names."""
    before, after = change.before, change.after
    match change.subject:
        case Task() as task:
            was = before if isinstance(before, Task) else None
            now_is = after if isinstance(after, Task) else None
            yield from _of_task(was, now_is, task, view, now)
            yield from _of_networks(was, now_is, task, view, now)
        case Cluster():
            yield from _of_cluster(before, after, now)
        case other:
            if action := _action(before, after):
                yield Event(
                    now,
                    _type(other),
                    action,
                    other.id,
                    _name_of_manager(other, view) or _name(other),
                    _where(before, after, view),
                    _attributes(other) | _transition(before, after),
                )
            if isinstance(before, Service) and isinstance(after, Service):
                yield from _of_update(before, after, now)
                yield from _of_autoscaling(before, after, now)
            if isinstance(other, Service):
                yield from _of_runs(before if isinstance(before, Service) else None, other, now)


def _of_cluster(before: Object | None, after: Object | None, now: float) -> Iterator[Event]:
    """Changes of the cluster's settings, and of its queues by name."""
    had, has = (each if isinstance(each, Cluster) else Cluster() for each in (before, after))
    old, new = ({queue.name: queue for queue in each.queues} for each in (had, has))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            action = "create" if name not in old else "update" if name in new else "remove"
            yield Event(now, "queue", action, name, name)
    if replace(had, queues=(), revision=0) != replace(has, queues=(), revision=0):
        action = "create" if before is None else "update" if after is not None else "remove"
        yield Event(now, "cluster", action, has.id or had.id, "")


_UPDATES = {
    UpdateState.UPDATING: "started",
    UpdateState.CANARY: "canary",
    UpdateState.PAUSED: "paused",
    UpdateState.COMPLETED: "completed",
    UpdateState.ROLLING_BACK: "rolling back",
    UpdateState.ROLLBACK_PAUSED: "rollback paused",
    UpdateState.ROLLED_BACK: "rolled back",
}


def _of_update(before: Service, after: Service, now: float) -> Iterator[Event]:
    """Transitions of a service's update."""
    old, new = before.update, after.update
    if new.state not in _UPDATES or (old.state, old.started_at) == (new.state, new.started_at):
        return
    goes_on = old.state is UpdateState.CANARY and new.state is UpdateState.UPDATING
    word = "promoted" if goes_on else _UPDATES[new.state]
    attributes = {
        **_attributes(after),
        "updatestate.old": _word(old.state),
        "updatestate.new": _word(new.state),
    }
    if new.message:
        attributes["reason"] = new.message
    yield Event(now, "service", f"update: {word}", after.id, _name(after), "", attributes)


def _of_autoscaling(before: Service, after: Service, now: float) -> Iterator[Event]:
    """A decision of the autoscaler."""
    if before.autoscale.changed_at == after.autoscale.changed_at or not after.autoscale.changed_at:
        return
    attributes = {
        **_attributes(after),
        "replicas.old": str(before.replicas),
        "replicas.new": str(after.replicas),
        "reason": after.autoscale.message,
    }
    yield Event(now, "service", "autoscale", after.id, _name(after), "", attributes)


def _transition(before: Object | None, after: Object | None) -> dict[str, str]:
    """An operator's changes of a node, in Docker's words."""
    if not isinstance(before, Node) or not isinstance(after, Node):
        return {}
    if before.availability is after.availability:
        return {}
    return {
        "availability.old": _word(before.availability),
        "availability.new": _word(after.availability),
    }


def _word(value: IntEnum) -> str:
    return value.name.lower().replace("_", "-")


def _type(item: Object) -> str:
    if isinstance(item, ManagerPresence):
        return "manager"
    return item.kind.word if isinstance(item, Document) else type(item).__name__.lower()


_ENDS = {JobState.COMPLETE: "complete", JobState.FAILED: "fail", JobState.STOPPED: "stop"}


def _of_runs(before: Service | None, after: Service, now: float) -> Iterator[Event]:
    """The runs of a job that began or ended."""
    known = {run.number: run.state for run in before.job.runs} if before is not None else {}
    for run in reversed(after.job.runs):
        was = known.get(run.number)
        actions = ["start"] if was is None else []
        if run.state is not (was or JobState.RUNNING):
            actions.append(_ENDS.get(run.state, "start"))
        for action in actions:
            about = {"run": str(run.number), **({"reason": run.message} if run.message else {})}
            yield Event(now, "job", action, after.id, after.spec.name, attributes=about)


def _of_task(
    before: Task | None, after: Task | None, task: Task, view: ClusterView, now: float
) -> Iterator[Event]:
    for action, extra in _task_actions(before, after):
        node = view.nodes.get(task.node_id)
        attributes = {"image": task.spec.container.image, **task.spec.container.labels, **extra}
        if task.service_name:
            attributes["service"] = task.service_name
        hostname = node.description.hostname if node else ""
        yield Event(now, "container", action, task.id, task.name, hostname, attributes)


def _of_networks(
    before: Task | None, after: Task | None, task: Task, view: ClusterView, now: float
) -> Iterator[Event]:
    """The networks that a container was connected to or disconnected from."""
    had, has = _on(before), _on(after)
    node = view.nodes.get(task.node_id)
    hostname = node.description.hostname if node else ""
    for action, names in (("disconnect", had - has), ("connect", has - had)):
        for name in sorted(names):
            network = view.network_by_name(name)
            id = network.id if network else name
            yield Event(now, "network", action, id, name, hostname, {"container": task.id})


def _on(task: Task | None) -> set[str]:
    return {*task.status.addresses, *task.status.addresses6} if task is not None else set()


def _task_actions(before: Task | None, after: Task | None) -> Iterator[tuple[str, dict[str, str]]]:
    if before is None:
        moved = {"moved_from": task.moved_from} if (task := after) and task.moved_from else {}
        yield "create", moved
    elif after is not None and before.container_name != after.container_name:
        yield "rename", {"oldName": before.container_name}
    elif after is not None and _updated(before.spec, after.spec):
        yield "update", {}
    if after is not None and was_preempted(before, after):
        yield "preempt", {"by": after.preempted_by}
    old = before.status if before is not None else None
    alive = old is not None and TaskState.STARTING <= old.state <= TaskState.RUNNING
    if after is None:
        if alive:
            yield "die", {}
        yield "destroy", {}
        return
    new = after.status
    same_run = old is not None and old.run == new.run
    if alive and not same_run:
        # Its end and the next run were committed together; only a waiting task records how it
        # ended.
        waits = new.state is TaskState.PENDING
        extra = {"reason": new.message} if new.message else {}
        yield "die", {"exitCode": str(new.exit_code)} | extra if waits else {}
    for phase, hook in _hooks(after)[old.hooks if same_run and old else 0 : new.hooks]:
        yield phase, {"command": shlex.join(hook.command)}
    if new.state is TaskState.RUNNING and not (same_run and old and old.state is new.state):
        yield "start", {}
    if same_run and old is not None and old.paused != new.paused and not is_terminal(new.state):
        yield "pause" if new.paused else "unpause", {}
    if _health_settled(new) and not (same_run and old and old.health is new.health):
        word = new.health.name.lower()
        yield f"health_status: {word}", {"output": new.health_output} if new.health_output else {}
    if is_terminal(new.state) and not (same_run and old and is_terminal(old.state)):
        if new.oom_killed:
            yield "oom", {}
        extra = {"exitCode": str(new.exit_code)}
        if new.message:
            extra["reason"] = new.message
        yield "die", extra
        if new.state is TaskState.SHUTDOWN:
            yield "stop", {}


def _updated(before: TaskSpec, after: TaskSpec) -> bool:
    """Whether limits or the restart policy were changed in place."""
    return before is not after and (
        resized(before, after) != before or before.restart != after.restart
    )


def _hooks(task: Task) -> list[tuple[str, Hook]]:
    """Its lifecycle hooks, in the order in which `TaskStatus.hooks` counts them."""
    spec = task.spec.container
    phases = (POST_START, spec.post_start), (PRE_STOP, spec.pre_stop)
    return [(phase, hook) for phase, hooks in phases for hook in hooks]


def _health_settled(status: TaskStatus) -> bool:
    """Whether it runs and its probes have reported a result."""
    settled = status.health in (Health.HEALTHY, Health.UNHEALTHY)
    return status.state is TaskState.RUNNING and settled


def _action(before: Object | None, after: Object | None) -> str:
    """The action on an object other than a task; empty if it does not concern users."""
    if isinstance(after or before, Certificate | Revocation | PageSession):
        return ""  # recorded in the audit trail
    if isinstance(after or before, ManagerPresence):
        return "" if before and after else "up" if after else "down"
    if isinstance(after or before, SessionRecord | EndpointProgress):
        return ""  # of managers, not of users
    if before is None:
        return "create"
    if after is None:
        gone = isinstance(before, Service) and before.removed  # reported when it was requested
        return "" if gone else "remove"
    match before, after:
        case Orphan(), Orphan():
            return ""
        case Manager(), Manager():
            if before.joining and not after.joining:
                return "ready"
            old, new = before.backups, after.backups
            if old.failures != new.failures:
                return "backup_failed"
            return "backup" if old.succeeded_at != new.succeeded_at else ""
        case Node(), Node():
            if before.state is not after.state:
                return {NodeState.DOWN: "down", NodeState.READY: "ready"}.get(after.state, "")
            if before.description.trouble != after.description.trouble:
                return "trouble" if after.description.trouble else "recover"
            changed = (before.availability, before.labels, before.role) != (
                after.availability,
                after.labels,
                after.role,
            )
            return "update" if changed else ""
        case Service(), Service():
            if after.removed:
                return "remove" if not before.removed else ""
            return "update" if before.spec != after.spec else ""
        case Image(), Image():
            if set(after.names) - set(before.names):
                return "tag"
            if set(before.names) - set(after.names):
                return "untag"
            if set(after.nodes) - set(before.nodes):
                return "pull"
            return "delete" if set(before.nodes) - set(after.nodes) else ""
        case Document(), Document():
            changed = (before.version, before.labels) != (after.version, after.labels)
            return "update" if changed else ""
        case Network(), Network():
            # Nodes were assigned their subnets.
            return ""
        case _:
            return "update"


def _where(before: Object | None, after: Object | None, view: ClusterView) -> str:
    """The hostname of a node, or those of the nodes that got or lost an image."""
    match after or before:
        case Node() as node:
            return _name(node)
        case Image():
            had, has = (set(i.nodes) if isinstance(i, Image) else set() for i in (before, after))
            nodes = [view.nodes[id] for id in had ^ has if id in view.nodes]
            return ",".join(sorted(node.description.hostname for node in nodes))
        case Orphan() as orphan if orphan.node_id in view.nodes:
            return view.nodes[orphan.node_id].description.hostname
        case _:
            return ""


def _name(item: Object) -> str:
    match item:
        case Service():
            return item.spec.name
        case Node():
            return item.description.hostname
        case Image():
            return next(iter(item.names or item.reported_names), item.id)
        case Manager():
            return item.hostname
        case _:
            return str(getattr(item, "name", ""))


def _name_of_manager(item: Object, view: ClusterView) -> str:
    """The hostname of a manager that has started or ended; empty for another object."""
    manager = view.managers.get(item.id) if isinstance(item, ManagerPresence) else None
    return manager.hostname if manager else ""


def _attributes(item: Object) -> dict[str, str]:
    match item:
        case Node():
            wrong = {"reason": item.description.trouble} if item.description.trouble else {}
            return {"state": item.state.name.lower(), **wrong, **item.labels}
        case Service():
            return dict(item.spec.labels)
        case Manager() if item.backups.error:
            return {"reason": item.backups.error}
        case Document():
            return {"version": str(item.version), **item.labels}
        case _:
            return {}
