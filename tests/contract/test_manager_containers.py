# SPDX-License-Identifier: Apache-2.0
"""Standalone containers over real gRPC."""

from __future__ import annotations

from pathlib import Path

from managerhost import manager_in

from orchestrator.model.convert import to_proto
from orchestrator.model.specs import ContainerSpec, TaskSpec
from orchestrator.pb import containers_pb2, containers_pb2_grpc


async def test_a_removed_container_is_shown_in_its_last_state(tmp_path: Path) -> None:
    """As one that fails at once and goes by itself, before its caller has come to watch it."""
    async with (
        manager_in(tmp_path / "manager") as running,
        running.channel(running.admin) as channel,
    ):
        containers = containers_pb2_grpc.ContainersStub(channel)
        spec = TaskSpec(container=ContainerSpec(rootfs="host", command=("true",)))
        made = await containers.CreateContainer(
            containers_pb2.CreateContainerRequest(name="brief", spec=to_proto(spec))
        )
        request = containers_pb2.ContainerRequest(container=made.id)
        watching = aiter(containers.WatchContainer(request))
        await anext(watching)
        await containers.RemoveContainer(
            containers_pb2.RemoveContainerRequest(container="brief", force=True)
        )
        *_, seen = [row async for row in watching]
        later = [row async for row in containers.WatchContainer(request)]
    assert [row.removed for row in later] == [True]
    assert later[0].task.container_name == "brief"
    assert later[0].task.status == seen.task.status
