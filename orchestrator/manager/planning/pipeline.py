"""One pass of planning: slices, VIPs, reconciling, placing; a plan a service.

A pass looks only at what something happened to (`Dirty`). Its cost is that of the dirty
services, of the tasks that wait, and of the nodes' loads if anything is to be placed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from orchestrator.manager.planning.allocator import allocate_slices
from orchestrator.manager.planning.dependencies import needs, stops_later
from orchestrator.manager.planning.documents import follow_documents
from orchestrator.manager.planning.drain import draining
from orchestrator.manager.planning.global_ import reconcile_global
from orchestrator.manager.planning.held import held_services
from orchestrator.manager.planning.jobs import reconcile_job
from orchestrator.manager.planning.lost import give_up_lost
from orchestrator.manager.planning.plan import Change, Plan, earliest, requeue
from orchestrator.manager.planning.removal import remove
from orchestrator.manager.planning.replicated import reconcile_replicated
from orchestrator.manager.planning.scheduler import Placement, Unplaced, schedule
from orchestrator.manager.planning.slots import Draft, ended, waits
from orchestrator.manager.planning.standalone import reconcile_standalone
from orchestrator.manager.planning.views import ClusterView
from orchestrator.manager.planning.vips import allocate_vips
from orchestrator.manager.planning.volumes import placed as volumes_placed
from orchestrator.model.documents import Document
from orchestrator.model.networks import joined_container
from orchestrator.model.nodes import Node
from orchestrator.model.objects import Image, Network, Object, Volume
from orchestrator.model.services import Service
from orchestrator.model.specs import ServiceMode
from orchestrator.model.tasks import Task

STANDALONE = ""
"""The id of the service that standalone containers do not have; they are planned together."""


@dataclass(frozen=True, slots=True)
class Dirty:
    """What has happened since the last pass. Passes coalesce: `a | b` is both."""

    services: frozenset[str] = field(default_factory=frozenset)
    """Ids of services of which the spec or a task has changed."""
    nodes_changed: bool = False
    """A node came, went, or changed its state, availability, labels or size; or a network did."""
    capacity_freed: bool = False
    """A task ended, an image arrived, or a volume went: what waits may fit now."""
    timer: bool = False
    """The time that a pass asked for (`requeue_at`) has come."""
    containers: frozenset[str] = field(default_factory=frozenset)
    """Ids of standalone containers that have changed."""
    documents: bool = False
    """A secret or config has a new version: who names one may be given it."""

    def __or__(self, other: Dirty) -> Dirty:
        return Dirty(
            self.services | other.services,
            self.nodes_changed or other.nodes_changed,
            self.capacity_freed or other.capacity_freed,
            self.timer or other.timer,
            self.containers | other.containers,
            self.documents or other.documents,
        )

    def __bool__(self) -> bool:
        return bool(
            self.services
            or self.containers
            or self.nodes_changed
            or self.capacity_freed
            or self.timer
            or self.documents
        )


EVERYTHING = Dirty(nodes_changed=True, capacity_freed=True, timer=True)
"""What a new leader starts with."""


def dirty_of(changes: Iterable[Change]) -> Dirty:
    """What these changes of the store make dirty."""
    services: set[str] = set()
    containers: set[str] = set()
    nodes = freed = documents = False
    for change in changes:
        match change.subject:
            case Task() as task:
                if task.standalone:
                    containers.add(task.id)
                else:
                    services.add(task.service_id)
                freed = freed or change.after is None or ended(task)
            case Service() as service:
                services.add(service.id)
                freed = freed or _is_liked_otherwise(change)
            case Node() | Network():
                nodes = nodes or not _is_same_to_plans(change)
            case Image() | Volume():
                freed = True
            case Document():
                documents = True
            case _:
                pass
    return Dirty(
        frozenset(services), nodes, freed, containers=frozenset(containers), documents=documents
    )


def _is_same_to_plans(change: Change) -> bool:
    """Whether a change of a node or network changes nothing that is planned by, such as what a node
    has measured, or a network's policies: those go to agents, not into plans."""
    match change.before, change.after:
        case Node() as old, Node() as new:
            return _planned_by(old) == _planned_by(new)
        case Network() as old, Network() as new:
            return replace(old, policies=(), revision=0) == replace(new, policies=(), revision=0)
        case _:
            return False


