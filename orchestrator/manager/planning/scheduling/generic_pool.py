# SPDX-License-Identifier: Apache-2.0
"""Generic resources of nodes: how many are free, and which ones a task gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from orchestrator.manager.planning.node_load import occupies
from orchestrator.manager.planning.scheduling.capacity import BoolArray, IntArray, fits
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.formats.generic_resources import find_names, supply_names, supply_size
from orchestrator.model.nodes import Node
from orchestrator.model.placement import GenericResource
from orchestrator.model.tasks import Task


class GenericPool:
    """The free resources of each node, by kind; `take` keeps it current during a pass."""

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
        """How many are free on each node."""
        if kind not in self._free:
            left = [free_on_node(self._view, node, kind) for node in self._nodes]
            self._names[kind] = [list(names) for names, _ in left]
            self._free[kind] = np.array([count for _, count in left], dtype=np.int64)
        return self._free[kind]

    def possible(self, wanted: GenericResource) -> BoolArray:
        """Which nodes have it, free or not."""
        enough = fits(self.total(wanted.kind), wanted.count)
        if not wanted.names:
            return enough
        return np.array(
            [
                find_names(wanted.names, _names_of(node, wanted.kind)) is not None
                for node in self._nodes
            ],
            dtype=np.bool_,
        )

    def available(self, wanted: GenericResource) -> BoolArray:
        """Which nodes have it free."""
        enough = fits(self.free(wanted.kind), wanted.count)
        if wanted.every:
            enough &= self.free(wanted.kind) == self.total(wanted.kind)
        if wanted.names:
            rows = range(len(self._nodes))
            enough &= np.array([self._chosen(row, wanted) is not None for row in rows], np.bool_)
        return enough

    def has(self, row: int, wanted: Iterable[GenericResource]) -> bool:
        """Whether a node has all that free."""
        return all(bool(self.available(each)[row]) for each in wanted)

    def take(self, row: int, wanted: Iterable[GenericResource]) -> dict[str, str]:
        """Give a task what it wants of a node that has it: by kind, the names, or the number."""
        given = {}
        for each in wanted:
            count = int(self.free(each.kind)[row]) if each.every else each.count
            names = self._names[each.kind][row]
            chosen = self._chosen(row, each) if each.names else tuple(names[:count])
            assert chosen is not None  # the node has it
            self.free(each.kind)[row] -= count
            names[:] = [name for name in names if name not in chosen]
            given[each.kind] = ",".join(chosen) or str(count)
        return given

    def hold(self, row: int, wanted: GenericResource) -> None:
        """Keep as many for a task that is not placed yet; what is free may become negative."""
        total = int(self.total(wanted.kind)[row])
        self.free(wanted.kind)[row] -= total if wanted.every else wanted.count

    def give_back(self, row: int, given: Mapping[str, str]) -> None:
        """Undo `take`."""
        for kind, text in given.items():
            self.free(kind)[row] += supply_size(text)
            names = self._names[kind][row]
            order = _names_of(self._nodes[row], kind)
            names[:] = sorted({*names, *supply_names(text)}, key=order.index)

    def release(self, row: int, wanted: GenericResource) -> None:
        """Count as many as free again; which names these are is not known."""
        total = int(self.total(wanted.kind)[row])
        self.free(wanted.kind)[row] += total if wanted.every else wanted.count

    def _chosen(self, row: int, wanted: GenericResource) -> tuple[str, ...] | None:
        """The free names that a task means which names them; None if any is not free. What a word
        means does not depend on what is free."""
        found = find_names(wanted.names, _names_of(self._nodes[row], wanted.kind))
        self.free(wanted.kind)
        free = self._names[wanted.kind][row]
        return found if found is not None and set(found) <= set(free) else None


def _names_of(node: Node, kind: str) -> tuple[str, ...]:
    return supply_names(node.description.generic_resources.get(kind, ""))


def free_on_node(view: ClusterView, node: Node, kind: str) -> tuple[tuple[str, ...], int]:
    """The free names of a kind on the node, in the node's order (none if it has only a number), and
    how many are free; negative if the node now has fewer than its tasks were given."""
    has = node.description.generic_resources.get(kind, "")
    held = [
        given_to_task(task, kind) for task in view.tasks_of_node(node.id).values() if occupies(task)
    ]
    if not (names := supply_names(has)):
        return (), supply_size(has) - sum(map(supply_size, held))
    taken = {name for text in held for name in supply_names(text)}
    names = tuple(name for name in names if name not in taken)
    # What was given as a number, before the node reported names, is some of these.
    unnamed = sum(supply_size(text) for text in held if not supply_names(text))
    names = names[: max(len(names) - unnamed, 0)]
    return names, len(names)


def given_to_task(task: Task, kind: str) -> str:
    """What the task has of a kind."""
    return task.generic_resources.get(kind, "")
