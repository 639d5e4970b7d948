# SPDX-License-Identifier: Apache-2.0
"""Where tasks run: room, spread, availability, rules; and what waits says why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from devcluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]


@pytest.fixture(autouse=True)
def plain_nodes(session_cluster: Cluster) -> Iterator[None]:
    """Afterwards, nodes are active and without labels again."""
    yield
    for name, node in session_cluster.nodes().items():
        changes = [f"--label-rm={label}" for label in node["labels"]]
        if node["availability"] != "active":
            changes += ["--availability", "active"]
        if changes:
            session_cluster.orc("node", "update", *changes, name)


def places(cluster: Cluster, service: str) -> Counter[str]:
    """How many of a service's tasks run on which node."""
    return Counter(task["node"] for task in cluster.running(service))


def cores(cluster: Cluster, part: float) -> str:
    """That part of a node's cores, for `--reserve-cpu`."""
    return str(min(node["shares_total"] for node in cluster.nodes().values()) * part / 1024)


def assert_not_over(nodes: dict[str, dict[str, Any]]) -> None:
    for node in nodes.values():
        assert node["shares_reserved"] <= node["shares_total"], node
        assert node["memory_reserved"] <= node["memory_total"], node


def test_tasks_are_spread_regardless_of_other_services(cluster: Cluster, hello: str) -> None:
    # Another service makes node1 the fullest.
    cluster.orc("service", "create", "--name", "load", "--constraint", "node.hostname==node1",
                "--reserve-cpu", cores(cluster, 0.5), hello)  # fmt: skip
    cluster.orc("service", "create", "--name", "web", "--replicas", "2", hello)
    assert places(cluster, "web") == {"node2": 1, "node3": 1}
    cluster.orc("service", "scale", "web=6")
    assert places(cluster, "web") == {"node1": 2, "node2": 2, "node3": 2}
    cluster.orc("service", "scale", "web=3")
    assert places(cluster, "web") == {"node1": 1, "node2": 1, "node3": 1}


def test_reservations_are_counted_as_they_were_asked_for(cluster: Cluster, hello: str) -> None:
    on = ("--constraint", "node.hostname==node1")
    mib = 1 << 20
    for flags, shares, memory in (
        ((), 128, 64 * mib),
        (("--reserve-cpu", "0.5", "--reserve-memory", "100m"), 512, 100 * mib),
        (("--cpu-shares", "300"), 300, 64 * mib),
        (("--cpu-shares", "300", "--reserve-cpu", "0.25"), 256, 64 * mib),
    ):
        cluster.orc("service", "create", "--name", "web", *on, *flags, hello)
        node = cluster.nodes()["node1"]
        assert (node["shares_reserved"], node["memory_reserved"]) == (shares, memory), flags
        cluster.orc("service", "rm", "-d", "web")
        eventually(lambda: cluster.nodes()["node1"]["shares_reserved"] == 0)


def test_never_over_capacity_and_placed_the_moment_it_fits(cluster: Cluster, hello: str) -> None:
    # Two of these fit on a node, so six of the twelve.
    part = cores(cluster, 0.45)
    names = ("a", "b", "c")
    for name in names:
        cluster.orc("service", "create", "-d", "--name", name, "--replicas", "4",
                    "--reserve-cpu", part, hello)  # fmt: skip

    def running() -> int:
        assert_not_over(cluster.nodes())
        return sum(len(cluster.running(name)) for name in names)

    eventually(lambda: running() == 6)

    def waiting() -> list[str]:
        tasks = [task for name in names for task in cluster.tasks(name)]
        return [task["error"] for task in tasks if task["state"] == "pending"]

    reason = "no suitable node (3 nodes: insufficient shares)"
    eventually(lambda: waiting() == [reason] * 6)
    # What is freed is taken by what waits. The tasks that go keep their room until they are gone.
    freed = max(names, key=lambda name: len(cluster.running(name)))
    count = len(cluster.running(freed))
    rest = [name for name in names if name != freed]
    cluster.orc("service", "rm", "-d", freed)

    def placed() -> bool:
        assert_not_over(cluster.nodes())
        return sum(len(cluster.running(name)) for name in rest) == 6

    assert count >= 2
    eventually(placed)
    cluster.orc("service", "scale", *(f"{name}=3" for name in rest))
    assert sum(len(cluster.running(name)) for name in rest) == 6


def test_task_that_never_fits_has_a_reason(cluster: Cluster, hello: str) -> None:
    much = ("--reserve-cpu", cores(cluster, 1.01))
    cluster.orc("service", "create", "-d", "--name", "giant", *much, hello)
    cluster.await_reason(
        "giant", "unschedulable: no node has enough capacity (3 nodes: insufficient shares)"
    )
    cluster.orc("service", "update", "giant", "--reserve-cpu", cores(cluster, 1.0))
    assert len(cluster.running("giant")) == 1


