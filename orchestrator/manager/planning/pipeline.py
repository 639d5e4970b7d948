# SPDX-License-Identifier: Apache-2.0
"""One pass of planning: slices, VIPs, reconciling, scheduling; one plan per service.

A pass considers only what has changed (`Dirty`). Its cost is that of the dirty
services, of the tasks that wait, and of the nodes' loads if anything is to be placed.
"""

from __future__ import annotations

import sys
from collections.abc import (
    Callable,
    Collection,
    Container,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Set,
)
from dataclasses import dataclass, field, replace

from orchestrator.manager.planning.networking.allocation import allocate_slices, allocate_vips
from orchestrator.manager.planning.plan import Change, Plan, earliest, requeue
from orchestrator.manager.planning.reconcile.at_rest import is_at_rest, only_advances
from orchestrator.manager.planning.reconcile.document_versions import update_documents
from orchestrator.manager.planning.reconcile.evictions import (
    evict_from_failed_nodes,
    has_drain_deadline,
)
from orchestrator.manager.planning.reconcile.job_queues import QueueRoom, has_queues, queue_of
from orchestrator.manager.planning.reconcile.jobs import reconcile_job
from orchestrator.manager.planning.reconcile.service_dependencies import depends_on, still_needed
from orchestrator.manager.planning.reconcile.services import (
    reconcile_global,
    reconcile_replicated,
    remove_service,
)
from orchestrator.manager.planning.reconcile.standalone import reconcile_standalone
from orchestrator.manager.planning.scheduling.node_table import priority_of
from orchestrator.manager.planning.scheduling.rebalancing import improving_moves
from orchestrator.manager.planning.scheduling.scheduler import Placement, Unplaced, schedule
from orchestrator.manager.planning.scheduling.volume_placement import (
    volume_changes as volumes_placed,
)
from orchestrator.manager.planning.slots import Draft, ended, waits
from orchestrator.manager.planning.unplannable import PlanningErrors, quarantined_services
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.documents import Document
from orchestrator.model.networks import network_container
from orchestrator.model.nodes import Node
from orchestrator.model.objects import Cluster, Image, Network, Object, Volume
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
    """A network changed, or nodes of which the ids are not known."""
    capacity_freed: bool = False
    """A task ended, an image arrived, or a volume went: what waits may fit now."""
    timer: bool = False
    """The time that a pass asked for (`requeue_at`) has come."""
    containers: frozenset[str] = field(default_factory=frozenset)
    """Ids of standalone containers that have changed."""
    documents: bool = False
    """A secret or config has a new version, which may update services."""
    advanced: bool = False
    """A task of a service at rest came nearer to RUNNING: what depends on it may be placed."""
    nodes: frozenset[str] = field(default_factory=frozenset)
    """Ids of nodes that came, went, or changed their state, availability, labels or size."""

    @property
    def topology(self) -> bool:
        """Whether nodes or networks changed."""
        return self.nodes_changed or bool(self.nodes)

    def __or__(self, other: Dirty) -> Dirty:
        return Dirty(
            self.services | other.services,
            self.nodes_changed or other.nodes_changed,
            self.capacity_freed or other.capacity_freed,
            self.timer or other.timer,
            self.containers | other.containers,
            self.documents or other.documents,
            self.advanced or other.advanced,
            self.nodes | other.nodes,
        )

    def __bool__(self) -> bool:
        return bool(
            self.services
            or self.containers
            or self.topology
            or self.capacity_freed
            or self.timer
            or self.documents
            or self.advanced
        )


EVERYTHING = Dirty(nodes_changed=True, capacity_freed=True, timer=True)
"""What a new leader starts with."""


def dirty_of(changes: Iterable[Change], at_rest: Container[str] = ()) -> Dirty:
    """What these changes of the store make dirty. `at_rest`: ids of services of which tasks that
    only advance need no decision."""
    services: set[str] = set()
    containers: set[str] = set()
    nodes: set[str] = set()
    networks = freed = documents = advanced = False
    for change in changes:
        match change.subject:
            case Task() as task:
                if task.standalone:
                    containers.add(task.id)
                elif task.service_id in at_rest and only_advances(change):
                    advanced = True
                else:
                    services.add(task.service_id)
                freed = freed or change.after is None or ended(task) or _releases_room(change)
            case Service() as service:
                services.add(service.id)
                freed = freed or _affects_others(change)
            case Node() as node:
                if not _does_not_affect_plans(change):
                    nodes.add(node.id)
            case Network():
                networks = networks or not _does_not_affect_plans(change)
            case Image() | Volume():
                freed = True
            case Document():
                documents = True
            case Cluster():
                freed = freed or _affects_queues(change)
            case _:
                pass
    return Dirty(
        frozenset(services),
        networks,
        freed,
        containers=frozenset(containers),
        documents=documents,
        advanced=advanced,
        nodes=frozenset(nodes),
    )


