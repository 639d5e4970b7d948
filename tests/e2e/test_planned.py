# SPDX-License-Identifier: Apache-2.0
"""`orc plan`: what it says is what then happens, and it does nothing itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from devcluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]


def planned(cluster: Cluster, *command: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(
        cluster.orc("plan", "--format", "json", *command).stdout
    )
    return rows


def where(cluster: Cluster, service: str) -> dict[str, str]:
    return {task["name"]: task["node"] for task in cluster.running(service)}


def quiet(cluster: Cluster, service: str) -> bool:
    """Whether nothing is under way any more."""
    states = [(task["state"], task["desired_state"]) for task in cluster.tasks(service)]
    return all(state == wanted or state in ("complete", "failed") for state, wanted in states)


def test_plan_matches_the_execution(cluster: Cluster, hello: str) -> None:
    create = ("service", "create", "--name", "web", "--replicas", "4", hello)
    steps = planned(cluster, *create)
    assert cluster.json("service", "ls") == []
    cluster.orc(*create)
    assert where(cluster, "web") == {step["task"]: step["to"] for step in steps}
    assert {step["action"] for step in steps} == {"start"}

    before = where(cluster, "web")
    drain = ("node", "update", "--availability", "drain", "node2")
    moves = planned(cluster, *drain)
    assert {step["task"]: step["from"] for step in moves} == {
        name: node for name, node in before.items() if node == "node2"
    }
    assert cluster.nodes()["node2"]["availability"] == "active"
    cluster.orc(*drain)
    try:
        eventually(lambda: "node2" not in where(cluster, "web").values() and quiet(cluster, "web"))
        after = where(cluster, "web")
        left = {step["task"] for step in moves}
        assert {k: v for k, v in after.items() if k not in left} == {
            k: v for k, v in before.items() if k not in left
        }
        # Of several that stop at once, whichever has ended first is placed first.
        assert sorted(after[name] for name in left) == sorted(step["to"] for step in moves)
    finally:
        cluster.orc("node", "update", "--availability", "active", "node2")

    assert [s["action"] for s in planned(cluster, "service", "scale", "web=3")] == ["stop"]
    labels = cluster.orc("plan", "service", "update", "--label-add", "a=b", "web")
    assert (labels.stdout, labels.stderr.strip()) == ("", "nothing would change")
    update = ("service", "update", "--env-add", "A=1", "web")
    steps = planned(cluster, *update)
    assert {step["action"] for step in steps} <= {"replace", "move"}
    cluster.orc(*update)
    assert where(cluster, "web") == {step["task"]: step["to"] for step in steps}


def test_plan_refuses_what_the_command_refuses(cluster: Cluster, hello: str) -> None:
    assert "no service 'nope'" in cluster.refused("plan", "service", "rm", "-d", "nope")
    steps = planned(
        cluster, "service", "create", "--name", "big", "--reserve-memory", "900g", hello
    )
    assert steps[0]["action"] == "wait"
    assert "memory" in steps[0]["reason"]


def test_a_container_is_planned_where_it_then_runs(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "db", "--constraint", "node.hostname==node2", hello)
    run = ("run", "-d", "--name", "box", "--affinity", "service==db", hello)
    assert planned(cluster, *run) == [
        {"action": "start", "service": "", "task": "box", "from": "", "to": "node2", "reason": ""}
    ]
    assert cluster.json("ps", "-a", "--filter", "name=box") == []
    cluster.orc(*run)
    try:
        [row] = cluster.json("ps", "--filter", "name=box")
        assert row["node"] == "node2"
    finally:
        cluster.orc("rm", "-f", "box")
    [step] = planned(cluster, "container", "create", "--constraint", "node.labels.no==x", hello)
    assert step["action"] == "wait"
    assert step["reason"].startswith("unschedulable: no node meets its requirements (")
    assert "cannot be planned; plannable commands: " in cluster.refused("plan", "rm", "box")
