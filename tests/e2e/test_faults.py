# SPDX-License-Identifier: Apache-2.0
"""What goes wrong: processes killed, hosts lost, links cut. The rest goes on."""

from __future__ import annotations

import time
from typing import Any

import pytest
from devcluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]


def lives(tasks: list[dict[str, Any]]) -> dict[str, tuple[int, str]]:
    """What changes if a container is restarted: task id → (pid, start)."""
    return {task["id"]: (task["pid"], task["started_at"]) for task in tasks}


def processes(cluster: Cluster, host: str, service: str) -> int:
    """How many of the service's containers really run on a host, by their monitors."""
    found = cluster.exec(host, "pgrep", "-c", "-f", f"conmon .*--name={service}", ok=False)
    return int(found.stdout or 0)


def test_a_killed_container_is_replaced_after_its_delay(cluster: Cluster, hello: str) -> None:
    cluster.orc(
        "service", "create", "--name", "web", "--replicas", "3", "--restart-delay", "1s", hello
    )
    victim, *others = cluster.running("web")
    cluster.kill9(victim["node"], victim["pid"])
    killed = time.monotonic()

    def replaced() -> bool:
        running = cluster.running("web")
        return len(running) == 3 and victim["id"] not in {task["id"] for task in running}

    eventually(replaced)
    assert time.monotonic() - killed >= 1.0
    (past,) = [task for task in cluster.tasks("web") if task["id"] == victim["id"]]
    assert (past["state"], past["exit_code"]) == ("failed", 137)
    assert "SIGKILL" in past["error"]
    assert lives(others).items() <= lives(cluster.running("web")).items()


def test_killed_monitor_ends_its_container(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "--restart-delay", "100ms", hello)
    (victim,) = cluster.running("web")
    cluster.exec(victim["node"], "pkill", "-9", "-f", f"conmon .*--cid={victim['id']}")
    eventually(lambda: [t["id"] for t in cluster.running("web")] not in ([], [victim["id"]]))
    (past,) = [task for task in cluster.tasks("web") if task["id"] == victim["id"]]
    assert "monitor" in past["error"]
    # Nothing of the old container runs on without a monitor.
    there = ("test", "-e", f"/proc/{victim['pid']}")
    eventually(lambda: cluster.exec(victim["node"], *there, ok=False).returncode != 0)


def test_containers_outlive_their_agent(cluster: Cluster, hello: str) -> None:
    cluster.orc(
        "service", "create", "--name", "web", "--replicas", "6",
        # However long its agent takes to start, its tasks are not replaced meanwhile.
        "--on-disconnect", "keep", hello,
    )  # fmt: skip
    before = lives(cluster.running("web"))
    restarts = cluster.status()["node1"]["restarts"]
    cluster.kill9("node1", "daemon")
    eventually(lambda: cluster.status()["node1"]["restarts"] > restarts)
    cluster.await_ready("node1")
    # The adopting agent has spoken: what it says is what was.
    cluster.orc("service", "scale", "web=9")
    assert before.items() <= lives(cluster.running("web")).items()
    # It still watches what it adopted.
    victim = next(t for t in cluster.running("web") if t["node"] == "node1" and t["id"] in before)
    cluster.kill9("node1", victim["pid"])
    eventually(lambda: victim["id"] not in {t["id"] for t in cluster.running("web")})


def test_exit_of_a_container_while_its_agent_is_down_is_noticed(
    cluster: Cluster, hello: str
) -> None:
    cluster.orc(
        "service", "create", "--name", "web", "--replicas", "3", "--restart-delay", "100ms",
        # However long its agent is away, its task is not given up meanwhile.
        "--on-disconnect", "keep", hello,
    )  # fmt: skip
    victim = next(task for task in cluster.running("web") if task["node"] == "node1")
    cluster.stop("node1")
    cluster.kill9("node1", victim["pid"])
    cluster.start("node1")
    cluster.await_ready("node1")

    def told() -> bool:
        (past,) = [task for task in cluster.tasks("web") if task["id"] == victim["id"]]
        return past["state"] == "failed" and past["exit_code"] == 137

    eventually(told)
    cluster.await_running("web", 3)


