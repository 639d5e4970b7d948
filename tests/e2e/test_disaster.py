# SPDX-License-Identifier: Apache-2.0
"""A cluster loses its manager with all data. From a backup it goes on, and no container notices;
without one, its nodes join a new cluster."""

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
    """The image of `build`, in the cluster."""
    return build(doomed, tmp_path_factory.mktemp("box"))


def build(cluster: Cluster, folder: Path) -> str:
    """Build an image with busybox and nothing else in the cluster; its name."""
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, folder / "busybox")
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY busybox /bin/busybox\n")
    cluster.orc("build", "-t", "box:1", str(folder))
    return "box:1"


def lives(cluster: Cluster, task: dict[str, Any]) -> bool:
    """Whether the process of a task runs on its node."""
    done = cluster.exec(task["node"], "kill", "-0", str(task["pid"]), ok=False)
    return done.returncode == 0


def restore(cluster: Cluster, words: Path, backup: Path) -> None:
    """Lose the only manager with all data, and restore the cluster from a backup."""
    address = cluster.status()["manager1"]["address"]
    cluster.stop("manager1")
    data = cluster.data("manager1")
    shutil.rmtree(data)
    cluster.exec(
        "manager1", ORC, "cluster", "restore", "--advertise", address, "--data-dir", str(data),
        "--context", "restored", "--passphrase-file", str(words), str(backup),
    )  # fmt: skip
    cluster.start("manager1")
    cluster.await_ready()


def answer(cluster: Cluster, task: dict[str, Any]) -> str:
    """What the web server of a task answers to its node."""
    [address] = task["addresses"].values()
    command = ("busybox", "wget", "-q", "-T", "5", "-O", "-", f"http://{address}/hello")
    return cluster.exec(task["node"], *command).stdout


def test_a_restore_stops_no_container(doomed: Cluster, box: str, tmp_path: Path) -> None:
    words, backup = tmp_path / "passphrase", tmp_path / "cluster.orcbackup"
    words.write_text("correct horse battery")
    known = doomed.script("known", box, "exec busybox sleep 3600", "--replicas", "4")
    doomed.orc("cluster", "backup", "--passphrase-file", str(words), str(backup))
    later = doomed.script("later", box, "exec busybox sleep 3600", "--replicas", "2")

    restore(doomed, words, backup)
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


SERVE = "busybox mkdir -p /www; echo hello > /www/hello; exec busybox httpd -f -p 80 -h /www"


def test_orphans_answer_and_are_adopted_or_removed(
    doomed: Cluster, box: str, tmp_path: Path
) -> None:
    words, backup = tmp_path / "passphrase", tmp_path / "cluster.orcbackup"
    words.write_text("correct horse battery")
    known = doomed.script("web", box, SERVE, "--replicas", "1")
    doomed.orc("cluster", "backup", "--passphrase-file", str(words), str(backup))
    doomed.orc("service", "scale", "web=3")
    scaled = {task["slot"]: task for task in doomed.await_running("web", 3)}
    newer = doomed.script("newer", box, SERVE, "--replicas", "3")
    orphans = [*newer, scaled[2], scaled[3]]

    restore(doomed, words, backup)
    eventually(
        lambda: {row["id"] for row in doomed.json("orphan", "ls")} == {t["id"] for t in orphans}
    )
    marked = {row["id"]: row for row in doomed.json("ps") if row["state"] == "orphan"}
    assert marked.keys() == {task["id"] for task in orphans}
    for task in orphans:
        assert answer(doomed, task) == "hello\n"
        listed = {row["id"]: row["state"] for row in doomed.json("node", "ps", task["node"])}
        assert listed[task["id"]] == "orphan"

    # A replica of a service that the backup knows, one of a service that is created anew, one that
    # becomes a standalone container, and one that goes.
    first, kept, gone = sorted(newer, key=lambda task: int(task["slot"]))
    [again] = doomed.script("newer", box, SERVE, "--replicas", "1")
    doomed.orc("orphan", "adopt", scaled[2]["id"], first["id"])
    doomed.orc("orphan", "adopt", "--standalone", "--name", "kept", kept["id"])
    doomed.orc("orphan", "rm", gone["id"])
    assert not lives(doomed, gone)
    doomed.orc("orphan", "adopt", "--all")
    assert doomed.json("orphan", "ls") == []

    replicas = {task["slot"]: task for task in doomed.await_running("web", 3)}
    for slot, before in {1: known[0], 2: scaled[2], 3: scaled[3]}.items():
        assert (replicas[slot]["id"], replicas[slot]["pid"]) == (before["id"], before["pid"])
        assert answer(doomed, replicas[slot]) == "hello\n"
    eventually(lambda: not lives(doomed, again))
    [only] = doomed.await_running("newer", 1)
    assert (only["id"], only["pid"]) == (first["id"], first["pid"])
    [container] = [row for row in doomed.json("ps") if row["name"] == "kept"]
    assert (container["id"], container["pid"]) == (kept["id"], kept["pid"])
    assert container["state"] == "running"
    assert answer(doomed, container) == "hello\n"
    # It is a container like any other now.
    assert doomed.orc("exec", "kept", "busybox", "cat", "/www/hello").stdout == "hello\n"
    doomed.orc("rm", "--force", "kept")
    eventually(lambda: not lives(doomed, kept))


@pytest.fixture
def moving(spare_cluster: Callable[[str], Cluster]) -> Iterator[Cluster]:
    cluster = spare_cluster("moving")
    cluster.dev("up", "--nodes", "1")
    yield cluster
    cluster.dev("down")


