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
    """An amount of CPU (shares) and memory (bytes); 0 is "not said"."""

    shares: int = 0
    memory: int = 0


class Strategy(IntEnum):
    """Which of the nodes that can take a task gets it."""

    DEFAULT = 0
    """Of a service: as the cluster has it; of the cluster: SPREAD."""
    SPREAD = 1
    """One with few tasks of the service, and little load."""
    BINPACK = 2
    """The fullest, so that others stay empty."""


@dataclass(frozen=True, slots=True)
class GenericResource(Extensible):
    """So many of a kind of things that nodes have a few of (`model.generic`)."""

    kind: str = ""
    count: int = 0
    names: tuple[str, ...] = ()
    """Just these, as many as `count`; empty: any."""
    every: bool = False
    """All that the node has, at least `count`."""

    def __str__(self) -> str:
        if self.names:
            return f"{self.kind}=device={','.join(self.names)}"
        return f"{self.kind}={'all' if self.every else self.count}"


class DisconnectAction(IntEnum):
    """What becomes of tasks whose node is down."""

    REPLACE = 0
    """Others take their place; if the node comes back, they stop."""
    KEEP = 1
    """They wait for their node."""
    STOP = 2
    """Their node stops them by itself, and then others take their place: never two at a time."""


@dataclass(frozen=True, slots=True)
class Disconnect(Extensible):
    """What becomes of tasks whose node is down, and when."""

    action: DisconnectAction = DisconnectAction.REPLACE
    after: float = 0.0
    """Seconds that the node has been down, or has had no manager."""


KEPT = "kept on "
"""Begins the message of a task that waits for its node, which is down."""
