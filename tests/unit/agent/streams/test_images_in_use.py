# SPDX-License-Identifier: Apache-2.0
"""Which images a node keeps for its containers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from orchestrator.agent.images.store import ImageStore
from orchestrator.agent.streams.image_requests import ImageRequests
from orchestrator.model.specs import ContainerSpec, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus


async def test_a_container_on_the_hosts_files_needs_no_image(tmp_path: Path) -> None:
    """A task without an image name causes no error."""
    spec = TaskSpec(container=ContainerSpec(rootfs="host", command=("true",)))
    runner = SimpleNamespace(
        task=Task(id="t1", spec=spec),
        status=TaskStatus(state=TaskState.RUNNING),
        may_hold_resources=True,
    )
    async with ImageStore(tmp_path / "images") as store:
        orders = ImageRequests(
            store=store,
            images=cast(Any, None),
            registry=cast(Any, None),
            runners={"t1": cast(Any, runner)},
            scratch=tmp_path / "scratch",
        )
        assert orders.needed() == frozenset()
