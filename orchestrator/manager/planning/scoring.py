"""How good a node is for one more task, among those that can take it.

A rank is one integer, less is better: the tasks of the service on the node, less what the service's
wishes make of it; then the load with the task (the larger of the shares' and the memory's
fraction), in units of 2^-20; then the tasks of the node.
"""

from __future__ import annotations

import numpy as np

from orchestrator.manager.planning.nodetable import Demand, NodeTable
from orchestrator.manager.planning.resources import IntArray

NEVER = np.iinfo(np.int64).max
"""The rank of a node that cannot take the task."""

_LOAD_BITS, _TASK_BITS = 22, 20
_LOAD_UNIT = 1 << 20


class Ranking:
    """The ranks of nodes for tasks of one demand; `liked` is what its wishes make of each node, in
    tasks of the service."""

    def __init__(self, table: NodeTable, demand: Demand, liked: IntArray | None) -> None:
        self._table = table
        self._demand = demand
        self._disliked = liked.max() - liked if liked is not None and len(liked) else None

    def rank(self, rows: slice) -> IntArray:
        """The rank of each of these nodes for one more task."""
        table, demand = self._table, self._demand
        load = np.maximum(
            _fraction(table.total_shares[rows], table.free_shares[rows], demand.resources.shares),
            _fraction(table.total_memory[rows], table.free_memory[rows], demand.resources.memory),
        )
        crowd = table.tasks_of_service(demand.service_id)[rows]
        if self._disliked is not None:
            crowd = crowd + self._disliked[rows]
        ranked: IntArray = (
            (crowd << (_LOAD_BITS + _TASK_BITS)) + (load << _TASK_BITS) + table.tasks[rows]
        )
        return ranked


def _fraction(total: IntArray, free: IntArray, wanted: int) -> IntArray:
    """The part of a resource in use once `wanted` more is taken, in units of 2^-20, at most 2."""
    used = (total - free + wanted) / np.maximum(total, 1)
    return (np.minimum(used, 2.0) * _LOAD_UNIT).astype(np.int64)
