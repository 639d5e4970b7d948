# SPDX-License-Identifier: Apache-2.0
"""Placement: amounts of resources, scheduling strategies, policies for disconnected nodes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from orchestrator.model.extensible import Extensible

SHARES_PER_CORE = 1024
"""CPU weight of one core, as in cgroup v1's `cpu.shares`."""

MAX_REPLICAS = 100_000
"""Maximum number of tasks of one service."""


@dataclass(frozen=True, slots=True)
class Resources(Extensible):
    """An amount of CPU (shares) and memory (bytes); 0: not set."""

    shares: int = 0
    memory: int = 0


class Strategy(IntEnum):
    """How the scheduler chooses among the nodes that can take a task."""

    DEFAULT = 0
    """Of a service: the cluster's strategy; of the cluster: SPREAD."""
    SPREAD = 1
    """The node with the fewest tasks of the service, then the least load."""
    BINPACK = 2
    """The fullest node, so that others stay empty."""


@dataclass(frozen=True, slots=True)
class GenericResource(Extensible):
    """A number of generic resources of one kind (`model.formats.generic_resources`)."""

    kind: str = ""
    count: int = 0
    names: tuple[str, ...] = ()
    """These names, as many as `count`; empty: any."""
    every: bool = False
    """All of the node's, at least `count`."""

    def __str__(self) -> str:
        if self.names:
            return f"{self.kind}=device={','.join(self.names)}"
        return f"{self.kind}={'all' if self.every else self.count}"


class DisconnectAction(IntEnum):
    """What to do with tasks whose node is down."""

    REPLACE = 0
    """Reschedule them; if the node comes back, it stops them."""
    KEEP = 1
    """Keep them for when the node comes back."""
    STOP = 2
    """Their node stops them by itself; then they are rescheduled: never two at a time."""


@dataclass(frozen=True, slots=True)
class Disconnect(Extensible):
    """What to do with tasks whose node is down, and when."""

    action: DisconnectAction = DisconnectAction.REPLACE
    after: float = 0.0
    """Seconds for which the node has been down, or disconnected from managers."""


KEPT = "kept on "
"""Prefix of the message of a task that waits for its node, which is down."""
