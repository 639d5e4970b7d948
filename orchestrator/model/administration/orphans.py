# SPDX-License-Identifier: Apache-2.0
"""Orphans: running containers that the store does not know, after a restore from a backup."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.model.extensible import Extensible
from orchestrator.model.tasks import Task


@dataclass(frozen=True, slots=True)
class Orphan(Extensible):
    """A container that a node runs and that the restored store does not know, as the node reports
    it. It becomes a task when a user adopts it."""

    id: str = ""
    """Of its task."""
    node_id: str = ""
    task: Task = field(default_factory=Task)
    """As the node was assigned it, with its present status."""
    found_at: float = 0.0
    """When the node first reported it, in seconds since the epoch."""
    removing: bool = False
    """Whether a user has it removed."""
    revision: int = 0

    @property
    def name(self) -> str:
        """Its displayed name, such as `web.3`."""
        return self.task.name
