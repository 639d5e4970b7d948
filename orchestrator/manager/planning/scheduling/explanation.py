# SPDX-License-Identifier: Apache-2.0
"""Explanations: how many more tasks fit, and why a task is where it is, or nowhere.

Both are computed by the scheduler's own filters and ranks, on the cluster as it is now. Why a task
was placed where it is, when it was, is not stored; what is shown is how its node compares with
the others today, as if the task were placed now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.scheduling.affinity import affinity_scores
from orchestrator.manager.planning.scheduling.filters import (
    candidates,
    filters_for,
    impossible,
)
from orchestrator.manager.planning.scheduling.node_queue import NEVER
from orchestrator.manager.planning.scheduling.node_table import Demand, Filter, NodeTable
from orchestrator.manager.planning.scheduling.scheduler import Placement, Unplaced, schedule
from orchestrator.manager.planning.scheduling.scoring import (
    LOAD_UNIT,
    Ranking,
    failing_nodes,
    unsteady_nodes,
)
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import Availability, Node, NodeState
from orchestrator.model.scheduling.constraints import RuleError
from orchestrator.model.services import Service
from orchestrator.model.specs import Resources, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus

MAX_COUNTED = 10_000
"""How many further tasks are counted at most."""

MAX_OPENED = 10
"""For how many inactive nodes it is computed what would fit if they were active."""


@dataclass(frozen=True, slots=True)
class NodeRoom:
    """What room a node has for further tasks of one kind."""

    node: Node
    free: Resources
    """Before any of them is placed."""
    tasks: int
    """How many of them the scheduler would place on it."""
    limit: str
    """Why it takes no more of them; empty if the others were preferred until the last."""
    if_active: int = 0
    """How many more tasks would fit in total if it accepted tasks; 0 if it does."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many more tasks of one kind fit."""

    tasks: int
    resources: Resources
    """What the scheduler counts for one."""
    limit: str
    """Why no more fit."""
    nodes: tuple[NodeRoom, ...]
    """By hostname."""
    largest: Node | None
    """The node that would take most of them if it were empty."""
    per_largest: int = 0
    """How many a further node like that would take."""


def capacity(view: ClusterView, service: Service | None, spec: TaskSpec, now: float) -> Capacity:
    """How many more tasks of a service fit; without one, how many containers of `spec`."""
    likeness = _likeness(service, service.spec.task if service is not None else spec)
    placed, limit = _filled(view, likeness, now)
    full = view.evolve(Change(None, task) for task in placed)
    demand = Demand.of(view, likeness)
    refusals = _refusals(full, demand)
    before = NodeTable(view)
    counts: dict[str, int] = {}
    for task in placed:
        counts[task.node_id] = counts.get(task.node_id, 0) + 1
    rooms = []
    inactive = np.flatnonzero(before.availability != Availability.ACTIVE)
    tried = set(inactive[:MAX_OPENED].tolist())
    for row, node in enumerate(before.nodes):
        closed = node.availability is not Availability.ACTIVE and node.state is NodeState.READY
        closed = closed and row in tried
        opened = replace(node, availability=Availability.ACTIVE)
        more = 0
        if closed:
            more = len(_filled(view.evolve([Change(node, opened)]), likeness, now)[0]) - len(placed)
        free = Resources(int(before.free_shares[row]), int(before.free_memory[row]))
        reasons = refusals.get(node.id, ())
        rooms.append(
            NodeRoom(node, free, counts.get(node.id, 0), reasons[0] if reasons else "", more)
        )
    rooms.sort(key=lambda room: (room.node.description.hostname, room.node.id))
    largest = max(
        (node for node in view.nodes.values() if node.state is NodeState.READY),
        key=lambda node: (_whole(node, demand.resources), node.id),
        default=None,
    )
    return Capacity(
        len(placed),
        demand.resources,
        limit,
        tuple(rooms),
        largest,
        _whole(largest, demand.resources) if largest else 0,
    )


@dataclass(frozen=True, slots=True)
class NodeVerdict:
    """How a node compares with the others for a task."""

    node: Node
    place: int
    """1 is the best node, 0 means that it cannot take the task."""
    refusals: tuple[str, ...]
    """Why it cannot."""
    tasks: int
    """Other tasks of the service on it."""
    affinity: int
    """Sum of the weights of the preferences that it meets."""
    load: float
    """With the task on it: the reserved fraction of its cores or memory, whichever is larger."""
    has_image: bool
    avoided: str
    """Why the service avoids it; empty if it does not."""