def _does_not_affect_plans(change: Change) -> bool:
    """Whether a change of a node or network does not affect plans, such as measurements of a node
    or a network's policies, which only agents use."""
    match change.before, change.after:
        case Node() as old, Node() as new:
            return _planned_by(old) == _planned_by(new)
        case Network() as old, Network() as new:
            return replace(old, policies=(), revision=0) == replace(new, policies=(), revision=0)
        case _:
            return False


def _planned_by(node: Node) -> Node:
    """The node without the fields that do not affect plans."""
    description = replace(
        node.description, path_mtu=0, trouble="", blob_port=0, metrics_port=0, tunnel_keys=()
    )
    return replace(
        node, description=description, message="", boot_id="", key_rotation=0, revision=0
    )


def _affects_queues(change: Change) -> bool:
    """Whether a change of the cluster may let tasks of queues start, or begins rebalancing."""
    before, after = change.before, change.after
    if not isinstance(before, Cluster) or not isinstance(after, Cluster):
        return True
    return (before.queues, before.rebalance_every) != (after.queues, after.rebalance_every)


def _releases_room(change: Change) -> bool:
    """Whether a task no longer holds room on the node that it was nominated for."""
    before, after = change.before, change.after
    if not isinstance(before, Task) or not isinstance(after, Task):
        return False
    return bool(before.nominated_node) and before.nominated_node != after.nominated_node


def _affects_others(change: Change) -> bool:
    """Whether the change of a service may satisfy affinities of others, or lower the priority with
    which its tasks hold room."""
    before, after = change.before, change.after
    if not isinstance(before, Service) or not isinstance(after, Service):
        return False
    old, new = before.spec, after.spec
    return (old.labels, old.affinities, old.priority) != (
        new.labels,
        new.affinities,
        new.priority,
    )


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
    failed: Mapping[str, str] = field(default_factory=dict)
    """Id of a service or standalone container that cannot be planned → why. Nothing of it is in
    `plans`; all others are planned."""
    reconciled: Mapping[str, bool] = field(default_factory=dict)
    """Id of a service that was reconciled → whether it is at rest once the plans are written."""

    def now_at_rest(self, before: Set[str]) -> frozenset[str]:
        """Ids of the services at rest after this pass, of which these were so before it."""
        rest = {id for id, rests in self.reconciled.items() if rests}
        return frozenset((before - self.reconciled.keys()) | rest)


def plan(
    view: ClusterView,
    dirty: Dirty,
    now: float,
    new_id: Callable[[], str],
    *,
    limit: int = sys.maxsize,
    exclude: Set[str] = frozenset(),
    at_rest: Container[str] = (),
) -> Pass:
    """What should be written now, and when to look again if nothing happens before.

    `limit` bounds the pass: approximately that many tasks are created, and placed, those of small
    services first, so that a large one neither causes a huge commit nor delays others. The services
    and standalone containers in `exclude` are left as they are. Services `at_rest`, by id, are
    reconciled after a change of a node only if they have tasks on it.
    """
    slices = allocate_slices(view) if dirty.topology else ()
    drafts: dict[str, Draft] = {}
    unplanned = quarantined_services(view) if view.quarantined else {}
    room = QueueRoom(view)
    services = _services_to_reconcile(view, dirty, at_rest, room) - unplanned.keys() - exclude
    vips = allocate_vips(view.evolve(slices), services)
    failures = PlanningErrors()
    reconciled: dict[str, bool] = {}
    """Id of a service → whether it is at rest then."""
    left = limit
    for id in sorted(services, key=lambda id: (_size(view, id), id)):
        if left <= 0:
            break
        with failures.of(id):
            reconciled[id] = False
            drafts[id] = _reconcile(view, id, now, new_id, left, room)
            left -= drafts[id].touched
            if (after := drafts[id].service) is not None:
                reconciled[id] = is_at_rest(view, after, drafts[id])
    services -= failures.found.keys()
    unfinished = {id for id in services if id not in drafts or drafts[id].limited}
    services &= drafts.keys()
    every_container = dirty.topology or dirty.documents
    containers = set(view.tasks_of_service(STANDALONE) if every_container else dirty.containers)
    unreadable = {each.id for each in view.quarantined.values() if each.kind == "task"}
    containers -= exclude | unreadable
    if containers:
        drafts[STANDALONE] = _draft(view, STANDALONE, now, new_id)
        for id in sorted(containers):
            with failures.of(id):
                reconcile_standalone(view, drafts[STANDALONE], (id,))
    ahead = view.evolve(slices)
    ahead = ahead.evolve(change for draft in drafts.values() for change in draft.changes())
    placements: dict[str, _Placed] = {}
    """By task id."""
    passed_over = unplanned.keys() | unreadable | exclude | failures.found.keys()
    waiting = [
        task
        for task in _waiting(ahead, dirty, services, now)
        if (task.service_id or task.id) not in passed_over
    ]
    decisions = schedule(ahead, waiting, now, limit=limit, failures=failures, exclude=passed_over)
    for decision in decisions:
        task = decision.task
        draft = drafts.get(task.service_id)
        if draft is None:
            draft = drafts[task.service_id] = _draft(view, task.service_id, now, new_id)
        try:
            if isinstance(decision, Placement):
                draft.assign(task, decision.node.id, decision.generic)
                changes, read = volumes_placed(ahead, task, decision.node, now)
                ahead = ahead.evolve(changes)
                placements[task.id] = _Placed((decision.node, *read), changes)
            else:
                draft.set_pending(task, decision.reason, decision.nominated)
                for victim in decision.victims:
                    if victim.service_id not in drafts:
                        drafts[victim.service_id] = _draft(view, victim.service_id, now, new_id)
                    drafts[victim.service_id].preempt(victim, task)
        except Exception as error:
            failures.note(task.service_id or task.id, error)
    due = [task for task in waiting if task.not_before <= now]
    more = len(decisions) < len(due)
    if more:
        _explain_wait(due, decisions, drafts)
    plans = [Plan((change,), reason="networks: slices of nodes") for change in slices]
    plans += [Plan((change,), reason="services: VIPs") for change in vips]
    for id in sorted(drafts.keys() - failures.found.keys()):
        with failures.of(id):
            plans += list(_finish(id, drafts[id], placements, failures.found.keys()))
    again: float | None = None
    if view.cluster is not None and view.cluster.rebalance_every > 0:
        moved, again = rebalance(view, dirty, now, quiet=not plans and not more)
        plans += moved
    held = (task.not_before for task in ahead.pending.values() if task.not_before > now)
    asked = (draft.requeue_at for draft in drafts.values())
    rest = Dirty(frozenset(unfinished), capacity_freed=more)
    requeue_at = earliest(requeue(plans), again, *asked, *held)
    reconciled |= dict.fromkeys(reconciled.keys() & failures.found.keys(), False)
    return Pass(plans, requeue_at, rest, failures.found, reconciled)