def _planned_by(node: Node) -> Node:
    """A node without what is not planned by."""
    description = replace(
        node.description, path_mtu=0, trouble="", blob_port=0, metrics_port=0, tunnel_keys=()
    )
    return replace(
        node, description=description, message="", boot_id="", key_rotation=0, revision=0
    )


def _is_liked_otherwise(change: Change) -> bool:
    """Whether others may be near to a service now that might not before."""
    before, after = change.before, change.after
    if not isinstance(before, Service) or not isinstance(after, Service):
        return False
    old, new = before.spec, after.spec
    return (old.labels, old.affinities) != (new.labels, new.affinities)


@dataclass(frozen=True, slots=True)
class Pass:
    """The result of one pass."""

    plans: list[Plan]
    """In the order in which they should be written; each may fail by itself."""
    requeue_at: float | None
    """The earliest time known to this pass at which time alone may decide something: a caller
    keeps the earliest that it was given until that has passed, then plans with `timer` set."""
    rest: Dirty
    """What the pass did not get to, since it was limited: plan it next."""


def plan(
    view: ClusterView,
    dirty: Dirty,
    now: float,
    new_id: Callable[[], str],
    *,
    limit: int = sys.maxsize,
) -> Pass:
    """What should be written now, and when to look again if nothing happens before.

    `limit` bounds the pass: about so many tasks are created and so many placed, so that one large
    service neither makes a huge commit nor keeps the others waiting.
    """
    slices = allocate_slices(view) if dirty.nodes_changed else ()
    drafts: dict[str, Draft] = {}
    unplanned = held_services(view) if view.quarantined else {}
    services = _services_to_reconcile(view, dirty) - unplanned.keys()
    vips = allocate_vips(view.evolve(slices), services)
    left = limit
    for id in sorted(services):
        if left <= 0:
            break
        drafts[id] = _reconcile(view, id, now, new_id, left)
        left -= drafts[id].touched
    unfinished = {id for id in services if id not in drafts or drafts[id].limited}
    services = set(drafts)
    every_container = dirty.nodes_changed or dirty.documents
    containers = view.tasks_of_service(STANDALONE) if every_container else dirty.containers
    if containers:
        drafts[STANDALONE] = _draft(view, STANDALONE, now, new_id)
        reconcile_standalone(view, drafts[STANDALONE], containers)
    ahead = view.evolve(slices)
    ahead = ahead.evolve(change for draft in drafts.values() for change in draft.changes())
    placements: dict[str, _Placed] = {}
    tried = _waiting(ahead, dirty, services, now)
    waiting = [task for task in tried if task.service_id not in unplanned]
    decisions = schedule(ahead, waiting, now, limit=limit)
    for decision in decisions:
        task = decision.task
        draft = drafts.get(task.service_id)
        if draft is None:
            draft = drafts[task.service_id] = _draft(view, task.service_id, now, new_id)
        if isinstance(decision, Placement):
            draft.assign(task, decision.node.id, decision.generic)
            changes, read = volumes_placed(ahead, task, decision.node, now)
            ahead = ahead.evolve(changes)
            placements.setdefault(task.service_id, _Placed()).add(decision.node, changes, read)
        else:
            draft.keep_waiting(task, decision.reason)
    due = [task for task in waiting if task.not_before <= now]
    more = len(decisions) < len(due)
    if more:
        _explain_wait(due, decisions, drafts)
    plans = [Plan(slices, reason="networks: slices of nodes")] if slices else []
    if vips:
        plans.append(Plan(vips, reason="services: VIPs"))
    for id in sorted(drafts):
        finished = _finish(id, drafts[id], placements.get(id, _Placed()))
        if finished.changes:
            plans.append(finished)
    held = (task.not_before for task in ahead.pending.values() if task.not_before > now)
    asked = (draft.requeue_at for draft in drafts.values())
    rest = Dirty(frozenset(unfinished), capacity_freed=more)
    return Pass(plans, earliest(requeue(plans), *asked, *held), rest)


@dataclass(slots=True)
class _Placed:
    """What the placements of one service's tasks read and bring about beside the tasks."""

    read: dict[str, Object] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def add(self, node: Node, changes: Iterable[Change], volumes: Iterable[Volume]) -> None:
        self.read[f"node/{node.id}"] = node
        self.changes += changes
        for volume in volumes:
            # One that this very pass creates has nothing in the store to compare with yet.
            if volume.revision:
                self.read[f"volume/{volume.id}"] = volume


