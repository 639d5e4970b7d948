# SPDX-License-Identifier: Apache-2.0
"""The scheduler: filter the nodes, spread over zones, choose the best score.

Among the nodes that can take a task, those in the zone with the fewest tasks of its service come
first (a zone is all nodes with one value of an attribute that the service is spread over; zones may
nest), then the node with the best rank (`scoring`), then the lowest id. Tasks with the same demand
are placed together: filters and scores are array operations over all nodes, once per demand, and
after each placement only the row of the chosen node is scored again (`node_queue`).

Tasks of higher priority choose first, then older ones. A task that fits nowhere may have those of
lower priority stopped (`preemption`); the room that is made for it is held. Of one priority, tasks
of job queues come last, and take turns by fair shares (`fair_shares`).
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

import numpy as np

from orchestrator.manager.planning.reconcile.job_queues import has_queues
from orchestrator.manager.planning.scheduling.affinity import OwnAffinities, affinity_scores
from orchestrator.manager.planning.scheduling.capacity import BoolArray, IntArray, fits
from orchestrator.manager.planning.scheduling.fair_shares import (
    FairShares,
    Unit,
    is_gang,
    lines_of,
    missing_tasks,
    queued_tasks,
)
from orchestrator.manager.planning.scheduling.filters import (
    candidates,
    explain,
    filters_for,
    impossible,
)
from orchestrator.manager.planning.scheduling.node_queue import NEVER, NodeQueue, Zones
from orchestrator.manager.planning.scheduling.node_table import (
    Demand,
    Filter,
    NodeTable,
    priority_of,
)
from orchestrator.manager.planning.scheduling.preemption import Preemption, Room
from orchestrator.manager.planning.scheduling.scoring import (
    Ranking,
    failing_nodes,
    unsteady_nodes,
)
from orchestrator.manager.planning.unplannable import PlanningErrors
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import Node
from orchestrator.model.scheduling.constraints import RuleError, read_attribute
from orchestrator.model.services import Service
from orchestrator.model.tasks import Task

UNSCHEDULABLE = "unschedulable: "
"""Begins the reason of a task that no node can ever take unless an operator changes the nodes."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A task and the node it should run on."""

    task: Task
    node: Node
    generic: dict[str, str] = field(default_factory=dict)
    """What the task is given of the node's generic resources."""


@dataclass(frozen=True, slots=True)
class Unplaced:
    """A task that no node can take now, and why."""

    task: Task
    reason: str
    nominated: str = ""
    """Id of the node that holds room for it; empty: none."""
    victims: tuple[Task, ...] = ()
    """The tasks of lower priority that must stop to make that room."""


def schedule(
    view: ClusterView,
    pending: Iterable[Task],
    now: float,
    *,
    limit: int = sys.maxsize,
    failures: PlanningErrors | None = None,
    exclude: Collection[str] = (),
    preempts: bool = True,
    gives_up: bool = False,
) -> list[Placement | Unplaced]:
    """A decision for each of the `pending` tasks that are due; those held back are left out.

    After `limit` placements the rest is left out as well: the caller tries them in another pass.
    A service whose tasks cannot be planned is noted in `failures`, and its tasks are left out.
    Tasks of the services in `exclude` are not preempted; without `preempts`, none is.
    `gives_up`: stop at the first task that no node can take.
    Of the tasks of one priority, older ones choose first, and those of older services; a task that
    fits nowhere does not hold up those behind it, except in room that is held for it.
    """
    due = sorted(
        (task for task in pending if task.not_before <= now), key=lambda task: _age(view, task)
    )
    if not due:
        return []
    turn = _Pass(
        view,
        now,
        limit,
        failures if failures is not None else PlanningErrors(),
        Preemption(view, NodeTable(view), exclude, enabled=preempts),
        gives_up=gives_up,
    )
    for _, alike in groupby(due, key=lambda task: priority_of(view, task)):
        tasks = list(alike)
        queued = {task.id for task in queued_tasks(view, tasks)} if has_queues(view) else set()
        turn.in_order(task for task in tasks if task.id not in queued)
        if queued:
            turn.fairly(task for task in tasks if task.id in queued)
        if turn.over:
            break
    return turn.decided


