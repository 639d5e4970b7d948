# SPDX-License-Identifier: Apache-2.0
"""Preemption, drains and moves of running tasks: who must go, how many at a time, and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from devcluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

LATE = (
    *("--entrypoint", "sh", "--health-cmd", "test -e /ready", "--health-interval", "1h"),
    *("--health-start-period", "1m", "--health-start-interval", "100ms", "--stop-signal", "KILL"),
)
"""Flags of a service whose tasks are healthy a moment after they have started (`SLOWLY`)."""
SLOWLY = "sleep 0.7; touch /ready; exec sleep 1000"


@pytest.fixture(autouse=True)
def active_nodes(session_cluster: Cluster) -> Iterator[None]:
    """Afterwards all nodes are active again."""
    yield
    for name, node in session_cluster.nodes().items():
        if node["availability"] != "active":
            session_cluster.orc("node", "update", "--availability", "active", name)


def cores(cluster: Cluster, part: float) -> str:
    """That part of a node's cores, for `--reserve-cpu`."""
    return str(min(node["shares_total"] for node in cluster.nodes().values()) * part / 1024)


def on(node: str) -> tuple[str, str]:
    return "--constraint", f"node.hostname=={node}"


def places(cluster: Cluster, service: str) -> Counter[str]:
    """How many of a service's tasks run on which node."""
    return Counter(task["node"] for task in cluster.running(service))


def test_preemption_stops_the_fewest_tasks_and_gives_them_time(
    cluster: Cluster, hello: str
) -> None:
    """One large task of low priority goes, not several small ones, and none of normal priority. It
    ends by itself before its grace period is over."""

    def create(name: str, node: str, part: float, *flags: str) -> None:
        cluster.orc("service", "create", "--name", name, *on(node), "--reserve-cpu",
                    cores(cluster, part), *flags)  # fmt: skip

    ends = "trap 'sleep 0.5; exit 7' TERM; while :; do sleep 0.1; done"
    create("small", "node1", 0.2, "--replicas", "4", "--priority", "low", hello)
    create("large", "node2", 0.8, "--priority", "low", "--entrypoint", "sh", hello, "-c", ends)
    create("normal", "node3", 0.8, hello)
    kept = {task["id"] for name in ("small", "normal") for task in cluster.running(name)}
    create_top = ("service", "create", "--name", "top", "--priority", "high",
                  "--reserve-cpu", cores(cluster, 0.7), hello)  # fmt: skip
    planned = json.loads(
        cluster.orc("plan", *create_top[:2], "--format", "json", *create_top[2:]).stdout
    )
    assert [(row["action"], row["task"], row["from"], row["to"]) for row in planned] == [
        ("wait", "large.1", "node2", ""),
        ("start", "top.1", "", "node2"),
    ]
    assert planned[0]["reason"].startswith("preempted by top.1; no suitable node")
    assert places(cluster, "large") == {"node2": 1}, "a plan stops nothing"

    cluster.orc(*create_top)
    assert places(cluster, "top") == {"node2": 1}
    assert kept == {task["id"] for name in ("small", "normal") for task in cluster.running(name)}
    victim = next(task for task in cluster.tasks("large") if task["node"] == "node2")
    assert (victim["state"], victim["exit_code"]) == ("shutdown", 7)
    assert victim["error"] == "preempted by top.1"
    flags = ("--since", "10m", "--until", "0s", "--filter", "event=preempt")
    events = cluster.orc("events", *flags).stdout.splitlines()
    assert [line for line in events if victim["id"] in line and "by=top.1" in line] == events[-1:]

    # It comes back once there is room, since it still waits.
    cluster.orc("service", "rm", "top")
    cluster.await_running("large", 1)


def test_a_drain_keeps_to_the_disruption_budget(cluster: Cluster, hello: str) -> None:
    """At each time at least as many tasks work as the budget asks for, and all move in the end."""
    for node in ("node2", "node3"):
        cluster.orc("node", "update", "--availability", "drain", node)
    cluster.orc("service", "create", "--name", "web", "--replicas", "4", "--max-unavailable", "1",
                *LATE, hello, "-c", SLOWLY)  # fmt: skip
    assert places(cluster, "web") == {"node1": 4}
    for node in ("node2", "node3"):
        cluster.orc("node", "update", "--availability", "active", node)
    cluster.orc("node", "update", "-d", "--availability", "drain", "node1")
    worked: list[int] = []

    def moved() -> bool:
        worked.append(sum(task["health"] == "healthy" for task in cluster.running("web")))
        return cluster.nodes()["node1"]["tasks"] == 0 and worked[-1] == 4

    eventually(moved)
    assert 3 in worked
    assert min(worked) == 3
    assert places(cluster, "web") == {"node2": 2, "node3": 2}


