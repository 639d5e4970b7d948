# SPDX-License-Identifier: Apache-2.0
"""A cluster loses its manager with all data, and goes on from a backup. No container notices."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from devcluster import Cluster, eventually

ORC = str(Path(sys.executable).with_name("orc"))


@pytest.fixture(scope="module")
def doomed(spare_cluster: Callable[[str], Cluster]) -> Iterator[Cluster]:
    cluster = spare_cluster("doomed")
    cluster.dev("up", "--nodes", "2")
    yield cluster
    cluster.dev("down")


@pytest.fixture(scope="module")
def box(doomed: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with busybox and nothing else, built in the cluster; its name."""
    folder = tmp_path_factory.mktemp("box")
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, folder / "busybox")
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY busybox /bin/busybox\n")
    doomed.orc("build", "-t", "box:1", str(folder))
    return "box:1"


def lives(cluster: Cluster, task: dict[str, Any]) -> bool:
    """Whether the process of a task runs on its node."""
    done = cluster.exec(task["node"], "kill", "-0", str(task["pid"]), ok=False)
    return done.returncode == 0


def test_a_restore_stops_no_container(doomed: Cluster, box: str, tmp_path: Path) -> None:
    words, backup = tmp_path / "passphrase", tmp_path / "cluster.orcbackup"
    words.write_text("correct horse battery")
    known = doomed.script("known", box, "exec busybox sleep 3600", "--replicas", "4")
    doomed.orc("cluster", "backup", "--passphrase-file", str(words), str(backup))
    later = doomed.script("later", box, "exec busybox sleep 3600", "--replicas", "2")

    address = doomed.status()["manager1"]["address"]
    doomed.stop("manager1")
    data = doomed.data("manager1")
    shutil.rmtree(data)
    doomed.exec(
        "manager1", ORC, "cluster", "restore", "--advertise", address, "--data-dir", str(data),
        "--context", "restored", "--passphrase-file", str(words), str(backup),
    )  # fmt: skip
    doomed.start("manager1")
    doomed.await_ready()

    again = doomed.await_running("known", 4)
    assert {(task["id"], task["pid"]) for task in again} == {
        (task["id"], task["pid"]) for task in known
    }
    assert "later" not in {row["name"] for row in doomed.json("service", "ls")}
    for task in later:
        assert lives(doomed, task)

        def told(task: dict[str, Any] = task) -> bool:
            [node] = doomed.json("node", "inspect", task["node"])
            return f"({task['id']})" in node["trouble"]

        eventually(told)
    for node in {task["node"] for task in later}:
        doomed.orc("node", "update", "--remove-orphans", node)
    eventually(lambda: not any(lives(doomed, task) for task in later))
    assert {task["pid"] for task in doomed.running("known")} == {task["pid"] for task in known}
