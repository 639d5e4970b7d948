# SPDX-License-Identifier: Apache-2.0
"""Disk usage of this node: containers' writable layers, images, the build cache."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from orchestrator.agent.builds.builder import Builder
from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.images.store import ImageStore
from orchestrator.agent.tasks.runner import TaskRunner
from orchestrator.linux.trees import tree_usage
from orchestrator.pb import dispatch_pb2, system_pb2


class Roots(Protocol):
    """Paths of containers' writable layers (`runtime.engine.crun.CrunRuntime`)."""

    def upper(self, container_id: str) -> Path: ...


class DiskUsage:
    """Measures disk usage. Blobs and layers never change, so each is measured once."""

    def __init__(
        self,
        *,
        store: ImageStore,
        builder: Builder,
        runners: Mapping[str, TaskRunner],
        roots: Roots,
        data: Path,
    ) -> None:
        """`data` is a folder on the file system of all of these."""
        self._store = store
        self._builder = builder
        self._runners = runners
        self._roots = roots
        self._data = data
        self._sizes: dict[Path, int] = {}

    async def serve(
        self, call: Any, order: dispatch_pb2.OpenTunnel, readers: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        """Measure the disk usage (a handler of `tunnels.Tunnels`)."""
        images = {image.id: self._parts(image.id) for image in self._store.inventory()}
        usage = await asyncio.to_thread(
            self._count, images, self._containers(), order.disk_usage.containers_only
        )
        return dispatch_pb2.TunnelResult(disk_usage=usage)

    def _parts(self, digest: str) -> tuple[Path, ...]:
        try:
            return self._store.parts(digest)
        except ImageError:
            return ()  # removed meanwhile

    def _containers(self) -> dict[str, str]:
        """Container → digest of its image, empty if this node lacks it."""
        found = {}
        for runner in list(self._runners.values()):
            task = runner.task
            image = task.image_digest or task.spec.container.image
            found[task.id] = (self._store.resolve(image) or "") if image else ""
        return found

    def _count(
        self, images: Mapping[str, tuple[Path, ...]], containers: Mapping[str, str], brief: bool
    ) -> system_pb2.NodeDiskUsage:
        room = os.statvfs(self._data)
        usage = system_pb2.NodeDiskUsage(
            total=room.f_blocks * room.f_frsize, free=room.f_bavail * room.f_frsize
        )
        for task_id, digest in sorted(containers.items()):
            layers = (part for part in images.get(digest, ()) if part.is_dir())
            usage.containers.add(
                task_id=task_id,
                size=tree_usage(self._roots.upper(task_id)),
                image_size=sum(map(self._size, layers)),
            )
        if brief:
            return usage
        shared = Counter(part for parts in images.values() for part in parts)
        for digest, parts in sorted(images.items()):
            usage.images.add(
                id=digest,
                size=sum(map(self._size, parts)),
                unique=sum(self._size(part) for part in parts if shared[part] == 1),
            )
        usage.images_size = sum(map(self._size, shared))
        usage.builds = self._builder.usage()
        self._sizes = {part: size for part, size in self._sizes.items() if part in shared}
        return usage

    def _size(self, part: Path) -> int:
        if part not in self._sizes:
            try:
                self._sizes[part] = (
                    tree_usage(part) if part.is_dir() else part.stat().st_blocks * 512
                )
            except OSError:
                return 0  # removed meanwhile
        return self._sizes[part]