def verdicts(view: ClusterView, task: Task, now: float) -> tuple[str, list[NodeVerdict]]:
    """Why no node can take the task regardless of capacity (empty if some might), and how the nodes
    compare if it were placed now, the best first."""
    if task.node_id:
        view = view.evolve([Change(task, None)])
    alone = replace(task, node_id="") if task.service_id and not _is_bound(view, task) else task
    demand = Demand.of(view, alone)
    refusals = _refusals(view, demand)
    table = NodeTable(view)
    affinities = affinity_scores(view, table, demand)
    ranking = Ranking(view, table, demand, affinities)
    failing, unsteady = failing_nodes(view, task.service_id, now), unsteady_nodes(view, now)
    ranks, loads = ranking.ranks(), ranking.loads()
    tasks = table.staying_of_service(demand.service_id)
    found = []
    for row, node in enumerate(table.nodes):
        avoided = "tasks of the service keep failing there" if node.id in failing else ""
        if node.id in unsteady:
            avoided = "it went down repeatedly"
        able = not refusals.get(node.id)
        order = (not able, bool(avoided), int(ranks[row]) if able else NEVER, node.id)
        verdict = NodeVerdict(
            node,
            0,
            refusals.get(node.id, ()),
            int(tasks[row]) if task.service_id else 0,
            int(affinities[row]) if affinities is not None else 0,
            float(loads[row]) / LOAD_UNIT,
            ranking.has_image(row),
            avoided,
        )
        found.append((order, verdict))
    found.sort(key=lambda item: item[0])
    placed = [
        replace(verdict, place=0 if verdict.refusals else at)
        for at, (_, verdict) in enumerate(found, 1)
    ]
    return impossible(view, demand) or "", placed


def next_task(service: Service) -> Task:
    """A further task of the service, as if it were scaled up."""
    return _likeness(service, service.spec.task)


def _is_bound(view: ClusterView, task: Task) -> bool:
    """Whether the task is for one node only, as those of global services are."""
    service = view.services.get(task.service_id)
    return service is not None and service.spec.mode.is_global


def _likeness(service: Service | None, spec: TaskSpec) -> Task:
    """A task like those of the service. It has no slot, so it follows no volume of one."""
    return Task(
        id="",
        service_id=service.id if service else "",
        service_name=service.spec.name if service else "",
        spec=spec,
        spec_version=service.spec_version if service else 0,
        image_digest=service.image_digest if service else "",
        desired_state=TaskState.RUNNING,
        status=TaskStatus(TaskState.PENDING),
    )


def _filled(view: ClusterView, likeness: Task, now: float) -> tuple[list[Task], str]:
    """Tasks like this one, placed until no more fit, and why no more do."""
    tasks: list[Task] = []
    names = (replace(likeness, id=f"~{number:06}") for number in range(MAX_COUNTED))
    decided = schedule(view, names, now, preempts=False, gives_up=True)
    limit = f"more than {MAX_COUNTED} were not counted"
    for each in decided:
        match each:
            case Placement():
                status = replace(each.task.status, state=TaskState.ASSIGNED)
                made = replace(each.task, node_id=each.node.id, status=status)
                tasks.append(replace(made, generic_resources=each.generic))
            case Unplaced():
                limit = each.reason
                break
    return tasks, limit


def _refusals(view: ClusterView, demand: Demand) -> dict[str, tuple[str, ...]]:
    """By node, why it cannot take a task of the demand now."""
    table = NodeTable(view)
    try:
        filters: Sequence[Filter] = tuple(filters_for(view, table, demand))
    except RuleError as error:
        return {node.id: (str(error),) for node in table.nodes}
    checks = [(rule.explain, rule.check(table)) for rule in filters]
    bound = candidates(table, demand)
    found = {}
    for row, node in enumerate(table.nodes):
        why = [] if bound[row] else ["the task is for another node"]
        why += [words for words, passing in checks if not passing[row]]
        found[node.id] = tuple(why)
    return found


def _whole(node: Node, resources: Resources) -> int:
    """How many tasks an empty node of this size takes by cores and memory."""
    size = node.description.resources
    return int(
        min(
            size.shares // max(resources.shares, 1),
            size.memory // max(resources.memory, 1),
        )
    )