@dataclass(frozen=True, slots=True)
class _Placed:
    """The objects that a placement read, and its changes besides the task."""

    read: tuple[Object, ...]
    changes: tuple[Change, ...]


def rebalance(
    view: ClusterView, dirty: Dirty, now: float, *, quiet: bool
) -> tuple[list[Plan], float | None]:
    """The next automatic move, and when to look again. `quiet`: nothing else is to be done.

    At most one move is made in the cluster's period, and none within a period after a node came,
    went, or changed. It begins only while all tasks run that should.
    """
    assert view.cluster is not None
    every = view.cluster.rebalance_every
    if not (dirty.timer or dirty.topology or dirty.capacity_freed):
        return [], None
    changed = [max(node.state_since, node.created_at) for node in view.nodes.values()]
    moved = [task.created_at for task in view.tasks.values() if task.moved_from]
    at = max([0.0, *changed, *moved]) + every
    if at > now or not quiet or not dirty.timer:
        return [], max(at, now + min(every, 10.0))
    moving = any(task.move_to and not ended(task) for task in view.tasks.values())
    updating = any(service.update.moving for service in view.services.values())
    if moving or updating or view.pending:
        return [], now + every
    plans = []
    for move in improving_moves(view, now, most=1):
        service = view.services[move.task.service_id]
        change = Change(move.task, replace(move.task, move_to=move.target.id))
        reason = f"rebalance: {move.task.name}: {move.reason}"
        requires = (service, move.source, move.target)
        plans.append(Plan((change,), requires, owner=service.id, reason=reason))
    return plans, None


def _services_to_reconcile(
    view: ClusterView, dirty: Dirty, at_rest: Container[str], room: QueueRoom
) -> set[str]:
    services = set(dirty.services)
    ordered = [
        item
        for id in dirty.services
        if (item := view.services.get(id)) and item.removed and item.spec.depends_on
    ]
    # Services that these depend on may keep running until these are gone.
    services |= {
        other.id
        for item in ordered
        for other in view.services.values()
        if other.removed and depends_on(item, other)
    }
    if dirty.nodes_changed:
        services |= view.services.keys()
    elif dirty.nodes:
        services |= {id for id in view.services if id not in at_rest}
        services |= {
            task.service_id
            for node_id in dirty.nodes
            for task in view.tasks_of_node(node_id).values()
            if not task.standalone
        }
    if dirty.timer:
        services |= {id for id, item in view.services.items() if _timed(item)}
        services |= {
            task.service_id
            for node in view.nodes.values()
            if has_drain_deadline(node)
            for task in view.tasks_of_node(node.id).values()
            if not task.standalone
        }
    if has_queues(view):
        queued = any(queue_of(view.services.get(id)) for id in services)
        if queued or dirty.timer or dirty.capacity_freed:
            services |= room.jobs()
    if dirty.documents:
        services |= {id for id, item in view.services.items() if _has_files(item)}
    return services


