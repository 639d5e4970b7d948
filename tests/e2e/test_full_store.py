# SPDX-License-Identifier: Apache-2.0
"""A store that is full makes the cluster read-only until it has room. No container notices."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from devcluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(600)]

MANAGERS = ("manager1", "manager2", "manager3")
LARGE = 400_000


def quota(cluster: Cluster, size: str) -> None:
    """Restart one manager after the other with a quota."""
    for host in MANAGERS:
        cluster.stop(host)
        cluster.dev("start", host, "--", "--etcd-quota", size)


@pytest.fixture(scope="module")
def crowded(spare_cluster: Callable[[str], Cluster]) -> Iterator[Cluster]:
    cluster = spare_cluster("crowded")
    cluster.dev("up", "--managers", "3", "--nodes", "2")
    quota(cluster, "16m")
    cluster.await_ready()
    yield cluster
    cluster.dev("down")


@pytest.fixture(scope="module")
def box(crowded: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with busybox and nothing else, built in the cluster; its name."""
    folder = tmp_path_factory.mktemp("box")
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, folder / "busybox")
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY busybox /bin/busybox\n")
    crowded.orc("build", "-t", "box:1", str(folder))
    return "box:1"


def test_a_full_store_is_left_by_a_larger_quota(crowded: Cluster, box: str, tmp_path: Path) -> None:
    tasks = crowded.script("web", box, "exec busybox sleep 3600", "--replicas", "4")
    large = tmp_path / "large"
    large.write_bytes(b"x" * LARGE)
    created: list[str] = []

    def fill() -> str:
        """Create configs until one is refused; the reason."""
        while True:
            name = f"c{len(created)}"
            done = crowded.orc("config", "create", name, str(large), ok=False)
            if done.returncode:
                return str(done.stderr)
            created.append(name)

    # The leader makes room once, where history has filled the database.
    eventually(lambda: "database is full" in fill() and is_full(crowded), every=2.0)
    assert len(created) > 10
    refused = crowded.refused("service", "scale", "web=5")
    assert "database is full" in refused, refused
    assert {task["pid"] for task in crowded.running("web")} == {task["pid"] for task in tasks}

    quota(crowded, "256m")
    eventually(lambda: not is_full(crowded))
    eventually(lambda: crowded.orc("config", "rm", *created, ok=False).returncode == 0)
    crowded.await_ready()
    crowded.orc("service", "scale", "web=5")
    crowded.await_running("web", 5)
    assert {task["pid"] for task in tasks} <= {task["pid"] for task in crowded.running("web")}
    assert len(crowded.orc("manager", "store", "defrag").stdout.splitlines()) == 3


def is_full(cluster: Cluster) -> bool:
    """Whether a member has raised an alarm."""
    return any(row["alarms"] for row in cluster.json("manager", "store", "status"))