def test_a_drain_that_a_budget_holds_up_says_so(cluster: Cluster, hello: str) -> None:
    cluster.orc(
        "service", "create", "--name", "web", "--min-available", "100%", *on("node1"), hello
    )
    drain = ("node", "update", "--availability", "drain", "node1")
    [step] = cluster.json("plan", *drain)
    assert (step["action"], step["task"], step["from"], step["to"]) == (
        *("wait", "web.1"),
        *("node1", "node1"),
    )
    assert "no more of its service may be unavailable" in step["reason"]
    done = cluster.orc(*drain, "--timeout", "500ms", ok=False)
    assert done.returncode == 3
    assert "node node1 still has 1 task of web" in done.stderr
    assert "'orc why web'" in done.stderr
    [why] = cluster.json("why", "web")["tasks"]
    assert (why["name"], why["state"], why["node"]) == ("web.1", "running", "node1")
    assert "the disruption budget of web allows no more unavailable tasks" in why["reason"]
    # A smaller budget lets it go; its rule on nodes makes it wait.
    cluster.orc("service", "update", "-d", "--min-available", "0", "web")
    eventually(lambda: cluster.nodes()["node1"]["tasks"] == 0)
    cluster.await_reason("web", "1 node: drained")


def test_why_compares_the_nodes(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "load", *on("node1"),
                "--reserve-cpu", cores(cluster, 0.5), hello)  # fmt: skip
    cluster.orc("service", "create", "--name", "web", "--priority", "high", *on("node1"), hello)
    found = cluster.json("why", "web.1")
    assert [(task["state"], task["node"]) for task in found["tasks"]] == [("running", "node1")]
    nodes: dict[str, Any] = {row["hostname"]: row for row in found["nodes"]}
    assert nodes["node1"]["place"] == 1
    assert nodes["node2"]["place"] == nodes["node3"]["place"] == 0
    text = cluster.orc("why", "web.1").stdout
    assert "priority high" in text
    assert "its node" in text
    assert "constraint node.hostname==node1 not met" in text

    much = ("--reserve-cpu", cores(cluster, 0.6))
    cluster.orc("service", "create", "-d", "--name", "more", *on("node1"), *much, hello)
    cluster.await_reason("more", "insufficient shares")
    text = cluster.orc("why", "more").stdout
    assert "insufficient shares" in text
    assert "constraint node.hostname==node1 not met" in text
    refusal = cluster.refused("why", "nothing")
    assert refusal.startswith("orc: no task or service 'nothing'")


def test_capacity_counts_until_the_nodes_are_full(cluster: Cluster, hello: str) -> None:
    """As many more tasks run as it says, and no more."""
    part = cores(cluster, 0.3)
    cluster.orc("service", "create", "--name", "web", "--reserve-cpu", part, hello)
    cluster.orc("node", "update", "--availability", "drain", "node3")
    found = cluster.json("capacity", "--like", "web")
    assert found["tasks"] == 5
    assert {row["hostname"]: row["tasks"] for row in found["nodes"]} == {
        **{"node1": 3, "node2": 3, "node3": 0},
        cluster.running("web")[0]["node"]: 2,
    }
    text = cluster.orc("capacity", "--like", "web").stdout
    assert text.startswith("5 more tasks of service web fit")
    assert "orc node update --availability active node3" in text
    cluster.orc("service", "scale", "web=6")
    cluster.orc("service", "scale", "-d", "web=7")
    cluster.await_reason("web", "2 nodes: insufficient shares")
    assert cluster.json("capacity", "--like", "web")["tasks"] == 0


def test_moves_are_limited_and_end(cluster: Cluster, hello: str) -> None:
    cluster.orc("node", "update", "--availability", "drain", "node3")
    for name in ("web", "api"):
        cluster.orc("service", "create", "--name", name, "--replicas", "4", hello)
    cluster.orc("node", "update", "--availability", "active", "node3")
    [planned] = cluster.json("plan", "rebalance", "--max-moves", "1")
    assert (planned["action"], planned["to"]) == ("move", "node3")
    [moved] = cluster.json("rebalance", "--max-moves", "1")
    assert moved["name"] == planned["task"]
    assert moved["target"] == "node3"
    assert moved["reason"] == f"{planned['service']}: 2 and 0 tasks"
    other = "api" if planned["service"] == "web" else "web"
    moves = cluster.json("rebalance", "--service", other)
    assert {(each["name"].partition(".")[0], each["target"]) for each in moves} == {
        (other, "node3")
    }
    cluster.orc("rebalance")
    for name in ("web", "api"):
        assert sorted(places(cluster, name).values()) == [1, 1, 2]
    assert "nothing to move" in cluster.orc("rebalance").stderr
    assert cluster.json("plan", "rebalance") == []
