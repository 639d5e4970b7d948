# SPDX-License-Identifier: Apache-2.0
"""The CA of a cluster is replaced while leaders are killed. No container notices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from devcluster import Cluster, eventually
from test_disaster import build

from orchestrator.identity.certificates import TlsFiles, issuer_key_id, own_key_id

MANAGERS = ("manager1", "manager2", "manager3")
NODES = ("node1", "node2")


@pytest.fixture(scope="module")
def rotated(spare_cluster: Callable[[str], Cluster]) -> Iterator[Cluster]:
    cluster = spare_cluster("rotated")
    cluster.dev("up", "--managers", "3", "--nodes", "2")
    yield cluster
    cluster.dev("down")


def status(cluster: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = cluster.json("cluster", "ca", "status")
    return found


def kill_the_leader(cluster: Cluster) -> None:
    """SIGKILL to the leader; it starts again once another one leads."""

    def leader() -> str:
        rows = cluster.json("manager", "ls")
        return next((row["hostname"] for row in rows if row["leader"]), "")

    killed = eventually(leader)
    cluster.power_off(killed)
    eventually(lambda: leader() not in ("", killed))
    cluster.start(killed)


def test_containers_do_not_notice_a_new_ca(rotated: Cluster, tmp_path: Path) -> None:
    box = build(rotated, tmp_path)
    tasks = rotated.script("web", box, "exec busybox sleep 3600", "--replicas", "4")
    first = status(rotated)["digest"]

    rotated.orc("cluster", "ca", "rotate")
    kill_the_leader(rotated)
    eventually(lambda: status(rotated)["phase"] != "trusting")
    kill_the_leader(rotated)

    def over() -> bool:
        found = status(rotated)
        waits = [f"{each['name']}: {each['reason']}" for each in found["members"]]
        assert found["phase"] == "idle", waits
        return True

    eventually(over)
    assert status(rotated)["digest"] != first
    rotated.await_ready()
    again = rotated.await_running("web", 4)
    assert {(task["id"], task["pid"]) for task in again} == {
        (task["id"], task["pid"]) for task in tasks
    }

    def renewed() -> bool:
        roots = set()
        for host in (*MANAGERS, *NODES):
            name = "manager" if host in MANAGERS else "node"
            files = TlsFiles.of(rotated.data(host), name)
            root = files.ca.read_text()
            roots.add(root)
            assert root.count("BEGIN CERTIFICATE") == 1, f"{host} trusts the former CA"
            assert issuer_key_id(files.pair.read().certificate) == own_key_id(root), host
        assert len(roots) == 1
        return True

    eventually(renewed)
    # What is new reaches the nodes, and what nodes fetch from each other.
    rotated.script("later", box, "exec busybox sleep 3600", "--replicas", "2")
    rotated.orc("exec", again[0]["id"], "/bin/busybox", "true")
