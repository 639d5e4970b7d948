# SPDX-License-Identifier: Apache-2.0
"""`orc capacity`, `why`, `rebalance` and `queue`: what is asked for, and what is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from click.testing import Result

from orchestrator.model.convert import to_proto
from orchestrator.model.nodes import Availability
from orchestrator.model.scheduling.queues import Queue
from orchestrator.model.specs import Resources
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.pb import control_pb2, jobs_pb2, scheduling_pb2

Run = Callable[..., Result]
Refused = Callable[..., str]
GIB = 1 << 30

CAPACITY = scheduling_pb2.CapacityReply(
    tasks=5,
    each={"shares": 512, "memory": GIB // 4},
    limit="no suitable node (1 node: insufficient shares; 1 node: drained)",
    nodes=[
        {
            "id": "n1",
            "hostname": "node1",
            "free": {"shares": 2560, "memory": 3 * GIB},
            "tasks": 5,
            "limit": "insufficient shares",
        },
        {
            "id": "n2",
            "hostname": "node2",
            "free": {"shares": 1024, "memory": GIB},
            "limit": "drained",
            "availability": int(Availability.DRAIN),
            "if_active": 2,
        },
    ],
    like="node1",
    per_node=8,
    service="web",
)


def test_capacity(manager: Any, run: Run) -> None:
    manager.script.answers["GetCapacity"] = CAPACITY
    lines = run("capacity", "--like", "web").stdout.splitlines()
    assert lines[:2] == [
        "5 more tasks of service web fit (0.5 cores, 256MiB each)",
        "Limit: no suitable node (1 node: insufficient shares; 1 node: drained)",
    ]
    assert [line.split() for line in lines[2:5]] == [
        ["NODE", "FREE", "CPUS", "FREE", "MEMORY", "MORE", "TASKS", "LIMIT"],
        ["node1", "2.5", "3GiB", "5", "insufficient", "shares"],
        ["node2", "1", "1GiB", "0", "drained"],
    ]
    assert lines[5:] == [
        "2 more would fit if node2 were active: orc node update --availability active node2",
        "8 more would fit on another node like node1",
    ]
    document = json.loads(run("capacity", "--format", "json", "--reserve-cpu", "0.5").stdout)
    assert (document["tasks"], document["nodes"][1]["availability"]) == (5, "drain")
    assert manager.script.request("GetCapacity").reservation.shares == 512


def test_capacity_is_of_a_service_or_of_a_size(manager: Any, refused: Refused) -> None:
    said = refused("capacity", "--like", "web", "--reserve-cpu", "1", status=2)
    assert "--like counts the reservation of the service" in said


def test_why(manager: Any, run: Run) -> None:
    manager.script.answers["GetPlacement"] = scheduling_pb2.PlacementReply(
        kind="task",
        name="web.1",
        tasks=[
            {"id": "t1", "name": "web.1", "state": int(TaskState.RUNNING), "node": "node1"},
        ],
        notes=["priority high", "constraint node.labels.zone==a"],
        nodes=[
            {"hostname": "node1", "place": 1, "load": 0.42, "has_image": True, "here": True},
            {"hostname": "node2", "refusals": ["drained", "insufficient memory"], "load": 1.5},
        ],
    )
    lines = run("why", "web.1").stdout.splitlines()
    assert "Placement: priority high; constraint node.labels.zone==a" in lines
    assert "Nodes, the best first, if it were placed now:" in lines
    assert lines[-2].split() == ["1", "node1", "0", "0", "42%", "yes", "its", "node"]
    assert lines[-1].split() == [
        "-",
        "node2",
        *["0", "0", "150%", "drained;", "insufficient", "memory"],
    ]
    assert json.loads(run("why", "--format", "json", "web.1").stdout)["nodes"][0]["here"] is True


def moving(state: TaskState = TaskState.RUNNING, to: str = "n2") -> Any:
    task = Task(id="t1", service_id="s", service_name="web", slot=1, move_to=to, node_id="n1")
    return control_pb2.ListTasksReply(tasks=[to_proto(with_state(task, state))])


def with_state(task: Task, state: TaskState) -> Task:
    return replace(task, status=TaskStatus(state))


def test_rebalance_waits_until_the_tasks_are_moved(manager: Any, run: Run) -> None:
    manager.script.answers["Rebalance"] = scheduling_pb2.RebalanceReply(
        moves=[{"task_id": "t1", "task": "web.1", "source": "a", "target": "b", "reason": "why"}]
    )
    answers = iter((moving(), moving(), moving(TaskState.SHUTDOWN)))
    manager.script.answers["ListTasks"] = lambda request: next(answers)
    done = run("rebalance", "--max-moves", "3", "--service", "web")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["NAME", "FROM", "TO", "REASON"],
        ["web.1", "a", "b", "why"],
    ]
    request = manager.script.request("Rebalance")
    assert (request.max_moves, request.service) == (3, "web")
    assert next(answers, None) is None


def test_moves_that_were_given_up_are_reported(manager: Any, run: Run) -> None:
    manager.script.answers["Rebalance"] = scheduling_pb2.RebalanceReply(
        moves=[{"task_id": "t1", "task": "web.1"}]
    )
    manager.script.answers["ListTasks"] = moving(to="")
    done = run("rebalance")
    assert done.exit_code == 1
    assert "orc: web.1 not moved: the new task failed" in done.stderr
    manager.script.answers["ListTasks"] = moving()
    done = run("rebalance", "--timeout", "0s")
    assert done.exit_code == 3
    assert "web.1 not moved after 0s; the moves continue" in done.stderr


def test_nothing_to_rebalance(manager: Any, run: Run) -> None:
    manager.script.answers["Rebalance"] = scheduling_pb2.RebalanceReply()
    done = run("rebalance")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == "orc: nothing to move: no move would improve anything\n"


def test_queues(manager: Any, run: Run) -> None:
    queue = Queue("research", 2, Resources(16384, 0))
    manager.script.answers["ListQueues"] = jobs_pb2.ListQueuesReply(
        queues=[
            {
                "queue": to_proto(queue),
                "used": {"shares": 8192, "memory": 16 * GIB},
                "share": 0.333,
                "jobs": 2,
                "running": 8,
                "waiting": 500,
            }
        ]
    )
    lines = run("queue", "ls").stdout.splitlines()
    assert lines[1].split() == [
        "research",
        "2",
        "16",
        "cores",
        "8",
        "16GiB",
        "33%",
        "2",
        "8",
        "500",
    ]
    assert run("queue", "ls", "-q").stdout == "research\n"
    manager.script.answers["SetQueue"] = to_proto(queue)
    assert run("queue", "create", "--weight", "2", "research").stdout == "research\n"
    request = manager.script.request("SetQueue")
    assert (request.name, request.create, request.weight) == ("research", True, 2)
    assert not request.HasField("quota_shares")
    run("queue", "update", "--quota-cpu", "0", "research")
    request = manager.script.request("SetQueue")
    assert (request.create, request.quota_shares, request.HasField("weight")) == (False, 0, False)
    manager.script.answers["RemoveQueue"] = to_proto(queue)
    assert run("queue", "rm", "research").stdout == "research\n"
