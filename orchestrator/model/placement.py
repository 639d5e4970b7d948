"""Choices about where tasks are, and what becomes of them when nodes go."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Strategy(IntEnum):
    """Which of the nodes that can take a task gets it."""

    DEFAULT = 0
    """Of a service: as the cluster has it; of the cluster: SPREAD."""
    SPREAD = 1
    """One with few tasks of the service, and little load."""
    BINPACK = 2
    """The fullest, so that others stay empty."""


@dataclass(frozen=True, slots=True)
class GenericResource:
    """So many of a kind of things that nodes have a few of (`model.generic`)."""

    kind: str = ""
    count: int = 0

    def __str__(self) -> str:
        return f"{self.kind}={self.count}"
