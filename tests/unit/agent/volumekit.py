"""A node's volumes in a folder of a test, with no plugins but those that it names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.agent.volumes.plugins import Plugins
from orchestrator.agent.volumes.store import VolumeStore
from orchestrator.model.objects import Node, NodeDescription

NODE = Node(id="n1", description=NodeDescription(hostname="host1"))


def volume_store(
    folder: Path, sockets: Sequence[Path] = (), specs: Sequence[Path] = ()
) -> VolumeStore:
    """A store as an agent makes it at its start."""
    return VolumeStore(folder, lambda: NODE, Plugins(sockets, specs))