def _services_to_reconcile(view: ClusterView, dirty: Dirty) -> set[str]:
    services = set(dirty.services)
    ordered = [
        item
        for id in dirty.services
        if (item := view.services.get(id)) and item.removed and item.spec.depends_on
    ]
    # What these need may be waiting for their end with its own.
    services |= {
        other.id
        for item in ordered
        for other in view.services.values()
        if other.removed and needs(item, other)
    }
    if dirty.nodes_changed:
        services |= view.services.keys()
    if dirty.timer:
        services |= {id for id, item in view.services.items() if _timed(item)}
        services |= {
            task.service_id
            for node in view.nodes.values()
            if draining(node)
            for task in view.tasks_of_node(node.id).values()
            if not task.standalone
        }
    if dirty.documents:
        services |= {id for id, item in view.services.items() if _has_files(item)}
    return services


def _timed(service: Service) -> bool:
    """Whether time alone may decide something of it."""
    return bool(
        service.policy.delay > 0
        or service.update.moving
        or service.spec.mode.is_job
        or service.spec.on_disconnect.after
    )


def _has_files(service: Service) -> bool:
    container = service.spec.task.container
    return bool(container.secrets or container.configs)


def _explain_wait(
    due: Iterable[Task], decisions: Iterable[Placement | Unplaced], drafts: Mapping[str, Draft]
) -> None:
    """Say why those wait that this very pass created and did not try to place."""
    tried = {decision.task.id for decision in decisions}
    for task in due:
        draft = drafts.get(task.service_id)
        if draft is not None and task.id not in tried and not task.status.message:
            draft.keep_waiting(task, "waiting to be scheduled")


def _draft(
    view: ClusterView,
    service_id: str,
    now: float,
    new_id: Callable[[], str],
    limit: int = sys.maxsize,
) -> Draft:
    tasks = view.tasks_of_service(service_id)
    return Draft(view.services.get(service_id), tasks, now, new_id, limit)


def _reconcile(
    view: ClusterView, service_id: str, now: float, new_id: Callable[[], str], limit: int
) -> Draft:
    draft = _draft(view, service_id, now, new_id, limit)
    service = draft.service
    if service is None or service.removed:
        give_up_lost(view, draft)
        if service is None or not stops_later(view, service):
            remove(draft)
        return draft
    service = follow_documents(view, service, draft)
    if service.spec.mode.is_job:
        reconcile_job(view, service, draft)
    elif service.spec.mode is ServiceMode.GLOBAL:
        reconcile_global(view, service, draft)
    else:
        reconcile_replicated(view, service, draft)
    return draft


def _waiting(
    ahead: ClusterView, dirty: Dirty, services: Collection[str], now: float
) -> Iterable[Task]:
    """The waiting tasks worth a try: those of the services that were reconciled, those whose delay
    is over, and all of them if there may be room."""
    everything = dirty.nodes_changed or dirty.capacity_freed
    for task in ahead.pending.values():
        service = ahead.services.get(task.service_id)
        if task.standalone:
            touched = task.id in dirty.containers
        elif service is None or service.removed:
            continue
        else:
            touched = task.service_id in services
        due = everything or touched or 0 < task.not_before <= now
        # What waits for another container's place, or for other services, may go with any change.
        follows = task.spec.container.volumes_from or joined_container(task.spec)
        if due or follows or task.affinities or (service is not None and _follows(service)):
            yield task


def _follows(service: Service) -> bool:
    """Whether what its tasks may do depends on other services."""
    return bool(service.spec.depends_on or service.spec.affinities)


def _finish(id: str, draft: Draft, placements: _Placed) -> Plan:
    changes = draft.changes()
    read = [placements.read[key] for key in sorted(placements.read)]
    service = draft.service_before
    if service is not None and service is draft.service and not draft.service_gone:
        read.insert(0, service)
    held = (
        task.not_before
        for task in draft.tasks.values()
        if waits(task) and task.not_before > draft.now
    )
    return Plan(
        (*placements.changes, *changes),
        tuple(read),
        requeue_at=earliest(draft.requeue_at, *held),
        reason=_summary(id, draft, changes),
    )


def _summary(id: str, draft: Draft, changes: Iterable[Change]) -> str:
    counts = {"new": 0, "changed": 0, "forgotten": 0}
    for change in changes:
        kind = (
            "new" if change.before is None else "forgotten" if change.after is None else "changed"
        )
        counts[kind] += 1
    if draft.service is not None:
        name = draft.service.spec.name
    else:
        name = "tasks of a service that is gone" if id else "containers"
    return f"{name}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