def unused_address(cluster: Cluster, number: int) -> str:
    """An unused address on the hosts' network."""
    return f"{cluster.status()['manager1']['address'].rpartition('.')[0]}.{number}"


def find_again(cluster: Cluster, address: str, task: dict[str, Any]) -> None:
    """Start the manager on its host, which gets another address, and set that at the agent and in
    the context. The container is the same as before."""
    cluster.dev("start", "manager1")
    # Not before: a host that is started has the address that it was made with.
    cluster.exec("manager1", "ip", "-4", "address", "flush", "dev", "eth0")
    cluster.exec("manager1", "ip", "address", "add", f"{address}/24", "dev", "eth0")
    node = str(cluster.data("node1"))
    cluster.exec("node1", ORC, "cluster", "reconnect", "--data-dir", node, address)
    cluster.orc("context", "update", "--endpoint", address)
    cluster.await_ready("node1")
    [manager] = cluster.json("manager", "ls")
    assert manager["address"].startswith(f"{address}:")
    [same] = cluster.await_running("web", 1)
    assert (same["id"], same["pid"]) == (task["id"], task["pid"])


def test_the_only_manager_is_found_at_other_addresses(moving: Cluster, tmp_path: Path) -> None:
    words, backup = tmp_path / "passphrase", tmp_path / "cluster.orcbackup"
    words.write_text("correct horse battery")
    (tmp_path / "box").mkdir()
    box = build(moving, tmp_path / "box")
    [task] = moving.script("web", box, "exec busybox sleep 3600")
    moving.orc("cluster", "backup", "--passphrase-file", str(words), str(backup))
    data = moving.data("manager1")

    moving.stop("manager1")
    address = unused_address(moving, 201)
    moving.exec("manager1", ORC, "cluster", "advertise", "--data-dir", str(data), address)
    find_again(moving, address, task)

    moving.stop("manager1")
    address = unused_address(moving, 202)
    shutil.rmtree(data)
    moving.exec(
        "manager1", ORC, "cluster", "restore", "--advertise", address, "--data-dir", str(data),
        "--context", "restored", "--passphrase-file", str(words), str(backup),
    )  # fmt: skip
    find_again(moving, address, task)
    moving.orc("service", "scale", "web=2")
    assert len(moving.await_running("web", 2)) == 2


def test_nodes_of_a_lost_cluster_join_a_new_one(moving: Cluster, tmp_path: Path) -> None:
    box = build(moving, tmp_path)
    keep = "echo kept > /data/file; exec busybox sleep 3600"
    [old] = moving.script("db", box, keep, "--mount", "type=volume,source=data,target=/data")
    address = moving.status()["manager1"]["address"]
    moving.stop("manager1")
    shutil.rmtree(moving.data("manager1"))

    data = ("--data-dir", str(moving.data("manager1")))
    moving.exec(
        "manager1", ORC, "cluster", "init", "--advertise", address, *data, "--context", "anew"
    )
    (tmp_path / "anew.json").write_text(
        moving.exec("manager1", ORC, "context", "export", "anew", "-").stdout
    )
    moving.orc("context", "import", "anew", str(tmp_path / "anew.json"))
    moving.dev("start", "manager1")
    eventually(lambda: moving.orc("cluster", "info").stdout)
    assert lives(moving, old)
    moving.stop("node1")
    (moving.data("node1") / "node.json").unlink()
    token = moving.orc("cluster", "token", "worker", "-q").stdout.strip()
    data = ("--data-dir", str(moving.data("node1")))
    moving.exec("node1", ORC, "cluster", "join", "--token", token, *data, f"{address}:7421")
    assert lives(moving, old)
    moving.start("node1")
    moving.await_ready("node1")
    eventually(lambda: not lives(moving, old))

    box = build(moving, tmp_path)
    read = "busybox cat /data/file; exec busybox sleep 3600"
    moving.script("db", box, read, "--mount", "type=volume,source=data,target=/data")
    eventually(lambda: "kept" in moving.orc("service", "logs", "db").stdout)


def test_a_node_that_joined_since_keeps_its_containers(moving: Cluster, tmp_path: Path) -> None:
    words, backup = tmp_path / "passphrase", tmp_path / "cluster.orcbackup"
    words.write_text("correct horse battery")
    (tmp_path / "box").mkdir()
    box = build(moving, tmp_path / "box")
    moving.orc("cluster", "backup", "--passphrase-file", str(words), str(backup))
    moving.dev("up", "--nodes", "2")
    [late] = moving.script("late", box, SERVE, "--constraint", "node.hostname==node2")

    restore(moving, words, backup)
    assert moving.nodes().keys() == {"node1"}
    assert lives(moving, late)
    moving.stop("node2")
    data = ("--data-dir", str(moving.data("node2")))
    moving.exec("node2", ORC, "cluster", "leave", *data)
    token = moving.orc("cluster", "token", "worker", "-q").stdout.strip()
    manager = moving.status()["manager1"]["address"]
    moving.exec("node2", ORC, "cluster", "join", "--token", token, *data, f"{manager}:7421")
    moving.start("node2")
    moving.await_ready("node1", "node2")

    def reported() -> bool:
        [orphan] = moving.json("orphan", "ls")
        return bool(orphan["id"] == late["id"] and orphan["node"] == "node2")

    eventually(reported)
    moving.orc("orphan", "adopt", "--name", "kept", late["id"])
    [container] = moving.json("ps")
    assert (container["id"], container["pid"]) == (late["id"], late["pid"])
    assert answer(moving, container) == "hello\n"
