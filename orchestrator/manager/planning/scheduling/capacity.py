# SPDX-License-Identifier: Apache-2.0
"""Capacity: what tasks take from their node. The rule of "does it fit" exists once, here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from orchestrator.manager.planning.node_load import NO_LOAD, occupies
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.specs import Resources
from orchestrator.model.tasks import Task

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@overload
def fits(free: int, wanted: int) -> bool: ...
@overload
def fits(free: IntArray, wanted: int) -> BoolArray: ...
def fits(free: int | IntArray, wanted: int) -> bool | BoolArray:
    """Whether `wanted` of one resource (shares or bytes) fits into what is free: of one node, or
    of each node of an array."""
    return free >= wanted


def reserved(tasks: Iterable[Task]) -> Resources:
    """What these tasks take from their node: the sum over those that occupy it."""
    shares = memory = 0
    for task in tasks:
        if occupies(task):
            counted = task.spec.counted
            shares += counted.shares
            memory += counted.memory
    return Resources(shares, memory)


@dataclass(frozen=True, slots=True)
class NodeUsage:
    """What a node's tasks take from it: the sum of what the scheduler counts, and their number."""

    reserved: Resources
    tasks: int


def node_usage(view: ClusterView, node_id: str) -> NodeUsage:
    """What the tasks of the node take that have not ended."""
    load = view.loads.get(node_id, NO_LOAD)
    return NodeUsage(Resources(load.shares, load.memory), load.tasks)
