# SPDX-License-Identifier: Apache-2.0
"""The mounts of a container: its own, those of `volumes_from`, and its image's volumes. Pure."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.agent.images.image_spec import LocalImage
from orchestrator.model.formats.task_templates import node_fields, task_fields
from orchestrator.model.mounts import MountSpec, MountType, expand
from orchestrator.model.nodes import Node
from orchestrator.model.tasks import Task


@dataclass(frozen=True, slots=True)
class Wanted:
    """One mount, with the name of its volume."""

    spec: MountSpec
    """`source` is the volume's name, also of an anonymous volume."""
    owner: str = ""
    """The task that an anonymous volume belongs to; empty for a named one."""
    layers: tuple[Path, ...] = ()
    """The image layers that a new volume is filled from, lowest first."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A container, as far as its mounts are concerned."""

    task: Task
    image: LocalImage
    holders: tuple[tuple[Holder, bool], ...] = ()
    """The containers whose mounts it has as well, and whether read-only."""


def anonymous_name(task_id: str, target: str) -> str:
    """The name of an anonymous volume: the same each time the container is created."""
    return hashlib.sha256(f"{task_id}:{posixpath.normpath(target)}".encode()).hexdigest()


def wanted_mounts(holder: Holder, node: Node) -> list[Wanted]:
    """All mounts, one per target: the container's own first, then those of `volumes_from` (the last
    one wins, as in Docker), then the image's volumes."""
    found: dict[str, Wanted] = {}
    for target in holder.image.config.volumes:
        _put(found, _anonymous(holder, MountSpec(target=target)))
    for other, read_only in holder.holders:
        for mount in wanted_mounts(other, node):
            spec = replace(mount.spec, read_only=True) if read_only else mount.spec
            _put(found, replace(mount, spec=spec))
    fields = task_fields(holder.task) | node_fields(node)
    for spec in holder.task.spec.container.mounts:
        if spec.type is not MountType.VOLUME:
            _put(found, Wanted(spec))
        elif spec.source:
            named = replace(spec, source=expand(spec.source, fields))
            _put(found, Wanted(named, layers=holder.image.layers))
        else:
            _put(found, _anonymous(holder, spec))
    return list(found.values())


def volume_names(mounts: Iterable[Wanted]) -> Sequence[str]:
    """The names of the volumes among them, sorted."""
    return sorted({m.spec.source for m in mounts if m.spec.type is MountType.VOLUME})


def _anonymous(holder: Holder, spec: MountSpec) -> Wanted:
    named = replace(spec, source=anonymous_name(holder.task.id, spec.target))
    return Wanted(named, holder.task.id, holder.image.layers)


def _put(found: dict[str, Wanted], mount: Wanted) -> None:
    found[posixpath.normpath(mount.spec.target)] = mount
