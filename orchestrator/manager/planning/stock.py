"""The generic resources of nodes: what is free, and which ones a task is given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from orchestrator.manager.planning.resources import IntArray, occupies
from orchestrator.manager.planning.views import ClusterView
from orchestrator.model.generic import supply_names, supply_size
from orchestrator.model.nodes import Node
from orchestrator.model.placement import GenericResource
from orchestrator.model.tasks import Task


class Stock:
    """What each node has free of each kind; `take` keeps it true while a pass goes on."""

    def __init__(self, view: ClusterView, nodes: Sequence[Node]) -> None:
        self._view = view
        self._nodes = nodes
        self._names: dict[str, list[list[str]]] = {}
        """Of those with names, by kind and row."""
        self._free: dict[str, IntArray] = {}

    def total(self, kind: str) -> IntArray:
        """How many each node has."""
        return np.array(
            [supply_size(node.description.generic_resources.get(kind, "")) for node in self._nodes],
            dtype=np.int64,
        )

    def free(self, kind: str) -> IntArray:
        """How many of each node nobody has."""
        if kind not in self._free:
            left = [free_of(self._view, node, kind) for node in self._nodes]
            self._names[kind] = [list(names) for names, _ in left]
            self._free[kind] = np.array([count for _, count in left], dtype=np.int64)
        return self._free[kind]

    def has(self, row: int, wanted: Iterable[GenericResource]) -> bool:
        """Whether a node has all that free."""
        return all(self.free(each.kind)[row] >= each.count for each in wanted)

    def take(self, row: int, wanted: Iterable[GenericResource]) -> dict[str, str]:
        """Give a task what it wants of a node that has it: by kind, the names, or the number."""
        given = {}
        for each in wanted:
            self.free(each.kind)[row] -= each.count
            names = self._names[each.kind][row]
            chosen, names[:] = names[: each.count], names[each.count :]
            given[each.kind] = ",".join(chosen) or str(each.count)
        return given


def free_of(view: ClusterView, node: Node, kind: str) -> tuple[tuple[str, ...], int]:
    """The names of a kind that nobody has on the node, in the node's order (none where it has but
    a number), and how many are free; less than none if the node has fewer than it once had."""
    has = node.description.generic_resources.get(kind, "")
    held = [given_of(task, kind) for task in view.tasks_of_node(node.id).values() if occupies(task)]
    if not (names := supply_names(has)):
        return (), supply_size(has) - sum(map(supply_size, held))
    taken = {name for text in held for name in supply_names(text)}
    names = tuple(name for name in names if name not in taken)
    # What was given as a mere number, before the node told names, is some of these.
    unnamed = sum(supply_size(text) for text in held if not supply_names(text))
    names = names[: max(len(names) - unnamed, 0)]
    return names, len(names)


def given_of(task: Task, kind: str) -> str:
    """What the task has of a kind."""
    return task.generic_resources.get(kind, "")