class _Pass:
    """The decisions of one pass, in their order."""

    def __init__(
        self,
        view: ClusterView,
        now: float,
        limit: int,
        failures: PlanningErrors,
        preemption: Preemption,
        *,
        gives_up: bool,
    ) -> None:
        self.decided: list[Placement | Unplaced] = []
        self.over = False
        """Nothing more is to be decided."""
        self._view = view
        self._now = now
        self._left = limit
        self._failures = failures
        self._preemption = preemption
        self._table = preemption.table
        self._unsteady = unsteady_nodes(view, now)
        self._holders = _Holders(view)
        self._gives_up = gives_up
        self._fair_shares: FairShares | None = None

    def in_order(self, tasks: Iterable[Task]) -> None:
        """Decide about tasks in their order, those of one demand together."""
        for demand, alike in groupby(
            _demands(self._view, tasks, self._failures), key=itemgetter(0)
        ):
            left = [task for _, task in alike]
            with self._failures.of(left[0].service_id or left[0].id):
                while left and not self.over:
                    placed = self._place(demand, left[: self._left])
                    self._decide(placed)
                    left = left[len(placed) :]
            if self.over:
                return

    def fairly(self, tasks: Iterable[Task]) -> None:
        """Decide about tasks of queues: the queue with the least share is next, again and again."""
        if self._fair_shares is None:
            self._fair_shares = FairShares(self._view)
        shares, lines = self._fair_shares, lines_of(self._view, tasks)
        failed: dict[str, str] = {}
        while lines and not self.over:
            queue = min(lines, key=lambda name: (shares.share(name), name))
            unit = lines[queue].popleft()
            if not lines[queue]:
                del lines[queue]
            with self._failures.of(unit[0].service_id):
                self._decide(self._unit(queue, unit, shares, failed))

    def _unit(
        self, queue: str, unit: Unit, shares: FairShares, failed: dict[str, str]
    ) -> list[Placement | Unplaced]:
        """Decide about the next task of a queue, or tasks that start together. `failed`: id of a
        job whose tasks fit nowhere in this pass → why."""
        first = unit[0]
        demand = Demand.of(self._view, first)
        reason = failed.get(first.service_id, "") if not demand.volumes else ""
        reason = reason or shares.over_quota(queue, demand.resources, len(unit))
        if reason:
            return [Unplaced(task, reason) for task in unit]
        service = self._view.services[first.service_id]
        if is_gang(self._view, service, first.job_run):
            placed = self._together(service, unit)
        else:
            placed = self._place(demand, unit)
        for each in placed:
            if isinstance(each, Placement):
                shares.take(queue, demand.resources)
            elif not each.nominated:
                failed[first.service_id] = each.reason
        return placed

    def _together(self, service: Service, unit: Unit) -> list[Placement | Unplaced]:
        """Place all of the tasks, or none of them."""
        if missing := missing_tasks(self._view, service, unit):
            why = f"all or nothing: waiting for {missing} more tasks of the job"
            return [Unplaced(task, why) for task in unit]
        placed: list[Placement] = []
        for task in unit:
            demand = Demand.of(self._view, task)
            [one] = self._place(demand, [task], preempts=False)
            if isinstance(one, Placement):
                placed.append(one)
                continue
            for each in placed:
                row = self._table.row[each.node.id]
                self._table.unplace(row, Demand.of(self._view, each.task), each.generic)
            why = f"all or nothing: {len(placed)} of {len(unit)} tasks fit; {one.reason}"
            return [Unplaced(each, why) for each in unit]
        return list(placed)

    def _place(
        self, demand: Demand, tasks: Sequence[Task], *, preempts: bool = True
    ) -> list[Placement | Unplaced]:
        self._holders.hold_above(demand.priority, self._table)
        preemption = self._preemption if preempts else None
        return _place(self._view, self._table, demand, tasks, self._unsteady, self._now, preemption)

    def _decide(self, placed: list[Placement | Unplaced]) -> None:
        self._holders.decided(placed)
        self._left -= sum(isinstance(each, Placement) for each in placed)
        self.decided += placed
        fails = self._gives_up and any(isinstance(each, Unplaced) for each in placed)
        self.over = self.over or fails or self._left <= 0


