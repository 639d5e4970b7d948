# SPDX-License-Identifier: Apache-2.0
"""`orc orphan`, and orphans in `orc ps` and `orc node ps`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from click.testing import Result
from scripted_manager import Refusal

from orchestrator.model.administration.orphans import Orphan
from orchestrator.model.convert import to_proto
from orchestrator.model.nodes import Node, NodeDescription
from orchestrator.model.specs import ContainerSpec, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.pb import containers_pb2 as pb
from orchestrator.pb import control_pb2

Run = Callable[..., Result]
NODE = Node(id="n1", description=NodeDescription(hostname="host1"))


def task(slot: int, service: str = "web") -> Task:
    return Task(
        id=f"{service}{slot}aaaaaaaa",
        service_name=service,
        slot=slot,
        node_id="n1",
        spec=TaskSpec(container=ContainerSpec(image="web:1")),
        status=TaskStatus(TaskState.RUNNING, started_at=1.0),
    )


def listed(manager: Any, *slots: int) -> None:
    orphans = [Orphan(id=task(slot).id, node_id="n1", task=task(slot)) for slot in slots]
    manager.script.answers["ListOrphans"] = pb.ListOrphansReply(
        orphans=map(to_proto, orphans), hostnames={"n1": "host1"}
    )


def test_orphans_are_listed_with_their_nodes(manager: Any, run: Run) -> None:
    listed(manager, 1, 2)
    rows = json.loads(run("orphan", "ls", "--format", "json").stdout)
    promised = {"id": task(1).id, "name": "web.1", "service": "web", "node": "host1"}
    assert rows[0].items() >= promised.items()
    assert run("orphan", "ls", "-q", "--filter", "name=web.2").stdout == f"{task(2).id}\n"
    assert run("orphan", "ls").stdout.splitlines()[1].split()[:4] == [
        task(1).id[:12], "web.1", "web:1", "host1",
    ]  # fmt: skip


def test_all_are_adopted_although_one_is_refused(manager: Any, run: Run) -> None:
    listed(manager, 3, 1)

    def answer(request: Any) -> Any:
        if request.orphan == task(1).id:
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "another spec")
        return to_proto(task(3))

    manager.script.answers["AdoptOrphan"] = answer
    result = run("orphan", "adopt", "--all")
    assert (result.exit_code, result.stderr) == (1, "orc: another spec\n")
    assert result.stdout == "web.3 is a task of service web\n"
    asked = [request.orphan for name, request in manager.script.requests if name == "AdoptOrphan"]
    assert asked == [task(1).id, task(3).id]


def test_a_removal_waits_until_the_orphan_is_gone(manager: Any, run: Run) -> None:
    manager.script.answers["RemoveOrphan"] = to_proto(Orphan(id="x1", task=task(1)))
    left = [[Orphan(id="x1", task=task(1), removing=True)], []]
    manager.script.answers["ListOrphans"] = lambda request: pb.ListOrphansReply(
        orphans=map(to_proto, left.pop(0))
    )
    assert run("orphan", "rm", "web.1").stdout == "web.1\n"
    assert left == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("adopt",), "give either ORPHAN or --all"),
        (("rm", "--all", "web.1"), "give either ORPHAN or --all"),
        (("adopt", "--name", "x", "web.1", "web.2"), "exactly one ORPHAN"),
    ],
)
def test_it_is_clear_which_are_meant(
    words: tuple[str, ...], said: str, manager: Any, refused: Callable[..., str]
) -> None:
    assert said in refused("orphan", *words, status=2)


def test_listings_of_containers_mark_them(manager: Any, run: Run) -> None:
    def row(found: Task) -> Any:
        return pb.ContainerRow(task=to_proto(found), node=to_proto(NODE))

    manager.script.answers["ListContainers"] = pb.ListContainersReply(
        containers=[row(task(1))], orphans=[row(task(2))]
    )
    states = {row["name"]: row["state"] for row in json.loads(run("ps", "--format", "json").stdout)}
    assert states == {"web.1": "running", "web.2": "orphan"}
    assert run("ps", "-q", "--filter", "status=orphan").stdout.strip() in task(2).id
    assert "Orphan, Up" in run("ps").stdout
    manager.script.answers["ListTasks"] = control_pb2.ListTasksReply(
        tasks=[to_proto(task(1))],
        orphans=[to_proto(Orphan(id=task(2).id, node_id="n1", task=task(2)))],
    )
    rows = json.loads(run("node", "ps", "host1", "--format", "json").stdout)
    assert [(row["state"], row["desired_state"]) for row in rows] == [
        ("running", "running"),
        ("orphan", ""),
    ]
