# SPDX-License-Identifier: Apache-2.0
"""A node's volumes in a folder of a test, with no plugins but those that it names."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from orchestrator.agent.images.image_spec import ImageConfig, LocalImage
from orchestrator.agent.volumes.mount_plan import Holder
from orchestrator.agent.volumes.plugin_driver import VolumePlugins
from orchestrator.agent.volumes.volume_store import VolumeStore
from orchestrator.linux.mounts import unshare_mounts
from orchestrator.model.mounts import MountSpec
from orchestrator.model.nodes import Node, NodeDescription
from orchestrator.model.specs import ContainerSpec, TaskSpec
from orchestrator.model.tasks import Task

NODE = Node(id="n1", description=NodeDescription(hostname="host1"))


def volume_store(
    folder: Path, sockets: Sequence[Path] = (), specs: Sequence[Path] = ()
) -> VolumeStore:
    """A store as an agent makes it at its start."""
    return VolumeStore(folder, lambda: NODE, VolumePlugins(sockets, specs))


def holder(
    task_id: str,
    *mounts: MountSpec,
    layers: Sequence[Path] = (),
    image_volumes: tuple[str, ...] = (),
    others: Sequence[tuple[Holder, bool]] = (),
) -> Holder:
    """A task with these mounts, of an image with these layers (unless given, one
    with nothing at the mounts' places)."""
    spec = TaskSpec(container=ContainerSpec(image="hello:1", mounts=mounts))
    task = Task(id=task_id, service_id="s1", service_name="web", slot=2, spec=spec)
    image = LocalImage(
        "sha256:0", tuple(layers) or (Path(__file__).parent,), ImageConfig(volumes=image_volumes)
    )
    return Holder(task, image, tuple(others))


def private(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test in a thread with a mount namespace of its own: no mount outlives it."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def body() -> None:
            async with asyncio.timeout(60):
                await test(*args, **kwargs)

        with ThreadPoolExecutor(1, initializer=unshare_mounts) as thread:
            thread.submit(asyncio.run, body()).result()

    return run
