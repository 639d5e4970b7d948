# SPDX-License-Identifier: Apache-2.0
"""Preemption: tasks of lower priority are stopped to make room for one that fits nowhere.

Only tasks of services and jobs are preempted: a standalone container would not start again. The
node is chosen where the fewest tasks must go, then those of the lowest priority, then the youngest.
A task that waits for others to stop anyway preempts nobody.

**Room is held.** The task is nominated for the node (`Task.nominated_node`): until it is placed, no
task of lower priority is placed in the room that is being made for it. A restart that is delayed
holds the room of its predecessor in the same way, so that a crashing task and one that it has
preempted do not take turns.

**No cascade.** A task that replaces a preempted one waits for room; it does not preempt in turn.
Since a task preempts only lower priorities, preemption ends.

**Budgets.** No service falls below its disruption budget.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.manager.planning.disruptions import disruptions_left_in
from orchestrator.manager.planning.node_load import occupies, published
from orchestrator.manager.planning.scheduling.capacity import BoolArray, IntArray, fits
from orchestrator.manager.planning.scheduling.generic_pool import given_to_task
from orchestrator.manager.planning.scheduling.node_table import (
    Demand,
    Filter,
    NodeTable,
    priority_of,
)
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.formats.generic_resources import supply_size
from orchestrator.model.nodes import Node
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task

MAX_EXAMINED = 100
"""Nodes that are examined for one task: those with the least to be freed."""


@dataclass(frozen=True, slots=True)
class Room:
    """The node that is to have room for a task."""

    node: Node
    victims: tuple[Task, ...] = ()
    """The tasks to be stopped for that; empty: those that are stopping already suffice."""


class Preemption:
    """Chooses victims in one scheduling pass."""

    def __init__(
        self,
        view: ClusterView,
        table: NodeTable,
        exclude: Collection[str],
        *,
        enabled: bool = True,
    ) -> None:
        """`exclude`: ids of the services whose tasks are left as they are. `enabled`: whether any
        task is preempted."""
        self._enabled = enabled
        self._view = view
        self._table = table
        self._exclude = exclude
        self._loaded = False
        self._evictable: list[list[tuple[int, Task]]] = []
        """Priority and task, by row."""
        self._leaving: list[list[Task]] = []
        """The tasks that are stopping, by row."""
        self._left: dict[str, int] = {}
        """Id of a service → how many more of its working tasks may be stopped."""
        self._lowest = min(
            (each.spec.priority for each in view.services.values() if not each.removed), default=0
        )

    @property
    def table(self) -> NodeTable:
        """The nodes, as they are after the decisions so far."""
        return self._table

    def may_preempt(self, task: Task, demand: Demand) -> bool:
        """Whether there may be tasks of lower priority, and it may preempt them. One that replaces
        a preempted task, or is moved, may not."""
        if task.preempted_by or task.moved_from:
            return False
        return self._enabled and demand.priority > self._lowest

    def room(
        self, task: Task, demand: Demand, filters: Sequence[Filter], eligible: BoolArray
    ) -> Room | None:
        """Where to make room for a task that no node can take; None if nowhere. The room that is
        found is held for it in the node table."""
        self._load()
        rows = eligible.copy()
        for rule in filters:
            if not rule.capacity:
                rows &= rule.check(self._table)
        rows &= fits(self._table.total_shares, demand.resources.shares)
        rows &= fits(self._table.total_memory, demand.resources.memory)
        for each in demand.generic:
            rows &= self._table.generic.possible(each)
        best: tuple[tuple[int, int, int, float, int], tuple[Task, ...]] | None = None
        for row in self._examined(demand, rows, self._table.row.get(task.nominated_node)):
            victims = self._victims(row, demand)
            if victims is None:
                continue
            key = (*_cost(self._view, victims), row)
            if best is None or key < best[0]:
                best = key, victims
            if not victims:
                break
        if best is None:
            return None
        row, victims = best[0][-1], best[1]
        self._table.hold(row, demand)
        for victim in victims:
            self._stop(row, victim)
        return Room(self._table.nodes[row], victims)

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for node in self._table.nodes:
            evictable, leaving = [], []
            for task in self._view.tasks_of_node(node.id).values():
                if not occupies(task):
                    continue
                if task.desired_state > TaskState.RUNNING:
                    leaving.append(task)
                elif self._is_evictable(task):
                    evictable.append((priority_of(self._view, task), task))
            # The lowest priority first, of these the youngest.
            evictable.sort(
                key=lambda item: (item[0], -item[1].created_at, -item[1].slot, item[1].id)
            )
            self._evictable.append(evictable)
            self._leaving.append(leaving)

    def _is_evictable(self, task: Task) -> bool:
        service = self._view.services.get(task.service_id)
        return service is not None and not service.removed and service.id not in self._exclude

    def _examined(self, demand: Demand, rows: BoolArray, nominated: int | None) -> Iterator[int]:
        """The rows to examine: the one that the task is nominated for, then those that have most
        room already."""
        if nominated is not None and rows[nominated]:
            yield nominated
        load = _least_room(self._table, demand)
        others = [int(row) for row in np.argsort(load, kind="stable") if rows[row]]
        yield from (row for row in others[:MAX_EXAMINED] if row != nominated)

    def _victims(self, row: int, demand: Demand) -> tuple[Task, ...] | None:
        """The tasks of lower priority to be stopped on a node, so that it has room; None if that
        does not suffice."""
        need = _Need(self._table, row, demand)
        for task in self._leaving[row]:
            need.free(task)
        if need.met:
            return ()
        below = [task for priority, task in self._evictable[row] if priority < demand.priority]
        stopped: Counter[str] = Counter()
        chosen: list[Task] = []
        allowed = [task for task in below if self._allowance(task) > 0]
        while not need.met:
            # One that suffices, the lowest and youngest of these; else the one that helps most.
            usable = [task for task in allowed if self._may_stop(task, stopped)]
            gains = [(need.gain(task), task) for task in usable]
            helpful = [item for item in gains if item[0] > 0]
            if not helpful:
                return None
            task = max(helpful, key=lambda item: item[0])[1]
            chosen.append(task)
            allowed.remove(task)
            need.free(task)
            if _costs_budget(task):
                stopped[task.service_id] += 1
        return tuple(self._improved(row, demand, chosen, below))

    def _improved(
        self, row: int, demand: Demand, chosen: list[Task], below: list[Task]
    ) -> list[Task]:
        """The chosen tasks without those that need not go, and with lower or younger ones in place
        of those that others can replace; the highest and oldest first."""
        order = {task.id: at for at, task in enumerate(below)}
        chosen.sort(key=lambda task: order[task.id])
        for task in reversed(list(chosen)):
            rest = [other for other in chosen if other is not task]
            if self._suffices(row, demand, rest):
                chosen = rest
                continue
            for other in below[: order[task.id]]:
                if other not in rest and self._suffices(row, demand, [*rest, other]):
                    chosen = [*rest, other]
                    break
        return sorted(chosen, key=lambda task: order[task.id])

    def _suffices(self, row: int, demand: Demand, stopped: list[Task]) -> bool:
        """Whether a node has room once these tasks have stopped, and their services' budgets allow
        that."""
        need = _Need(self._table, row, demand)
        for task in (*self._leaving[row], *stopped):
            need.free(task)
        costs = Counter(task.service_id for task in stopped if _costs_budget(task))
        within = all(
            self._allowance(task) >= costs[task.service_id]
            for task in stopped
            if _costs_budget(task)
        )
        return need.met and within

    def _may_stop(self, task: Task, stopped: Counter[str]) -> bool:
        if not _costs_budget(task):
            return True
        return self._allowance(task) > stopped[task.service_id]

    def _allowance(self, task: Task) -> int:
        """How many more working tasks of its service may be stopped; at least 1 for a task that
        does not work."""
        if not _costs_budget(task):
            return 1
        left = self._left.get(task.service_id)
        if left is None:
            service = self._view.services[task.service_id]
            left = self._left[task.service_id] = disruptions_left_in(self._view, service)
        return left

    def _stop(self, row: int, victim: Task) -> None:
        self._evictable[row] = [item for item in self._evictable[row] if item[1] is not victim]
        self._leaving[row].append(victim)
        if _costs_budget(victim):
            self._left[victim.service_id] = self._allowance(victim) - 1


class _Need:
    """What a node lacks for a task, as tasks of it stop."""

    def __init__(self, table: NodeTable, row: int, demand: Demand) -> None:
        self._total_shares = max(int(table.total_shares[row]), 1)
        self._total_memory = max(int(table.total_memory[row]), 1)
        self._shares = demand.resources.shares - int(table.free_shares[row])
        self._memory = demand.resources.memory - int(table.free_memory[row])
        self._generic = {
            each.kind: (int(table.generic.total(each.kind)[row]) if each.every else each.count)
            - int(table.generic.free(each.kind)[row])
            for each in demand.generic
        }
        self._ports = {port for port in demand.ports if row in table.ports.get(port, ())}

    @property
    def met(self) -> bool:
        """Whether nothing is lacking."""
        enough = self._shares <= 0 and self._memory <= 0 and not self._ports
        return enough and all(count <= 0 for count in self._generic.values())

    def gain(self, task: Task) -> float:
        """How much of what is lacking a task would free, in fractions of the node."""
        counted = task.spec.counted
        gain = min(max(self._shares, 0), counted.shares) / self._total_shares
        gain += min(max(self._memory, 0), counted.memory) / self._total_memory
        gain += len(self._ports.intersection(published(task)))
        for kind, lacking in self._generic.items():
            gain += min(max(lacking, 0), supply_size(given_to_task(task, kind)))
        return gain

    def free(self, task: Task) -> None:
        """Count what a task will have freed."""
        counted = task.spec.counted
        self._shares -= counted.shares
        self._memory -= counted.memory
        self._ports -= set(published(task))
        for kind in self._generic:
            self._generic[kind] -= supply_size(given_to_task(task, kind))


def _eviction_order(item: tuple[int, Task]) -> tuple[int, float, int, str]:
    priority, task = item
    return priority, -task.created_at, -task.slot, task.id


def _costs_budget(task: Task) -> bool:
    """Whether stopping it makes less of its service available."""
    return task.status.works


def _cost(view: ClusterView, victims: Iterable[Task]) -> tuple[int, int, int, float]:
    """How much is lost by stopping these: their number, the highest priority, the sum of
    priorities, and how old the oldest is (less is younger)."""
    victims = list(victims)
    priorities = [priority_of(view, task) for task in victims]
    oldest = min((task.created_at for task in victims), default=0.0)
    return len(victims), max(priorities, default=0), sum(priorities), -oldest


def _least_room(table: NodeTable, demand: Demand) -> IntArray:
    """What each node lacks for the demand, in thousandths of its size; less is better."""
    shares = (
        (demand.resources.shares - table.free_shares) * 1000 // np.maximum(table.total_shares, 1)
    )
    memory = (
        (demand.resources.memory - table.free_memory) * 1000 // np.maximum(table.total_memory, 1)
    )
    lacking: IntArray = np.maximum(shares, memory)
    return lacking
