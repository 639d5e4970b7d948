# SPDX-License-Identifier: Apache-2.0
"""Tasks whose container shares namespaces of another one on the node."""

from __future__ import annotations

from pathlib import Path

import pytest
from agentfakes import Host, assigned
from test_worker import agent

from orchestrator.model.specs import ContainerSpec, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.pb import dispatch_pb2


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def joining(pid: str, id: str = "t2", ipc: str = "") -> dispatch_pb2.AssignedTask:
    return assigned(id, spec=TaskSpec(ContainerSpec(image="hello:1", pid=pid, ipc=ipc)))


async def test_container_shares_namespaces_of_the_running_one(host: Host) -> None:
    async with agent(host) as a:
        a.full(assigned())
        await a.reaches(TaskState.RUNNING)
        a.diff(joining("container:t1"))
        await a.reaches(TaskState.RUNNING, "t2")
    assert host.runtime.made["t2"].beside == "t1"
    assert host.runtime.made["t1"].beside == ""


async def test_container_is_rejected_without_the_one_it_shares_with(host: Host) -> None:
    async with agent(host) as a:
        a.full(joining("container:t1"))
        await a.reaches(TaskState.REJECTED, "t2")
        assert a.reports.last("t2").message == (
            "container t1, whose namespaces it shares, is not running"
        )


async def test_the_nodes_processes_are_not_shared_through_another(host: Host) -> None:
    async with agent(host) as a:
        a.full(joining("host", "t1"))
        await a.reaches(TaskState.RUNNING)
        a.diff(joining("container:t1"))
        await a.reaches(TaskState.REJECTED, "t2")
        assert "use --pid host" in a.reports.last("t2").message


@pytest.mark.parametrize(
    ("ipc", "reason"),
    [
        ("shareable", ""),
        ("", "container t1 does not share its ipc namespace; run it with --ipc shareable"),
        ("host", "container t1 has the node's ipc namespace; use --ipc host"),
    ],
)
async def test_an_ipc_namespace_is_shared_on_request(host: Host, ipc: str, reason: str) -> None:
    async with agent(host) as a:
        a.full(joining("", "t1", ipc))
        await a.reaches(TaskState.RUNNING)
        a.diff(joining("", ipc="container:t1"))
        await a.reaches(TaskState.REJECTED if reason else TaskState.RUNNING, "t2")
        assert a.reports.last("t2").message == reason