class _Holders:
    """The pending tasks that are nominated for nodes, which hold room for them against those of
    lower priority."""

    def __init__(self, view: ClusterView) -> None:
        self._view = view
        nominated = [task for task in view.pending.values() if task.nominated_node]
        nominated.sort(key=lambda task: (priority_of(view, task), task.id))
        self._left = nominated
        self._decided: set[str] = set()

    def decided(self, tasks: Iterable[Placement | Unplaced]) -> None:
        """These tasks have been decided about in this pass: they hold what they were given."""
        self._decided.update(each.task.id for each in tasks)

    def hold_above(self, priority: int, table: NodeTable) -> None:
        """Hold room for the tasks of higher priority that have not been decided about."""
        while self._left and priority_of(self._view, self._left[-1]) > priority:
            task = self._left.pop()
            row = table.row.get(task.nominated_node)
            if task.id not in self._decided and row is not None:
                table.hold(row, Demand.of(self._view, task))


def _age(view: ClusterView, task: Task) -> tuple[int, float, float, str, str, int, str]:
    """The order in which tasks choose. Those that are as old go by their services' ages, not by
    their ids, which are random: a plan has others than what is then made."""
    service = view.services.get(task.service_id)
    born = service.created_at if service is not None else 0.0
    priority = service.spec.priority if service is not None else task.priority
    return -priority, task.created_at, born, task.service_name, task.service_id, task.slot, task.id


def _demands(
    view: ClusterView, tasks: Iterable[Task], failures: PlanningErrors
) -> Iterator[tuple[Demand, Task]]:
    known: dict[tuple[str, int, str, str], Demand] = {}
    """Of specs without mounts, whose volumes may differ from slot to slot."""
    for task in tasks:
        alike = (task.service_id, id(task.spec), task.image_digest, task.node_id)
        demand = known.get(alike) if task.service_id else None
        if demand is None:
            try:
                demand = Demand.of(view, task)
            except Exception as error:
                failures.note(task.service_id or task.id, error)
                continue
            if not task.spec.container.mounts:
                known[alike] = demand
        yield demand, task


def _place(
    view: ClusterView,
    table: NodeTable,
    demand: Demand,
    tasks: Sequence[Task],
    unsteady: frozenset[str],
    now: float,
    preemption: Preemption | None,
) -> list[Placement | Unplaced]:
    """Decide about tasks of one demand, in order: all of them, or up to one that pinned a volume or
    satisfied an affinity, since other rules hold for the tasks after it."""
    reason = impossible(view, demand)
    if reason is not None:
        return [Unplaced(task, reason) for task in tasks]
    try:
        filters = tuple(filters_for(view, table, demand))
    except RuleError as error:
        return [Unplaced(task, str(error)) for task in tasks]
    passing = candidates(table, demand)
    for rule in filters:
        passing &= rule.check(table)
    ranking = Ranking(view, table, demand, affinity_scores(view, table, demand))
    avoided = _rows(table, unsteady | failing_nodes(view, demand.service_id, now))
    scores = np.where(passing, ranking.ranks(), NEVER)
    own = OwnAffinities(view, table, demand)
    zones = [_zones(table, demand, level) for level in range(1, len(demand.spread) + 1)]
    queue = NodeQueue(scores, avoided, zones, len(tasks))
    decided: list[Placement | Unplaced] = []
    for task in tasks:
        row = queue.best()
        if row is None:
            reason = reason or _reason(table, demand, filters)
            room = None
            if preemption is not None and preemption.may_preempt(task, demand):
                eligible = candidates(table, demand)
                if avoided is not None:
                    eligible &= ~avoided
                room = preemption.room(task, demand, filters, eligible)
            decided.append(_unplaced(task, reason, room))
            continue
        given = table.generic.take(row, demand.generic) if demand.generic else {}
        decided.append(Placement(task, table.nodes[row], given))
        pinned, effect = table.place(row, demand), own.place(row)
        if pinned or effect.elsewhere:
            break
        ranking.gain(row, effect.bonus)
        closed = effect.closed or bool(demand.ports) or not _has_room(table, demand, row)
        queue.placed(NEVER if closed else ranking.rank(row))
    return decided


