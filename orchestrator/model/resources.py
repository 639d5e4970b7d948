"""Amounts of CPU, memory and tasks: what units and nodes need of the model, without all specs."""

from __future__ import annotations

from dataclasses import dataclass

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
