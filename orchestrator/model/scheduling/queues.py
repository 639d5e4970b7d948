# SPDX-License-Identifier: Apache-2.0
"""Queues of jobs: weights and quotas by which jobs share the cluster."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestrator.model.extensible import Extensible
from orchestrator.model.names import check_name
from orchestrator.model.placement import Resources

MAX_WEIGHT = 1000

MAX_QUEUES = 100
"""Maximum number of queues of a cluster."""


@dataclass(frozen=True, slots=True)
class Queue(Extensible):
    """A queue of jobs."""

    name: str = ""
    weight: int = 1
    """Its part of the cluster, relative to other queues."""
    quota: Resources = field(default_factory=Resources)
    """The most that its tasks may reserve; 0: no limit."""


def queue_named(queues: Iterable[Queue], name: str) -> Queue | None:
    """The queue of this name; None if there is none."""
    return next((each for each in queues if each.name == name), None)


def check_queue(queue: Queue) -> None:
    """Raise ValueError for an invalid queue."""
    check_name(queue.name, "queue name")
    if not 1 <= queue.weight <= MAX_WEIGHT:
        raise ValueError(f"weight {queue.weight} is not from 1 to {MAX_WEIGHT}")
    if queue.quota.shares < 0 or queue.quota.memory < 0:
        raise ValueError("a quota is not negative; 0 is no limit")
