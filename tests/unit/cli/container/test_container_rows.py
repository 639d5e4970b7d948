# SPDX-License-Identifier: Apache-2.0
"""Docker's words for what a container does, and its filters: tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click
import pytest
from click.testing import CliRunner

from orchestrator.cli.container.container_rows import container_row, container_state, matches
from orchestrator.cli.container.container_spec import container_options, container_request
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.nodes import Node, NodeDescription, NodeState
from orchestrator.model.specs import ContainerSpec, PortSpec, RestartCondition, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.pb import containers_pb2

S = TaskState


def box(status: TaskStatus, desired: TaskState = S.RUNNING, **fields: Any) -> Task:
    spec = TaskSpec(
        container=ContainerSpec(image="hello:1", command=("sleep", "9"), labels={"tier": "db"}),
        ports=(PortSpec(8080, 80),),
    )
    run = fields.pop("run", status.run)
    return Task(
        id="c123456789abc", container_name="box", node_id="n1", spec=spec, run=run, status=status,
        desired_state=desired, **fields,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("task", "state"),
    [
        (box(TaskStatus(S.PENDING, run=1)), "pending"),
        (box(TaskStatus(S.PENDING, run=2), restarts=1, not_before=9.0), "restarting"),
        (box(TaskStatus(S.PREPARING, run=1)), "starting"),
        (box(TaskStatus(S.READY, run=1), S.READY), "created"),
        (box(TaskStatus(S.RUNNING, run=1)), "running"),
        (box(TaskStatus(S.RUNNING, run=1, paused=True)), "paused"),
        (box(TaskStatus(S.COMPLETE, run=1, started_at=1.0)), "exited"),
        (box(TaskStatus(S.FAILED, run=1, exit_code=127)), "exited"),
        (box(TaskStatus(S.REJECTED, run=1)), "failed"),
        (box(TaskStatus(S.ORPHANED, run=1, started_at=1.0)), "failed"),
        (box(TaskStatus(S.COMPLETE, run=1), run=2), "restarting"),
        (box(TaskStatus(S.COMPLETE, run=1), S.REMOVE), "removing"),
    ],
)
def test_states(task: Task, state: str) -> None:
    assert container_state(task) == state


def row(down: bool = False, **fields: Any) -> dict[str, Any]:
    node = Node(
        id="n1",
        state=NodeState.DOWN if down else NodeState.READY,
        description=NodeDescription(hostname="node1", address="10.0.0.1"),
    )
    status = TaskStatus(S.FAILED, run=1, exit_code=3, started_at=10.0, finished_at=20.0)
    status = replace(status, **fields)
    message = containers_pb2.ContainerRow(task=to_proto(box(status)), node=to_proto(node))
    return container_row(message, 80.0)


def test_json_keys() -> None:
    found = row()
    wanted = {"id", "name", "image", "node", "state", "exit_code", "addresses", "ports"}
    assert wanted <= found.keys()
    assert (found["node"], found["exit_code"]) == ("node1", 3)
    assert found["ports"][0]["address"] == "10.0.0.1"
    assert found["_status"] == "Exited (3) about a minute ago"
    assert "node node1 is down" in row(down=True)["_status"]


def test_orphaned_container_has_no_exit_status() -> None:
    lost = row(state=S.ORPHANED, exit_code=0, finished_at=0.0, message="node node1 is down")
    assert lost["exit_code"] is None
    assert lost["_status"] == "Failed: node node1 is down"


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({"name": ["ox"]}, True),
        ({"name": ["fox"]}, False),
        ({"id": ["c123"]}, True),
        ({"status": ["running", "exited"]}, True),
        ({"exited": ["3"]}, True),
        ({"node": ["node1"]}, True),
        ({"ancestor": ["hello"]}, True),
        ({"ancestor": ["hello:2"]}, False),
        ({"label": ["tier=db"]}, True),
        ({"label": ["tier=web"]}, False),
        ({"publish": ["8080"]}, True),
        ({"publish": ["80"]}, False),
        ({"publish": ["8000-9000/tcp"]}, True),
        ({"expose": ["80/udp"]}, False),
        ({"network": ["default"]}, True),
        ({"volume": ["data"]}, False),
        ({"is-task": ["true"]}, False),
        ({"before": ["1.0"]}, True),
        ({"since": ["1.0"]}, False),
        ({"name": ["box"], "status": ["running"]}, False),
    ],
)
def test_filters(filters: dict[str, list[str]], kept: bool) -> None:
    assert matches(row(), filters) is kept


def request(*arguments: str) -> Any:
    made: list[Any] = []

    @click.command(context_settings={"allow_interspersed_args": False})
    @container_options
    def command(**values: Any) -> None:
        made.append(container_request(values, start=True))

    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    return made[0] if made else result.output


def test_the_flags_of_a_container() -> None:
    asked = request(
        "--name", "box", "--node", "node2", "--restart", "on-failure:3", "-it", "-e", "A=1",
        "-l", "tier=db", "-p", "8080:80", "--limit-memory", "64m", "hello:1", "sh", "-c", "exit 3",
    )  # fmt: skip
    spec: TaskSpec = from_proto(asked.spec)
    container = spec.container
    assert (asked.name, asked.node, asked.start) == ("box", "node2", True)
    assert spec.restart.condition is RestartCondition.ON_FAILURE
    assert spec.restart.max_attempts == 3
    assert (container.tty, container.open_stdin) == (True, True)
    assert container.command == ("sh", "-c", "exit 3")
    assert container.labels == {"tier": "db"}
    assert spec.ports == (PortSpec(8080, 80),)
    assert spec.limit.memory == 64 << 20


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--restart", "often", "hello:1"), "is not one of no, on-failure[:N]"),
        (("--restart", "always:3", "hello:1"), "is not one of no, on-failure[:N]"),
        (("--restart", "on-failure:x", "hello:1"), "no number of restarts"),
        (("--rm", "--restart", "always", "hello:1"), "mutually exclusive"),
    ],
)
def test_contradictory_flags(arguments: tuple[str, ...], words: str) -> None:
    assert words in request(*arguments)


def test_no_restart_is_the_default() -> None:
    spec: TaskSpec = from_proto(request("hello:1").spec)
    assert spec.restart.condition is RestartCondition.NONE
