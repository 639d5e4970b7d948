# SPDX-License-Identifier: Apache-2.0
"""Rebalancing: moves of running tasks that spread a service better, or even out the nodes' loads.

A move is proposed only if it improves a measure, in this order:

1. the spread of the task's service over its zones (`--placement-pref`), then over nodes, with soft
   affinities counted as in the ranks: the node that the task leaves has at least two more than the
   one that it goes to;
2. the nodes' loads: the load of the node that the task leaves exceeds that of the other one, with
   the task, by more than `LOAD_THRESHOLD`, and the spread does not get worse.

Each move makes the first measure smaller, or leaves it and makes the loads smaller when they are
compared in descending order. So moves end, and none undoes another.

Not moved: tasks of jobs, global services, services that pack (binpack) or are being updated,
standalone containers, tasks with pinned volumes, fixed addresses or namespaces of others, and tasks
that do not work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.manager.planning.eligibility import is_eligible
from orchestrator.manager.planning.node_load import occupies
from orchestrator.manager.planning.scheduling.affinity import affinity_scores
from orchestrator.manager.planning.scheduling.capacity import BoolArray, IntArray
from orchestrator.manager.planning.scheduling.filters import filters_for, impossible
from orchestrator.manager.planning.scheduling.node_table import Demand, NodeTable
from orchestrator.manager.planning.scheduling.scheduler import zone_numbers
from orchestrator.manager.planning.scheduling.scoring import (
    LOAD_UNIT,
    Ranking,
    failing_nodes,
    node_loads,
    unsteady_nodes,
)
from orchestrator.manager.planning.scheduling.volume_placement import named_volumes
from orchestrator.manager.planning.slots import ended, is_current, slots_of
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import Availability, Node, NodeState
from orchestrator.model.scheduling.constraints import RuleError
from orchestrator.model.services import Service
from orchestrator.model.specs import ServiceMode
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task
from orchestrator.model.validation.shared_namespaces import namespace_container

LOAD_THRESHOLD = 0.1
"""Fraction of a node's cores or memory by which loads must differ for a move."""

RETRY_AFTER = 3600.0
"""Seconds for which nothing of a service is moved to a node on which a moved task has failed."""

MAX_MOVES = 100
"""Most moves that are proposed at once."""

_SOURCES = 4
"""Nodes from which a move of a service is considered: the most crowded, and the most loaded."""


@dataclass(frozen=True, slots=True)
class Move:
    """A task, and the node that it should run on instead."""

    task: Task
    source: Node
    target: Node
    reason: str


@dataclass(frozen=True, slots=True)
class _Candidate:
    key: tuple[int, int]
    """How much it improves: the level of the measure (more is better), and by how much."""
    row: int
    target: int
    reason: str


def improving_moves(view: ClusterView, now: float, most: int, service_id: str = "") -> list[Move]:
    """The next moves that improve the measures, the best first; of one service, or of all."""
    table = NodeTable(view)
    _count_moves_in_progress(view, table)
    unsteady = unsteady_nodes(view, now)
    services = [view.services[service_id]] if service_id else list(view.services.values())
    groups = {
        service.id: _Group(view, table, service, unsteady | _avoided(view, service, now))
        for service in sorted(services, key=lambda each: each.id)
        if _is_movable(service)
    }
    best = {id: found for id, group in groups.items() if (found := group.best()) is not None}
    moves: list[Move] = []
    while best and len(moves) < min(most, MAX_MOVES):
        id = max(sorted(best), key=lambda each: best[each].key)
        # Earlier moves may have changed what is best for this service.
        found = groups[id].best()
        if found is not None and found.key == best[id].key:
            moves.append(groups[id].move(found))
            found = groups[id].best()
        if found is None:
            del best[id]
        else:
            best[id] = found
    return moves


def _count_moves_in_progress(view: ClusterView, table: NodeTable) -> None:
    """Count tasks that are being moved on the nodes that they move to."""
    for id in sorted(id for id, task in view.tasks.items() if task.move_to and not ended(task)):
        task = view.tasks[id]
        source, target = table.row.get(task.node_id), table.row.get(task.move_to)
        if source is None or target is None or task.desired_state > TaskState.RUNNING:
            continue
        demand = Demand.of(view, replace(task, node_id=""))
        beside = any(
            occupies(other) and other.slot == task.slot and other.node_id == task.move_to
            for other in view.tasks_of_service(task.service_id).values()
        )
        if beside:
            table.leave(source, demand)
        else:
            table.move(source, target, demand)


def _avoided(view: ClusterView, service: Service, now: float) -> frozenset[str]:
    """The nodes on which the service keeps failing, or a moved task of it has failed lately."""
    failed = {
        task.node_id
        for task in view.tasks_of_service(service.id).values()
        if task.moved_from and task.status.failed and task.status.at > now - RETRY_AFTER
    }
    return frozenset(failed | failing_nodes(view, service.id, now))


def _is_movable(service: Service) -> bool:
    return (
        service.spec.mode is ServiceMode.REPLICATED
        and not service.removed
        and not service.update.moving
    )


