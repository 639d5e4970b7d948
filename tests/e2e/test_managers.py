# SPDX-License-Identifier: Apache-2.0
"""A cluster of three managers loses one after the other, and goes on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from devcluster import Cluster, eventually

MANAGERS = ("manager1", "manager2", "manager3")


@pytest.fixture(scope="module")
def three(spare_cluster: Callable[[str], Cluster]) -> Iterator[Cluster]:
    cluster = spare_cluster("three")
    cluster.dev("up", "--managers", "3", "--nodes", "1")
    yield cluster
    cluster.dev("down")


def managers(cluster: Cluster) -> dict[str, dict[str, Any]]:
    return {row["hostname"]: row for row in cluster.json("manager", "ls")}


def await_states(cluster: Cluster, states: dict[str, str]) -> None:
    def ask() -> bool:
        found = {name: row["state"] for name, row in managers(cluster).items()}
        assert found == states, found
        return True

    eventually(ask)


def test_any_manager_can_be_lost(three: Cluster) -> None:
    for lost in MANAGERS:
        await_states(three, dict.fromkeys(MANAGERS, "ready"))
        three.power_off(lost)
        eventually(lambda: three.orc("config", "ls").returncode == 0)
        await_states(three, dict.fromkeys(MANAGERS, "ready") | {lost: "down"})

        def written(name: str = f"written-without-{lost}") -> bool:
            made = three.orc("network", "create", name, ok=False)
            assert made.returncode == 0 or "exists" in made.stderr, made.stderr
            return True

        eventually(written)
        eventually(lambda: any(row["leader"] for row in managers(three).values()))
        three.start(lost)
    await_states(three, dict.fromkeys(MANAGERS, "ready"))
    names = {network["name"] for network in three.json("network", "ls")}
    assert {f"written-without-{lost}" for lost in MANAGERS} <= names
    three.await_ready("node1")


def test_a_promotion_outlasts_the_session_of_its_node(three: Cluster) -> None:
    await_states(three, dict.fromkeys(MANAGERS, "ready"))
    joining = ("-f", "[c]luster join")
    lost = eventually(lambda: manager_of_session(three))
    with ThreadPoolExecutor(1) as beside:
        promotion = beside.submit(three.orc, "node", "promote", "node1")
        eventually(
            lambda: three.exec("node1", "pkill", "-STOP", *joining, ok=False).returncode == 0,
            every=0.02,
        )
        try:
            three.kill9(lost, "daemon")
            await_states(three, dict.fromkeys(MANAGERS, "ready"))
        finally:
            three.exec("node1", "pkill", "-CONT", *joining)
        assert promotion.result().stdout.split() == ["node1"]
    await_states(three, dict.fromkeys((*MANAGERS, "node1"), "ready"))
    three.orc("node", "demote", "node1")
    await_states(three, dict.fromkeys(MANAGERS, "ready"))
    three.await_ready("node1")


def manager_of_session(cluster: Cluster) -> str:
    """The manager that node1 is in session with, by the log of its agent."""
    hosts = {row["address"]: name for name, row in managers(cluster).items()}
    log = (cluster.data("node1").parent / "log" / "agent.log").read_text()
    told = [line for line in log.splitlines() if "session opened" in line or "no session" in line]
    assert "session opened" in told[-1], told[-1]
    [address] = re.findall(r" manager=(\S+)", told[-1])
    return hosts[address]


def test_a_lost_manager_is_replaced(three: Cluster) -> None:
    await_states(three, dict.fromkeys(MANAGERS, "ready"))
    three.power_off("manager3")
    await_states(three, {"manager1": "ready", "manager2": "ready", "manager3": "down"})
    said = three.refused("manager", "rm", "manager2")
    assert "2 managers, which need 2 healthy ones for a quorum, and 1 is healthy" in said
    three.orc("manager", "rm", "manager3")
    await_states(three, {"manager1": "ready", "manager2": "ready"})
    three.orc("node", "promote", "node1")
    await_states(three, {"manager1": "ready", "manager2": "ready", "node1": "ready"})
    assert "is manager" in three.refused("node", "promote", "node1")
    three.power_off("manager1")
    eventually(lambda: three.orc("network", "create", "written-by-the-promoted").returncode == 0)
    three.start("manager1")
    await_states(three, {"manager1": "ready", "manager2": "ready", "node1": "ready"})
    three.orc("node", "demote", "node1")
    folder = three.data("node1").parent / "manager"
    keys = ("ca.key", "cluster.key", "etcd")
    # Where its node cannot be told, the manager notices by itself.
    eventually(lambda: not [name for name in keys if (folder / name).exists()])
    await_states(three, {"manager1": "ready", "manager2": "ready"})
    three.await_ready("node1")
    three.orc("node", "promote", "node1")
    await_states(three, {"manager1": "ready", "manager2": "ready", "node1": "ready"})
