# SPDX-License-Identifier: Apache-2.0
"""Where tasks go: likings, strategies and devices, as a user sees them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from devcluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]


def places(cluster: Cluster, service: str) -> dict[str, int]:
    """Node → how many tasks of the service run there."""
    return dict(sorted(Counter(task["node"] for task in cluster.running(service)).items()))


def test_near_and_far(cluster: Cluster, hello: str) -> None:
    create = ("service", "create", "--name")
    cluster.orc(*create, "db", "--label", "tier=data", "--affinity", "node.hostname==node2", hello)
    cluster.orc(*create, "web", "--replicas", "3", "--affinity", "service==db", hello)
    assert places(cluster, "web") == {"node2": 3}
    cluster.orc(*create, "far", "--replicas", "2",
                "--anti-affinity", "service.labels.tier==data", hello)  # fmt: skip
    assert places(cluster, "far") == {"node1": 1, "node3": 1}
    cluster.orc(*create, "wish", "--replicas", "4", "--affinity", "service==db,weight=3", hello)
    assert places(cluster, "wish")["node2"] == 3
    cluster.orc(*create, "alone", "--replicas", "3", "--anti-affinity", "service==alone", hello)
    assert places(cluster, "alone") == {"node1": 1, "node2": 1, "node3": 1}
    cluster.orc("service", "scale", "-d", "alone=4")
    reason = "no suitable node (3 nodes: anti-affinity: a task with service==alone is there)"
    cluster.await_reason("alone", reason)
    cluster.orc("service", "update", "--anti-affinity-rm", "service==alone", "alone")
    assert sum(places(cluster, "alone").values()) == 4
    shown = cluster.orc("service", "inspect", "--pretty", "wish").stdout
    assert "affinity service==db,weight=3" in shown


def test_container_is_placed_by_its_affinities(cluster: Cluster, hello: str) -> None:
    on = ("--constraint", "node.hostname==node3")
    cluster.orc("service", "create", "--name", "db", *on, hello)
    id = cluster.orc("run", "-d", "--affinity", "service==db", hello).stdout.strip()
    [row] = [row for row in cluster.json("ps") if row["id"] == id]
    assert row["node"] == "node3"
    cluster.orc("rm", "-f", id)


def test_packed_or_spread(cluster: Cluster, hello: str) -> None:
    create = ("service", "create", "--name")
    cluster.orc(*create, "pack", "--replicas", "3", "--strategy", "binpack", hello)
    assert list(places(cluster, "pack").values()) == [3]
    assert cluster.json("cluster", "info")["strategy"] == "spread"
    cluster.orc("cluster", "update", "--strategy", "binpack")
    try:
        cluster.orc(*create, "more", "--replicas", "3", hello)
        assert places(cluster, "more") == places(cluster, "pack")
        cluster.orc(*create, "wide", "--replicas", "3", "--strategy", "spread", hello)
        assert places(cluster, "wide") == {"node1": 1, "node2": 1, "node3": 1}
        assert cluster.json("cluster", "info")["strategy"] == "binpack"
    finally:
        cluster.orc("cluster", "update", "--strategy", "spread")


def test_a_node_on_which_it_keeps_failing_is_avoided(cluster: Cluster, hello: str) -> None:
    cluster.exec("node1", "mkdir", "-p", "/run/broken")
    cluster.orc("service", "create", "--name", "web", "--restart-delay", "100ms", "--affinity",
                "node.hostname==node1,weight=9", "-v", "/run:/host:ro", "--entrypoint",
                "/bin/busybox sh -c", "--stop-grace-period", "100ms", hello,
                "test ! -e /host/broken && exec sleep 1000")  # fmt: skip
    try:

        def nodes(state: str) -> list[str]:
            return [task["node"] for task in cluster.tasks("web") if task["state"] == state]

        # On node1 it runs for a moment, too, before it fails.
        eventually(lambda: set(nodes("running")) & {"node2", "node3"})
        assert nodes("failed") == ["node1", "node1"]
    finally:
        cluster.exec("node1", "rmdir", "/run/broken")


def test_reason_says_when_no_node_can_ever_fit(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "-d", "--name", "x", "--reserve-memory", "500g", hello)
    reason = "unschedulable: no node has enough capacity (3 nodes: insufficient memory)"
    cluster.await_reason("x", reason)


@pytest.fixture
def gpus(cluster: Cluster, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Two devices that node2 offers."""
    # Dev hosts share this machine's /dev, so the names are the cluster's own.
    names = (f"/dev/{cluster.name}-gpu0", f"/dev/{cluster.name}-gpu1")
    for name, minor in zip(names, (3, 5), strict=True):
        cluster.exec("node2", "sh", "-c", f"rm -f {name}; mknod {name} c 1 {minor}")
    cluster.stop("node2")
    edits = {"env": ["CARD=first"], "deviceNodes": [{"path": "/dev/tpu0", "hostPath": names[0]}]}
    specification = {"cdiVersion": "0.6.0", "kind": "v.example/tpu",
                     "devices": [{"name": "t0", "containerEdits": edits}]}  # fmt: skip
    (tmp_path / "tpu.json").write_text(json.dumps(specification))
    cluster.dev("start", "node2", "--", "--generic-resource", f"gpu={','.join(names)}",
                "--generic-resource", "licence=3", "--cdi-spec-dir", str(tmp_path),
                "--generic-resource", "tpu=v.example/tpu=t0")  # fmt: skip
    cluster.await_ready("node2")
    yield names
    cluster.stop("node2")
    cluster.start("node2")
    cluster.exec("node2", "rm", *names)


def test_devices_are_counted_given_and_given_back(
    cluster: Cluster, hello: str, gpus: tuple[str, str]
) -> None:
    eventually(lambda: cluster.nodes()["node2"]["generic_resources"])
    create = ("service", "create", "--entrypoint", "/bin/busybox sleep 1000",
              "--stop-grace-period", "100ms", "--name")  # fmt: skip
    cluster.orc(*create, "web", "--generic-resource", "gpu=1", "--replicas", "2", hello)
    assert places(cluster, "web") == {"node2": 2}
    told = [
        cluster.orc("exec", f"web.{n}", "/bin/busybox", "sh", "-c",
                    f"echo $DOCKER_RESOURCE_GPU; ls /dev/{cluster.name}-gpu*").stdout.split()
        for n in (1, 2)
    ]  # fmt: skip
    assert sorted(told) == [[gpus[0], gpus[0]], [gpus[1], gpus[1]]], "its own, and no other"
    about = cluster.nodes()["node2"]["generic_resources"]
    assert about["gpu"] == {"total": 2, "reserved": 2, "names": list(gpus)}
    cluster.orc(*create, "more", "--generic-resource", "gpu=1", "-d", hello)
    cluster.await_reason("more", "no suitable node (3 nodes: insufficient gpu)")
    cluster.orc("service", "update", "--generic-resource-rm", "gpu", "--force", "web")
    cluster.await_running("more", 1)
    env = cluster.orc("run", "--rm", "--generic-resource", "licence=2", "--entrypoint",
                      "/bin/busybox env", hello).stdout  # fmt: skip
    assert "DOCKER_RESOURCE_LICENCE=2" in env
    said = cluster.orc("run", "--rm", "--generic-resource", "tpu=device=t0", "--entrypoint",
                       "/bin/busybox", hello, "sh", "-c",
                       "echo $DOCKER_RESOURCE_TPU $CARD; ls -d /dev/tpu0")  # fmt: skip
    assert said.stdout.split() == ["v.example/tpu=t0", "first", "/dev/tpu0"]
