# SPDX-License-Identifier: Apache-2.0
"""The volumes of a task: its own, and those of other containers on this node."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

from orchestrator.agent.images.image_spec import LocalImage
from orchestrator.agent.plugins.plugin_client import OnWait
from orchestrator.agent.runtime.interface import Mount
from orchestrator.agent.volumes.mount_plan import Holder
from orchestrator.agent.volumes.volume_errors import VolumeError
from orchestrator.agent.volumes.volume_store import VolumeStore
from orchestrator.model.objects import Volume
from orchestrator.model.tasks import Task
from orchestrator.model.validation.mount_specs import split_volumes_from


class Neighbour(Protocol):
    """The attributes of `tasks.runner.TaskRunner` that are used here."""

    @property
    def task(self) -> Task: ...

    @property
    def volumes(self) -> Mapping[str, Volume]: ...


class ImageSource(Protocol):
    """The methods of `images.pulls.ImagePuller` that are used here."""

    async def prepare(self, name: str, digest: str, sources: Sequence[str]) -> LocalImage: ...


class TaskVolumes:
    """Mounts volumes for the tasks of this node."""

    def __init__(
        self,
        store: VolumeStore,
        images: ImageSource,
        neighbours: Callable[[], Iterable[Neighbour]],
    ) -> None:
        self._store = store
        self._images = images
        self._neighbours = neighbours

    async def attach(
        self, task: Task, volumes: Mapping[str, Volume], image: LocalImage, on_wait: OnWait
    ) -> tuple[Mount, ...]:
        """Mount the volumes of a task; `volumes` are the cluster's objects of named ones, `on_wait`
        gets the plugin that it waits for.

        Safe to cancel at any point, and to repeat. Raises VolumeError, ImageError.
        """
        declared = dict(volumes)
        holder = await self._holder(task, image, declared, frozenset())
        return await self._store.attach(holder, declared, on_wait)

    async def detach(self, task: Task) -> None:
        """Release the volumes of a task, if it has any. Anonymous volumes are removed with a task
        of a service, and with a container that is removed with its volumes. Raises VolumeError."""
        await self._store.detach(task.id, drop=not task.standalone or task.auto_remove)

    async def retain(self, task_ids: Collection[str]) -> None:
        """Release the volumes of all other tasks. Raises VolumeError."""
        await self._store.retain(task_ids)

    async def _holder(
        self, task: Task, image: LocalImage, declared: dict[str, Volume], above: frozenset[str]
    ) -> Holder:
        others: list[tuple[Holder, bool]] = []
        for text in task.spec.container.volumes_from:
            name, read_only = split_volumes_from(text)
            other = self._find(name)
            if other.task.id in above or other.task.id == task.id:
                continue
            for volume in other.volumes.values():
                declared.setdefault(volume.name, volume)
            spec = other.task.spec.container
            its_image = await self._images.prepare(spec.image, other.task.image_digest, ())
            holder = await self._holder(other.task, its_image, declared, above | {task.id})
            others.append((holder, read_only))
        return Holder(task, image, tuple(others))

    def _find(self, word: str) -> Neighbour:
        """The newest task with this name, id or prefix of an id."""
        known = list(self._neighbours())
        found = [each for each in known if word in (each.task.id, each.task.name)]
        found = found or [each for each in known if each.task.id.startswith(word)]
        if not found:
            raise VolumeError(f"no container {word} on this node, whose volumes it mounts")
        return max(found, key=lambda each: each.task.created_at)
