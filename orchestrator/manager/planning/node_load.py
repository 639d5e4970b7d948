# SPDX-License-Identifier: Apache-2.0
"""What the tasks of a node take from it, kept current with each change of a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from orchestrator.model.specs import Protocol, PublishMode
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.tasks import Task

Port = tuple[int, Protocol]

K = TypeVar("K")


def occupies(task: Task) -> bool:
    """Whether the task takes room on its node.

    From its assignment until it has ended: also while it is being stopped, since the kernel has
    not given anything back yet.
    """
    return task.status.state >= TaskState.ASSIGNED and not is_terminal(task.status.state)


def published(task: Task) -> tuple[Port, ...]:
    """The ports that the task takes on its node, and another task could take there too."""
    if not task.spec.ports:
        return ()
    return tuple(
        (port.published, port.protocol)
        for port in task.spec.ports
        if port.published and port.mode is PublishMode.HOST
    )


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """The sum over the tasks that occupy a node."""

    shares: int = 0
    memory: int = 0
    """Bytes."""
    tasks: int = 0
    ports: Mapping[Port, int] = field(default_factory=dict)
    """Published port → the tasks that have it: more than one while one replaces the other."""
    networks: Mapping[str, int] = field(default_factory=dict)
    """Network name → the tasks attached to it."""

    def changed(self, task: Task, count: int) -> NodeLoad:
        """The load with the task (`count` is 1) or without it (-1)."""
        counted = task.spec.counted
        ports, networks = published(task), task.spec.network_names
        return NodeLoad(
            self.shares + count * counted.shares,
            self.memory + count * counted.memory,
            self.tasks + count,
            _counted(self.ports, ports, count) if ports else self.ports,
            _counted(self.networks, networks, count) if networks else self.networks,
        )


NO_LOAD = NodeLoad()


def same_load(before: Task, after: Task) -> bool:
    """Whether two states of a task take the same from the same node."""
    return (
        before.node_id == after.node_id
        and (before.spec is after.spec or before.spec == after.spec)
        and occupies(before) == occupies(after)
    )


def _counted(counts: Mapping[K, int], keys: tuple[K, ...], count: int) -> Mapping[K, int]:
    found = dict(counts)
    for key in keys:
        if left := found.get(key, 0) + count:
            found[key] = left
        else:
            found.pop(key, None)
    return found