def test_a_drained_node_is_emptied_and_comes_back(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", "6", hello)
    kept = {task["id"] for task in cluster.running("web") if task["node"] != "node2"}
    cluster.orc("node", "update", "--availability", "drain", "node2")
    node2 = cluster.nodes()["node2"]
    assert (node2["availability"], node2["tasks"]) == ("drain", 0)
    eventually(lambda: places(cluster, "web") == {"node1": 3, "node3": 3})
    assert kept <= {task["id"] for task in cluster.running("web")}
    cluster.orc("node", "update", "--availability", "active", "node2")
    # What runs stays where it is; what is new goes to the emptiest.
    cluster.orc("service", "scale", "web=9")
    assert places(cluster, "web") == {"node1": 3, "node2": 3, "node3": 3}


def test_paused_node_keeps_its_tasks_and_gets_no_new_ones(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", "3", hello)
    before = {task["id"] for task in cluster.running("web")}
    cluster.orc("node", "update", "--availability", "pause", "node3")
    cluster.orc("service", "scale", "web=7")
    assert places(cluster, "web") == {"node1": 3, "node2": 3, "node3": 1}
    assert before <= {task["id"] for task in cluster.running("web")}
    there = ("--constraint", "node.hostname==node3")
    cluster.orc("service", "create", "-d", "--name", "there", *there, hello)
    reason = "no suitable node (2 nodes: constraint node.hostname==node3 not met; 1 node: paused)"
    eventually(lambda: cluster.task("there")["error"] == reason)
    cluster.orc("node", "update", "--availability", "active", "node3")
    cluster.await_running("there", 1)


def test_constraints_on_labels(cluster: Cluster, hello: str) -> None:
    cluster.orc("node", "update", "--label-add", "zone=a", "node2")
    assert cluster.nodes()["node2"]["labels"] == {"zone": "a"}
    cluster.orc("service", "create", "--name", "in", "--replicas", "3",
                "--constraint", "node.labels.zone==a", hello)  # fmt: skip
    assert places(cluster, "in") == {"node2": 3}
    cluster.orc("service", "create", "--name", "out", "--replicas", "4",
                "--constraint", "node.labels.zone!=a", hello)  # fmt: skip
    assert places(cluster, "out") == {"node1": 2, "node3": 2}

    in_b = ("--constraint", "node.labels.zone==b")
    cluster.orc("service", "create", "-d", "--name", "nowhere", *in_b, hello)
    words = "3 nodes: constraint node.labels.zone==b not met"
    reason = f"unschedulable: no node meets its requirements ({words})"
    cluster.await_reason("nowhere", reason)
    assert reason in cluster.orc("service", "ps", "nowhere").stdout
    # It is placed as soon as a node is what it asks for.
    cluster.orc("node", "update", "--label-add", "zone=b", "node3")
    cluster.await_running("nowhere", 1)
    assert places(cluster, "nowhere") == {"node3": 1}


def test_a_global_service_has_a_task_on_each_node_that_takes_tasks(
    cluster: Cluster, hello: str
) -> None:
    cluster.orc("service", "create", "--name", "each", "--mode", "global", hello)
    assert places(cluster, "each") == {"node1": 1, "node2": 1, "node3": 1}
    cluster.orc("node", "update", "--availability", "drain", "node1")
    eventually(lambda: places(cluster, "each") == {"node2": 1, "node3": 1})
    cluster.orc("node", "update", "--availability", "active", "node1")
    eventually(lambda: places(cluster, "each") == {"node1": 1, "node2": 1, "node3": 1})


def test_spread_over_zones_and_maximum_tasks_per_node(cluster: Cluster, hello: str) -> None:
    for name, zone in (("node1", "a"), ("node2", "a"), ("node3", "b")):
        cluster.orc("node", "update", "--label-add", f"zone={zone}", name)
    cluster.orc("service", "create", "--name", "web", "--replicas", "4",
                "--placement-pref", "spread=node.labels.zone", hello)  # fmt: skip
    assert places(cluster, "web") == {"node1": 1, "node2": 1, "node3": 2}
    cluster.orc("service", "update", "-d", "--placement-pref-rm", "spread=node.labels.zone",
                "--replicas-max-per-node", "1", "--force", "web")  # fmt: skip
    eventually(lambda: places(cluster, "web") == {"node1": 1, "node2": 1, "node3": 1})
    cluster.await_reason("web", "already has 1 task of the service, the maximum")
    refusal = cluster.refused("service", "update", "--placement-pref-add", "spread=zone", "web")
    assert "asks for 'zone'; known are node.id" in refusal


def test_tasks_move_to_a_node_that_is_active_again(cluster: Cluster, hello: str) -> None:
    cluster.orc("node", "update", "--availability", "drain", "node3")
    cluster.orc("service", "create", "--name", "web", "--replicas", "6", hello)
    assert places(cluster, "web") == {"node1": 3, "node2": 3}
    cluster.orc("node", "update", "--availability", "active", "node3")
    before = {task["id"] for task in cluster.running("web")}
    planned = cluster.orc("plan", "rebalance").stdout
    assert "node3" in planned
    assert places(cluster, "web") == {"node1": 3, "node2": 3}, "a plan moves nothing"
    cluster.orc("rebalance")
    assert places(cluster, "web") == {"node1": 2, "node2": 2, "node3": 2}
    assert len(before & {task["id"] for task in cluster.running("web")}) == 4
    assert "nothing to move" in cluster.orc("rebalance").stderr


def test_a_task_of_high_priority_takes_the_room_of_others(cluster: Cluster, hello: str) -> None:
    part = cores(cluster, 0.8)
    cluster.orc("service", "create", "--name", "low", "--replicas", "3", "--priority", "low",
                "--min-available", "1", "--reserve-cpu", part, hello)  # fmt: skip
    assert len(places(cluster, "low")) == 3
    cluster.orc("service", "create", "--name", "top", "--replicas", "2", "--priority", "high",
                "--reserve-cpu", part, hello)  # fmt: skip
    assert sum(places(cluster, "top").values()) == 2
    eventually(lambda: sum(places(cluster, "low").values()) == 1)
    assert "preempted by top." in cluster.orc("why", "low").stdout
    assert "0 more tasks of service top fit" in cluster.orc("capacity", "--like", "top").stdout
    cluster.orc("service", "scale", "-d", "top=3")
    eventually(lambda: "insufficient shares" in cluster.orc("service", "ps", "top").stdout)
    assert sum(places(cluster, "low").values()) == 1, "its budget keeps one"