def _size(view: ClusterView, service_id: str) -> int:
    """Approximately the most tasks that reconciling the service may touch."""
    service, tasks = view.services.get(service_id), len(view.tasks_of_service(service_id))
    if service is None or service.removed:
        return tasks
    wanted = len(view.nodes) if service.spec.mode is ServiceMode.GLOBAL else service.spec.replicas
    return max(tasks, wanted)


def _timed(service: Service) -> bool:
    """Whether the passing of time alone may change its plan."""
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
    """Set the reason of tasks that this pass created and did not try to place."""
    tried = {decision.task.id for decision in decisions}
    for task in due:
        draft = drafts.get(task.service_id)
        if draft is not None and task.id not in tried and not task.status.message:
            draft.set_pending(task, "waiting to be scheduled")


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
    view: ClusterView,
    service_id: str,
    now: float,
    new_id: Callable[[], str],
    limit: int,
    room: QueueRoom,
) -> Draft:
    draft = _draft(view, service_id, now, new_id, limit)
    service = draft.service
    if service is None or service.removed:
        evict_from_failed_nodes(view, draft)
        if service is None or not still_needed(view, service):
            remove_service(draft)
        return draft
    service = update_documents(view, service, draft)
    if service.spec.mode.is_job:
        reconcile_job(view, service, draft, room)
    elif service.spec.mode is ServiceMode.GLOBAL:
        reconcile_global(view, service, draft)
    else:
        reconcile_replicated(view, service, draft)
    return draft


def _waiting(
    ahead: ClusterView, dirty: Dirty, services: Collection[str], now: float
) -> Iterable[Task]:
    """The pending tasks to schedule: those of reconciled services, those whose delay is over, and
    all of them if capacity may have been freed."""
    everything = dirty.topology or dirty.capacity_freed
    lowest = min((each.spec.priority for each in ahead.services.values()), default=0)
    for task in ahead.pending.values():
        service = ahead.services.get(task.service_id)
        if task.standalone:
            touched = task.id in dirty.containers
        elif service is None or service.removed:
            continue
        else:
            touched = task.service_id in services
        due = everything or touched or 0 < task.not_before <= now
        # One that may preempt can do so after any change, such as of others' health.
        due = due or bool(task.nominated_node) or priority_of(ahead, task) > lowest
        # Tasks that depend on another container's node, or on other services, may start after any
        # change.
        follows = task.spec.container.volumes_from or network_container(task.spec)
        if due or follows or task.affinities or (service is not None and _follows(service)):
            yield task


def _follows(service: Service) -> bool:
    """Whether the scheduling of its tasks depends on other services."""
    return bool(service.spec.depends_on or service.spec.affinities)


def _finish(
    id: str, draft: Draft, placements: Mapping[str, _Placed], failed: Collection[str]
) -> Iterator[Plan]:
    """The plan of a service; of standalone containers, one for each."""
    changes = draft.changes()
    if not changes:
        return
    if id == STANDALONE:
        for change in changes:
            if change.subject.id not in failed:
                yield _plan_of(change.subject.id, draft, [change], placements)
    else:
        yield _plan_of(id, draft, changes, placements)


def _plan_of(
    owner: str, draft: Draft, changes: Sequence[Change], placements: Mapping[str, _Placed]
) -> Plan:
    placed = {id: placements[id] for change in changes if (id := change.subject.id) in placements}
    requires: tuple[Object, ...] = ()
    service = draft.service_before
    if service is not None and service is draft.service and not draft.service_gone:
        requires = (service,)
    held = (
        task.not_before
        for task in draft.tasks.values()
        if waits(task) and task.not_before > draft.now
    )
    return Plan(
        (*(change for each in placed.values() for change in each.changes), *changes),
        requires,
        {id: each.read for id, each in placed.items()},
        owner,
        requeue_at=earliest(draft.requeue_at, *held),
        reason=_summary(draft, changes),
    )


def _standalone(change: Change) -> bool:
    return isinstance(change.subject, Task) and change.subject.standalone


def _summary(draft: Draft, changes: Sequence[Change]) -> str:
    counts = {"new": 0, "changed": 0, "forgotten": 0}
    for change in changes:
        kind = (
            "new" if change.before is None else "forgotten" if change.after is None else "changed"
        )
        counts[kind] += 1
    if draft.service is not None:
        name = draft.service.spec.name
    else:
        gone = "tasks of a removed service"
        name = "containers" if all(_standalone(each) for each in changes) else gone
    return f"{name}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
