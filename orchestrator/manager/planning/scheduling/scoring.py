# SPDX-License-Identifier: Apache-2.0
"""Scoring: how good a node is for one more task, and which nodes are avoided for a while.

A rank is one integer, less is better. To spread: the tasks of the service on the node, less the
affinity score; then the load with the task (the larger of the shares' and the memory's fraction),
in units of 2^-20; then the tasks of the node. To pack: the affinity score alone; then what is left
of the node by its load; then how few tasks it has. A node that has the image counts as a little
less loaded, or, to pack, as a little fuller.

A service avoids a node once two of its current tasks have failed there by themselves within five
minutes, and none has run long enough since. All services avoid a node that went down twice within
five minutes (`liveness.unsteady`). Both are read from the store, so a new leader avoids the same,
and both are preferences: an avoided node gets a task that no other node can take.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from orchestrator.manager.planning.reconcile.restarts import SETTLED, run_time
from orchestrator.manager.planning.reports.liveness import unsteady
from orchestrator.manager.planning.scheduling.capacity import IntArray
from orchestrator.manager.planning.scheduling.node_table import Demand, NodeTable
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.objects import Image
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Health, Task

_LOAD_BITS, _TASK_BITS = 22, 20
LOAD_UNIT = 1 << 20
"""A load of 1: all cores, or all memory, is reserved."""
_TASKS = (1 << _TASK_BITS) - 1

IMAGE_THERE = 1 / 32
"""Bonus of a node that has the image, as a fraction of its load."""


class Ranking:
    """The ranks of nodes for tasks of one demand; `affinity_scores` are in tasks of the service, by
    node."""

    def __init__(
        self, view: ClusterView, table: NodeTable, demand: Demand, affinity_scores: IntArray | None
    ) -> None:
        self._table = table
        self._demand = demand
        self._affinity_penalty = (
            affinity_scores.max() - affinity_scores
            if affinity_scores is not None and len(affinity_scores)
            else None
        )
        there = np.zeros(len(table.nodes), dtype=np.int64)
        for id in holders(view, demand.image, demand.image_digest):
            if (row := table.row.get(id)) is not None:
                there[row] = int(IMAGE_THERE * LOAD_UNIT)
        self._image = there

    def loads(self) -> IntArray:
        """The load of each node with one more task, in units of 2^-20."""
        table, demand = self._table, self._demand
        return np.maximum(
            _fractions(table.total_shares, table.free_shares, demand.resources.shares),
            _fractions(table.total_memory, table.free_memory, demand.resources.memory),
        )

    def has_image(self, row: int) -> bool:
        """Whether the node has the image."""
        return bool(self._image[row])

    def ranks(self) -> IntArray:
        """The rank of each node for one more task."""
        table, demand = self._table, self._demand
        load = self.loads()
        crowd, tasks = table.staying_of_service(demand.service_id), table.tasks
        if demand.binpack:
            crowd, tasks = np.zeros_like(crowd), _TASKS - tasks
            load = 2 * LOAD_UNIT - load
        if self._affinity_penalty is not None:
            crowd = crowd + self._affinity_penalty
        # What has the image all else equal: never less than no load at all.
        load = load + int(IMAGE_THERE * LOAD_UNIT) - self._image
        ranked: IntArray = (crowd << (_LOAD_BITS + _TASK_BITS)) + (load << _TASK_BITS) + tasks
        return ranked

    def rank(self, row: int) -> int:
        """As `ranks`, of one node: as an array operation it would cost ten times as much."""
        table, demand = self._table, self._demand
        shares, memory = demand.resources.shares, demand.resources.memory
        load = max(
            _fraction(table.total_shares.item(row), table.free_shares.item(row), shares),
            _fraction(table.total_memory.item(row), table.free_memory.item(row), memory),
        )
        tasks, crowd = table.tasks.item(row), 0
        if demand.binpack:
            tasks, load = _TASKS - tasks, 2 * LOAD_UNIT - load
        else:
            crowd = table.staying_of_service(demand.service_id).item(row)
        if self._affinity_penalty is not None:
            crowd += self._affinity_penalty.item(row)
        load += int(IMAGE_THERE * LOAD_UNIT) - self._image.item(row)
        return int((crowd << (_LOAD_BITS + _TASK_BITS)) + (load << _TASK_BITS) + tasks)

    def gain(self, row: int, bonus: int) -> None:
        """Let a node gain in affinity; only differences between nodes count."""
        if bonus and self._affinity_penalty is not None:
            self._affinity_penalty[row] -= bonus


def holders(view: ClusterView, name: str, digest: str) -> tuple[str, ...]:
    """Ids of the nodes that have an image."""
    image = image_of(view, name, digest)
    return image.nodes if image is not None else ()


def image_of(view: ClusterView, name: str, digest: str) -> Image | None:
    """The image that tasks of this name and digest run."""
    image = view.images.get(digest) if digest else view.image_by_name(name)
    if image is None and digest:
        indexed = (each for each in view.images.values() if digest in each.indexes)
        image = min(indexed, key=lambda each: each.id, default=None)
    return image


def _fractions(total: IntArray, free: IntArray, wanted: int) -> IntArray:
    """The part of a resource in use once `wanted` more is taken, in units of 2^-20, at most 2."""
    used = (total - free + wanted) / np.maximum(total, 1)
    return (np.minimum(used, 2.0) * LOAD_UNIT).astype(np.int64)


def node_loads(table: NodeTable) -> IntArray:
    """The load of each node, in units of 2^-20."""
    return np.maximum(
        _fractions(table.total_shares, table.free_shares, 0),
        _fractions(table.total_memory, table.free_memory, 0),
    )


def _fraction(total: int, free: int, wanted: int) -> int:
    """As `_fractions`, of one node."""
    return int(min((total - free + wanted) / max(total, 1), 2.0) * LOAD_UNIT)


FAILURES_TO_AVOID = 2
"""Failures that make a node one to avoid."""

FAILURE_WINDOW = 300.0
"""Seconds for which a failure counts."""


def unsteady_nodes(view: ClusterView, now: float) -> frozenset[str]:
    """Ids of the nodes that went down repeatedly in the last minutes."""
    return frozenset(id for id, node in view.nodes.items() if unsteady(node, now))


def failing_nodes(view: ClusterView, service_id: str, now: float) -> set[str]:
    """Ids of the nodes on which tasks of the service keep failing now."""
    service = view.services.get(service_id)
    if service is None:
        return set()
    failures: defaultdict[str, list[float]] = defaultdict(list)
    settled: defaultdict[str, float] = defaultdict(float)
    for task in view.tasks_of_service(service.id).values():
        if not task.node_id or task.spec_version != service.spec_version:
            continue
        if _failed(task):
            failures[task.node_id].append(task.status.at)
        elif _settles(task, now):
            settled[task.node_id] = max(settled[task.node_id], task.status.started_at + SETTLED)
    return {
        node_id
        for node_id, times in failures.items()
        if sum(at > max(now - FAILURE_WINDOW, settled[node_id]) for at in times)
        >= FAILURES_TO_AVOID
    }


def _failed(task: Task) -> bool:
    """Whether it failed by itself before it had settled."""
    if not task.status.failed or task.desired_state > TaskState.RUNNING:
        return False
    return run_time(task) < SETTLED or task.status.health is Health.UNHEALTHY


def _settles(task: Task, now: float) -> bool:
    status = task.status
    if not status.started_at or status.health is Health.UNHEALTHY:
        return False
    ends = now if status.state is TaskState.RUNNING else status.finished_at or status.at
    return ends - status.started_at >= SETTLED
