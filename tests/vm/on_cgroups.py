# SPDX-License-Identifier: Apache-2.0
"""A service's life on a host with one version of cgroups, on which no other test relies.

Started as `pytest tests/vm/on_cgroups.py`, inside a virtual machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from devcluster import Cluster, eventually

ROOT = Path("/sys/fs/cgroup")
V2 = (ROOT / "cgroup.controllers").exists()

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(1500)]


def groups() -> set[Path]:
    """Every cgroup but the roots."""
    roots = [ROOT] if V2 else [tree for tree in ROOT.iterdir() if not tree.is_symlink()]
    return {group for root in roots for group in root.rglob("*") if group.is_dir()}


def interface(task: dict[str, Any], v1: str, v2: str) -> str:
    """What a file of a task's cgroup says: `controller/file` of version 1, `file` of version 2."""
    if V2:
        folder, name = ROOT, v2
    else:
        controller, _, name = v1.partition("/")
        folder = ROOT / controller
    (group,) = [path for path in folder.rglob(task["id"]) if path.is_dir()]
    return (group / name).read_text().strip()


def lives(tasks: list[dict[str, Any]]) -> dict[str, tuple[int, str]]:
    """What changes if a container is restarted: task id → (pid, start)."""
    return {task["id"]: (task["pid"], task["started_at"]) for task in tasks}


@pytest.fixture(scope="module", autouse=True)
def without_a_trace() -> Iterator[None]:
    """After the cluster, which is younger than this fixture, nothing of it is left."""
    before = groups(), set(os.listdir("/sys/class/net"))
    yield
    assert (groups(), set(os.listdir("/sys/class/net"))) == before
    assert not list(Path("/run/netns").iterdir())
    assert not [p for p in Path("/proc").glob("[0-9]*/comm") if p.read_text() in ("conmon\n",)]


def test_nodes_report_their_resources(cluster: Cluster) -> None:
    for name in cluster.nodes():
        (node,) = cluster.json("node", "inspect", name)
        assert node["cgroup"] == ("v2" if V2 else "v1")


def test_four_replicas_with_their_limits(cluster: Cluster, hello: str) -> None:
    cluster.orc(
        "service", "create", "-d", "--name", "web", "--replicas", "4", "--cpu-shares", "300",
        "--limit-memory", "64m", "--limit-cpu", "0.5", "--pids-limit", "50", hello,
    )  # fmt: skip
    for task in cluster.await_running("web", 4, within=180):
        assert interface(task, "memory/memory.limit_in_bytes", "memory.max") == str(64 << 20)
        assert interface(task, "pids/pids.max", "pids.max") == "50"
        if V2:
            # 300 of 1024 shares: crun has had two formulas for the weight.
            assert interface(task, "", "cpu.weight") in ("12", "36")
            assert interface(task, "", "cpu.max") == "50000 100000"
            assert interface(task, "", "memory.swap.max") == "0"
        else:
            assert interface(task, "cpu/cpu.shares", "") == "300"
            assert interface(task, "cpu/cpu.cfs_quota_us", "") == "50000"
    assert len({task["addresses"]["default"] for task in cluster.running("web")}) == 4


def test_a_page_from_a_container_on_the_other_host(cluster: Cluster) -> None:
    asker, *others = cluster.running("web")
    other = next(task for task in others if task["node"] != asker["node"])
    url = f"http://{other['addresses']['default']}/"
    page = cluster.in_network(asker, "busybox", "wget", "-q", "-T", "20", "-O-", url).stdout
    assert page


def test_restarted_agent_adopts_containers_after_a_kill(cluster: Cluster) -> None:
    before = lives(cluster.running("web"))
    restarts = cluster.status()["node1"]["restarts"]
    cluster.kill9("node1", "daemon")
    eventually(lambda: cluster.status()["node1"]["restarts"] > restarts, within=60)
    cluster.await_ready(within=120)
    cluster.orc("service", "scale", "-d", "web=6")
    tasks = cluster.await_running("web", 6, within=180)
    assert before.items() <= lives(tasks).items()
    # It watches what it adopted.
    victim = next(t for t in tasks if t["node"] == "node1" and t["id"] in before)
    cluster.kill9("node1", victim["pid"])

    def replaced() -> bool:
        running = {task["id"] for task in cluster.running("web")}
        return victim["id"] not in running and len(running) == 6

    eventually(replaced, within=120)


def test_task_over_its_memory_limit_has_a_reason(cluster: Cluster, hello: str) -> None:
    cluster.orc(
        "service", "create", "-d", "--name", "eater", "--limit-memory", "32m",
        "--restart-condition", "none", "--entrypoint", "/bin/busybox", hello,
        "dd", "if=/dev/zero", "of=/dev/null", "bs=200M",
    )  # fmt: skip
    eventually(lambda: [task["state"] for task in cluster.tasks("eater")] == ["failed"], within=120)
    (task,) = cluster.tasks("eater")
    assert task["oom_killed"] is True
    assert task["error"] == "out of memory (limit 32MiB)"


def test_removed_tasks_leave_no_cgroup(cluster: Cluster) -> None:
    pids = [task["pid"] for task in cluster.running("web")]
    ids = [task["id"] for task in (*cluster.tasks("web"), *cluster.tasks("eater"))]
    assert pids
    cluster.orc("service", "scale", "-d", "web=1")
    cluster.await_running("web", 1, within=120)
    cluster.orc("service", "rm", "-d", "web", "eater")
    eventually(lambda: not {path.name for path in groups()} & set(ids), within=120)
    assert cluster.json("service", "ls") == []