def movable_tasks(view: ClusterView, service: Service) -> Iterator[Task]:
    """The tasks of a service that may be moved."""
    for slot in slots_of(view.tasks_of_service(service.id)).values():
        if not slot.kept or slot.stopping or len(slot.live) != 1:
            continue
        task = slot.live[0]
        node = view.nodes.get(task.node_id)
        if (
            task is slot.newest
            and task.status.works
            and not task.move_to
            and is_current(service, task)
            and not _is_tied(task)
            and node is not None
            and node.state is NodeState.READY
            and is_eligible(node, service)
        ):
            yield task


def _is_tied(task: Task) -> bool:
    """Whether it has something that another task beside it cannot have, or data on its node."""
    container = task.spec.container
    return bool(
        named_volumes(task)
        or container.volumes_from
        or namespace_container(container)
        or any(each.ip or each.ip6 or each.mac for each in task.spec.attachments)
    )


class _Group:
    """The tasks of one service, as they are after the moves so far."""

    def __init__(
        self, view: ClusterView, table: NodeTable, service: Service, avoided: frozenset[str]
    ) -> None:
        self._view = view
        self._table = table
        self._service = service
        self._tasks: dict[int, list[Task]] = {}
        for task in movable_tasks(view, service):
            self._tasks.setdefault(table.row[task.node_id], []).append(task)
        for tasks in self._tasks.values():
            tasks.sort(key=lambda task: (task.created_at, task.slot, task.id))
        self._targets = np.array(
            [
                node.availability is Availability.ACTIVE
                and node.state is NodeState.READY
                and node.id not in avoided
                for node in table.nodes
            ],
            dtype=np.bool_,
        )

    def best(self) -> _Candidate | None:
        """The best move of a task of the service now; None if none improves anything."""
        if not self._tasks:
            return None
        view, table = self._view, self._table
        some = next(iter(self._tasks.values()))[0]
        demand = Demand.of(view, replace(some, node_id=""))
        if demand.binpack or impossible(view, demand) is not None:
            return None
        targets = self._targets.copy()
        try:
            for rule in filters_for(view, table, demand):
                targets &= rule.check(table)
        except RuleError:
            return None
        if not targets.any():
            return None
        affinities = affinity_scores(view, table, demand)
        ranking = Ranking(view, table, demand, affinities)
        after = ranking.loads()
        before = node_loads(table)
        levels = list(self._levels(demand, affinities))
        candidates = [
            candidate
            for row in self._sources(levels[-1], before)
            if (candidate := self._from(row, targets, levels, before, after)) is not None
        ]
        return max(candidates, key=lambda each: (each.key, -each.row), default=None)

    def _levels(
        self, demand: Demand, affinities: IntArray | None
    ) -> Iterator[tuple[IntArray, IntArray]]:
        """For each level of the spread the zone of each node, and how many tasks the node's zone
        has; at last the nodes themselves."""
        counts = self._table.staying_of_service(demand.service_id)
        for level in range(1, len(demand.spread) + 1):
            zones = zone_numbers(self._table, demand, level)
            tasks = np.bincount(zones, weights=counts).astype(np.int64)
            yield zones, tasks[zones]
        crowd = counts.copy()
        if affinities is not None and len(affinities):
            crowd = crowd + affinities.max() - affinities
        yield np.arange(len(counts), dtype=np.int64), crowd

    def _sources(self, level: tuple[IntArray, IntArray], load: IntArray) -> Sequence[int]:
        crowd = level[1]
        rows = sorted(self._tasks)
        crowded = sorted(rows, key=lambda row: (-int(crowd[row]), -int(load[row]), row))
        loaded = sorted(rows, key=lambda row: (-int(load[row]), row))
        return list(dict.fromkeys([*crowded[:_SOURCES], *loaded[:_SOURCES]]))

    def _from(
        self,
        row: int,
        targets: BoolArray,
        levels: Sequence[tuple[IntArray, IntArray]],
        before: IntArray,
        after: IntArray,
    ) -> _Candidate | None:
        left = targets.copy()
        left[row] = False
        name = self._service.spec.name
        for depth, (zones, crowd) in enumerate(levels):
            difference = crowd[row] - crowd
            other = zones != zones[row]
            better = left & other & (difference >= 2)
            if better.any():
                gain = np.where(better, difference, -1)
                best = np.flatnonzero(gain == gain.max())
                target = int(best[np.argmin(after[best])])
                last = depth == len(levels) - 1
                where = "" if last else " in their zones"
                reason = f"{name}: {int(crowd[row])} and {int(crowd[target])} tasks{where}"
                return _Candidate((len(levels) - depth, int(gain[target])), row, target, reason)
            # A move between equally crowded zones only exchanges them; any other makes it worse.
            left &= ~other | (difference == 1)
        gain = np.where(left, before[row] - after, -1)
        target = int(np.argmax(gain))
        if gain[target] <= int(LOAD_THRESHOLD * LOAD_UNIT):
            return None
        loads = f"{before[row] / LOAD_UNIT:.0%} and {after[target] / LOAD_UNIT:.0%}"
        return _Candidate((0, int(gain[target])), row, target, f"loads of the nodes: {loads}")

    def move(self, found: _Candidate) -> Move:
        """Count a move as made."""
        tasks = self._tasks[found.row]
        task = tasks.pop()  # the youngest
        if not tasks:
            del self._tasks[found.row]
        demand = Demand.of(self._view, replace(task, node_id=""))
        self._table.move(found.row, found.target, demand)
        nodes = self._table.nodes
        return Move(task, nodes[found.row], nodes[found.target], found.reason)
