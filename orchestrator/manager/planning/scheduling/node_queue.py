# SPDX-License-Identifier: Apache-2.0
"""The nodes that can take a task, best first, while tasks are placed one after the other.

A placement changes the score of one node and the number of tasks of its zones, so the next best
node is found by heaps: one of nodes for each of the smallest zones, one of these zones. The order
is that of a tuple: not avoided, the tasks of the node's zones from the widest to the narrowest,
score, row. A zone's place among the others is corrected when it comes up, since the number of its
tasks only grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from itertools import pairwise

import numpy as np

from orchestrator.manager.planning.scheduling.capacity import BoolArray, IntArray

NEVER = int(np.iinfo(np.int64).max)
"""The score of a node that cannot take the task."""


@dataclass(frozen=True, slots=True)
class Zones:
    """The zones by the first attributes that a service is spread over, and its tasks in each."""

    of_row: IntArray
    """For each node the number of its zone."""
    tasks: list[int]
    """By the number of the zone."""


class NodeQueue:
    """The order of the nodes for the next tasks of one demand."""

    def __init__(
        self, scores: IntArray, avoided: BoolArray | None, zones: Sequence[Zones], count: int
    ) -> None:
        """`zones`, from the widest to the narrowest, must nest, and are counted in place. At most
        `count` tasks will be placed. A node that is avoided gets a task that no other can take."""
        self._tasks = [each.tasks for each in zones]
        rows = np.flatnonzero(scores != NEVER)
        later = avoided[rows] if avoided is not None else np.zeros(len(rows), dtype=np.bool_)
        if not zones and not later.any():
            # A task changes only the score of its own node, so that no other can be reached.
            rows = _least(scores, rows, count)
            later = later[: len(rows)]
        narrowest = zones[-1].of_row[rows] if zones else np.zeros(len(rows), dtype=np.int64)
        order = np.lexsort((rows, scores[rows], later, narrowest))
        rows, later, narrowest = rows[order], later[order], narrowest[order]
        entries = list(zip(later.tolist(), scores[rows].tolist(), rows.tolist(), strict=True))
        starts = np.flatnonzero(np.diff(narrowest, prepend=-1))
        # A sorted list is a heap.
        self._leaves = [
            entries[start:end] for start, end in pairwise([*starts.tolist(), len(entries)])
        ]
        first = rows[starts]
        self._numbers = list(
            zip(*(each.of_row[first].tolist() for each in zones), strict=True)
        ) or [()] * len(starts)
        """The numbers of a leaf's zones, from the widest to the narrowest."""
        self._heads = [(self._key(leaf), leaf) for leaf in range(len(self._leaves))]
        heapify(self._heads)

    def best(self) -> int | None:
        """The row of the best node; None if none can take a task."""
        heads = self._heads
        while heads:
            key, leaf = heads[0]
            current = self._key(leaf)
            if current == key:
                return self._leaves[leaf][0][2]
            heapreplace(heads, (current, leaf))
        return None

    def placed(self, score: int) -> None:
        """Count a task on the node that `best` gave, which now has this score."""
        leaf = self._heads[0][1]
        nodes = self._leaves[leaf]
        later, _, row = nodes[0]
        for tasks, number in zip(self._tasks, self._numbers[leaf], strict=True):
            tasks[number] += 1
        if score != NEVER:
            heapreplace(nodes, (later, score, row))
        else:
            heappop(nodes)
        if nodes:
            heapreplace(self._heads, (self._key(leaf), leaf))
        else:
            heappop(self._heads)

    def _key(self, leaf: int) -> tuple[int, ...]:
        """The place of a leaf, by its best node."""
        entry = self._leaves[leaf][0]
        if not self._tasks:
            return entry
        later, score, row = entry
        zones = zip(self._tasks, self._numbers[leaf], strict=True)
        return (later, *(tasks[number] for tasks, number in zones), score, row)


def _least(scores: IntArray, rows: IntArray, count: int) -> IntArray:
    """The `count` rows with the least scores; of equal ones the first."""
    if count >= len(rows):
        return rows
    found = scores[rows]
    limit = np.partition(found, count - 1)[count - 1]
    less = rows[found < limit]
    return np.concatenate((less, rows[found == limit][: count - len(less)]))