def _unplaced(task: Task, reason: str, room: Room | None) -> Unplaced:
    if room is None:
        return Unplaced(task, reason)
    host = room.node.description.hostname or room.node.id
    names = sorted(each.name for each in room.victims)
    why = f"waiting for room on {host}, where tasks are stopping"
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        why = f"waiting for room on {host}: preempting {shown}"
    return Unplaced(task, why, room.node.id, room.victims)


def zone_numbers(table: NodeTable, demand: Demand, level: int) -> IntArray:
    """The number of each node's zone by the first `level` spread attributes."""
    attributes = demand.spread[:level]
    values = [
        tuple(read_attribute(node, each) or "" for each in attributes) for node in table.nodes
    ]
    numbers = {value: number for number, value in enumerate(sorted(set(values)))}
    return np.array([numbers[value] for value in values], dtype=np.int64)


def _zones(table: NodeTable, demand: Demand, level: int) -> Zones:
    """The zones by the first `level` attributes that the demand is spread over."""
    zones = zone_numbers(table, demand, level)
    tasks = np.bincount(zones, weights=table.staying_of_service(demand.service_id))
    return Zones(zones, tasks.astype(np.int64).tolist())


def _has_room(table: NodeTable, demand: Demand, row: int) -> bool:
    """Whether a node that has just been given a task of this demand can take another one."""
    most = demand.max_per_node
    return (
        fits(table.free_shares.item(row), demand.resources.shares)
        and fits(table.free_memory.item(row), demand.resources.memory)
        and (not demand.generic or table.generic.has(row, demand.generic))
        and (not most or table.tasks_of_service(demand.service_id).item(row) < most)
    )


def _rows(table: NodeTable, node_ids: Collection[str]) -> BoolArray | None:
    """These nodes; None if there are none."""
    if not node_ids:
        return None
    return np.array([node.id in node_ids for node in table.nodes], dtype=np.bool_)


def _reason(table: NodeTable, demand: Demand, filters: Sequence[Filter]) -> str:
    """Why no node takes a task now, and whether one ever will."""
    rejects = _rejects(table, demand, filters)
    able = fits(table.total_shares, demand.resources.shares)
    able &= fits(table.total_memory, demand.resources.memory)
    able &= candidates(table, demand)
    for each in demand.generic:
        able &= table.generic.possible(each)
    if not able.any():
        node = "its node has too little" if demand.node_id else "no node has enough"
        return explain(rejects, f"{UNSCHEDULABLE}{node} capacity")
    for rule in filters:
        if rule.lasting:
            able &= rule.check(table)
    if not able.any():
        node = "its node does not meet" if demand.node_id else "no node meets"
        return explain(rejects, f"{UNSCHEDULABLE}{node} its requirements")
    return explain(rejects)


def _rejects(table: NodeTable, demand: Demand, filters: Iterable[Filter]) -> list[tuple[str, int]]:
    """How many nodes each filter refuses; a node counts for the first that refuses it."""
    left = candidates(table, demand)
    counts: list[tuple[str, int]] = []
    for rule in filters:
        passing = rule.check(table)
        counts.append((rule.explain, int(np.count_nonzero(left & ~passing))))
        left &= passing
    return counts
