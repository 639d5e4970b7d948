# SPDX-License-Identifier: Apache-2.0
"""Nodes that are drained, vanish, come back, and come and go."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from devcluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

FOREVER = ("--entrypoint", "/bin/busybox sleep 86421", "--stop-grace-period", "100ms")
AT_NODE3 = ("--affinity", "node.hostname==node3,weight=50")


@pytest.fixture(autouse=True)
def _all_active(cluster: Cluster) -> Iterator[None]:
    yield
    for name in ("node1", "node2", "node3"):
        cluster.orc("node", "update", "--availability", "active", name)


def places(cluster: Cluster, service: str) -> list[str]:
    return sorted(task["node"] for task in cluster.running(service))


def lives_on(cluster: Cluster, node: str) -> int:
    """How many of the processes run there, whatever the managers know."""
    found = cluster.exec(node, "pgrep", "-c", "-f", "^/bin/busybox sleep 86421", ok=False)
    return int(found.stdout or 0)


def test_a_drain_takes_one_task_of_a_service_at_a_time(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", "4", "--health-http", "80/",
                "--strategy", "binpack", hello)  # fmt: skip
    [full] = set(places(cluster, "web"))
    cluster.orc("node", "update", "-d", "--availability", "drain", "--max-unavailable", "1",
                "--deadline", "10m", full)  # fmt: skip
    shown = cluster.orc("node", "inspect", "--pretty", full).stdout
    assert "Drain, at most 1 task of a service at a time, until 20" in shown
    least = 4

    def gone() -> bool:
        nonlocal least
        row = next(each for each in cluster.json("service", "ls") if each["name"] == "web")
        least = min(least, row["running"])
        return full not in places(cluster, "web") and row["running"] == 4

    eventually(gone)
    assert least >= 3


def test_a_drain_that_cannot_go_on_ends_at_its_deadline(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", "3", "--update-order",
                "start-first", "--reserve-memory", "6g", "--affinity", "node.hostname==node1",
                *FOREVER, hello)  # fmt: skip
    drain = ("node", "update", "--availability", "drain", "--deadline", "3s", "node1")
    stuck = cluster.orc(*drain, "--timeout", "1s", ok=False)
    assert stuck.returncode == 3
    assert "node node1 still has 3 tasks of web after 1s: no suitable node (" in stuck.stderr
    began = time.monotonic()
    assert len(cluster.running("web")) == 3
    cluster.orc(*drain)
    assert not cluster.running("web")
    assert time.monotonic() - began > 2


def test_a_kept_task_waits_for_its_node_and_others_are_replaced_later(
    cluster: Cluster, hello: str
) -> None:
    create = ("service", "create", *AT_NODE3, *FOREVER, "--name")
    cluster.orc(*create, "keep", "--on-disconnect", "keep", hello)
    cluster.orc(*create, "patient", "--on-disconnect", "replace-after=3s", hello)
    cluster.orc(*create, "hasty", hello)
    before = {name: cluster.running(name)[0]["id"] for name in ("keep", "patient")}
    assert places(cluster, "keep") == places(cluster, "hasty") == ["node3"]
    cluster.partition("node3")
    eventually(lambda: cluster.nodes()["node3"]["state"] == "down")
    eventually(lambda: cluster.task("keep")["error"] == "kept on node3, which is down")
    rows = {row["name"]: row["running"] for row in cluster.json("service", "ls")}
    assert rows["keep"] == 0
    eventually(lambda: places(cluster, "hasty") in (["node1"], ["node2"]))
    eventually(lambda: places(cluster, "patient") in (["node1"], ["node2"]))
    cluster.heal()
    cluster.await_ready("node3")
    eventually(lambda: lives_on(cluster, "node3") == 1)
    assert cluster.await_running("keep", 1)[0]["id"] == before["keep"]
    eventually(lambda: not cluster.task("keep")["error"])
    assert cluster.running("patient")[0]["id"] != before["patient"]


def test_stopped_by_its_own_node_before_another_runs(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "one", "--on-disconnect", "stop-after=3s",
                *AT_NODE3, *FOREVER, hello)  # fmt: skip
    assert places(cluster, "one") == ["node3"]
    cluster.partition("node3")
    both = []

    def moved() -> bool:
        here = sum(lives_on(cluster, name) for name in ("node1", "node2"))
        both.append((lives_on(cluster, "node3"), here))
        return here == 1

    eventually(moved)
    assert (1, 1) not in both, both
    assert both[-1] == (0, 1)
    cluster.heal()
    cluster.await_ready("node3")
    cluster.await_running("one", 1)
    eventually(lambda: lives_on(cluster, "node3") == 0)


def test_a_node_that_flaps_moves_nothing_more(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", "3", *FOREVER, hello)
    for _ in range(2):
        cluster.partition("node3")
        eventually(lambda: cluster.nodes()["node3"]["state"] == "down")
        cluster.await_running("web", 3)
        cluster.heal()
        cluster.await_ready("node3")
    ids = {task["id"] for task in cluster.running("web")}
    cluster.orc("service", "create", "--name", "new", "--replicas", "2", *FOREVER, hello)
    assert "node3" not in places(cluster, "new"), "what is new does not go there either"
    cluster.partition("node3")
    eventually(lambda: cluster.nodes()["node3"]["state"] == "down")
    cluster.heal()
    cluster.await_ready("node3")
    assert {task["id"] for task in cluster.running("web")} == ids