def test_the_manager_is_killed(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", "6", hello)
    before = lives(cluster.running("web"))
    cluster.kill9("manager1", "daemon")
    eventually(lambda: cluster.orc("node", "ls", ok=False).returncode == 0)
    assert lives(cluster.running("web")) == before
    cluster.orc("service", "scale", "web=7")
    assert before.items() <= lives(cluster.running("web")).items()
    # Well past the time after which a silent node would be down, nothing was moved.
    cluster.await_ready()
    assert before.items() <= lives(cluster.running("web")).items()


def test_etcd_is_killed(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", "6", hello)
    before = lives(cluster.running("web"))
    cluster.kill9("manager1", "etcd")
    eventually(lambda: cluster.orc("service", "scale", "-d", "web=7", ok=False).returncode == 0)
    cluster.await_running("web", 7)
    assert before.items() <= lives(cluster.running("web")).items()


def test_manager_and_etcd_are_killed_at_once(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", "3", hello)
    before = lives(cluster.running("web"))
    cluster.exec("manager1", "sh", "-c", "kill -9 $(pgrep -x etcd) $(pgrep -f 'orc manage[r]')")
    eventually(lambda: cluster.orc("node", "ls", ok=False).returncode == 0)
    cluster.await_ready()
    assert lives(cluster.running("web")) == before


def test_a_host_dies(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", "6", hello)
    lost = [task for task in cluster.running("web") if task["node"] == "node2"]
    kept = lives([task for task in cluster.running("web") if task["node"] != "node2"])
    cluster.power_off("node2")
    eventually(lambda: cluster.nodes()["node2"]["state"] == "down")

    def moved() -> bool:
        running = cluster.running("web")
        return len(running) == 6 and "node2" not in {task["node"] for task in running}

    eventually(moved)
    assert kept.items() <= lives(cluster.running("web")).items()
    assert "node2" in {task["node"] for task in cluster.tasks("web") if task["state"] == "orphaned"}

    cluster.start("node2")
    cluster.await_ready("node2")
    # It was away for good: nothing of what ran there stays, though it may have come back before the
    # node heard of it.
    eventually(lambda: processes(cluster, "node2", "web") == 0)
    assert len(cluster.running("web")) == 6
    assert not {task["id"] for task in lost} & {task["id"] for task in cluster.running("web")}
    # And it takes work again.
    cluster.orc("service", "scale", "web=9")
    assert {t["node"] for t in cluster.running("web")} == {"node1", "node2", "node3"}


def test_node_is_partitioned_and_reconnects(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", "6", hello)
    here = [task for task in cluster.running("web") if task["node"] == "node3"]
    cluster.partition("node3")
    eventually(lambda: cluster.nodes()["node3"]["state"] == "down")
    eventually(
        lambda: (
            len(tasks := cluster.running("web")) == 6
            and "node3" not in {task["node"] for task in tasks}
        ),
    )
    # Cut off, it keeps running what it had: nobody there decides anything.
    assert processes(cluster, "node3", "web") == len(here)
    cluster.heal()
    cluster.await_ready("node3")
    # What was replaced meanwhile is stopped and removed.
    eventually(lambda: processes(cluster, "node3", "web") == 0)
    assert len(cluster.running("web")) == 6
    total = sum(processes(cluster, host, "web") for host in ("node1", "node2", "node3"))
    assert total == 6


def test_a_frozen_agent_comes_back(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", "3", hello)
    agent = str(cluster.status()["node3"]["daemon_pid"])
    cluster.exec("node3", "kill", "-STOP", agent)
    eventually(lambda: cluster.nodes()["node3"]["state"] == "down")
    cluster.await_running("web", 3)
    cluster.exec("node3", "kill", "-CONT", agent)
    cluster.await_ready("node3")
    eventually(lambda: processes(cluster, "node3", "web") == 0)
    assert len(cluster.running("web")) == 3


def test_a_short_cut_moves_nothing(cluster: Cluster, hello: str) -> None:
    cluster.orc(
        "service", "create", "--name", "web", "--replicas", "6",
        # Short for the service: two commands on a busy machine may take more than the default, 5s.
        "--on-disconnect", "replace-after=1m", hello,
    )  # fmt: skip
    before = lives(cluster.running("web"))
    cluster.partition("node3")
    cluster.heal()
    cluster.orc("service", "scale", "web=9")
    assert before.items() <= lives(cluster.running("web")).items()


def test_a_rebooted_manager_host_forgets_nothing(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", "3", hello)
    before = lives(cluster.running("web"))
    cluster.power_off("manager1")
    assert "10.213." in cluster.refused("node", "ls")
    cluster.start("manager1")
    cluster.await_ready()
    assert lives(cluster.running("web")) == before
