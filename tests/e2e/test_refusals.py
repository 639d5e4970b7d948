# SPDX-License-Identifier: Apache-2.0
"""Bad input: one clear line each, and nothing changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from devcluster import ORC, Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nosuch:9"], ["no image 'nosuch:9'", "orc build"]),
        (["hello:2"], ["no image 'hello:2'", "did you mean 'hello:1'"]),
        (["--network", "nowhere", "hello:1"], ["no network 'nowhere'", "orc network ls"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_service_is_refused(
    cluster: Cluster, hello: str, arguments: list[str], words: list[str]
) -> None:
    line = cluster.refused("service", "create", "--name", "bad", *arguments)
    for word in words:
        assert word in line, line
    assert cluster.json("service", "ls") == []


def test_names_that_are_taken_or_wrong(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", hello)
    before = cluster.json("service", "inspect", "web")
    assert "service 'web' already exists" in cluster.refused(
        "service", "create", "--name", "web", hello
    )
    assert "Web Site" in cluster.refused("service", "create", "--name", "Web Site", hello)
    assert cluster.json("service", "inspect", "web") == before


def test_a_near_miss_is_suggested(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "frontend", hello)
    for command in (["ps"], ["inspect"], ["rm"], ["logs"], ["update", "--env-add", "A=1"]):
        line = cluster.refused("service", *command, "frontned")
        assert "did you mean 'frontend'" in line, line
    assert "did you mean 'frontend'" in cluster.refused("service", "scale", "frontned=2")
    assert "no service 'zzz'; see 'orc service ls'" in cluster.refused("service", "ps", "zzz")
    assert "did you mean 'node1'" in cluster.refused("node", "inspect", "nod1")


def test_a_port_that_is_in_use_waits_with_its_reason(cluster: Cluster, hello: str) -> None:
    port = "mode=host,published=18081,target=80"
    cluster.orc("service", "create", "--name", "a", "--replicas", "3", "-p", port, hello)
    cluster.orc("service", "create", "-d", "--name", "b", "-p", port, hello)
    cluster.await_reason("b", "no suitable node (3 nodes: port 18081/tcp in use)")
    assert cluster.task("b")["state"] == "pending"
    # Who waits for it is told.
    done = cluster.orc("service", "scale", "--timeout", "500ms", "b=1", ok=False)
    assert done.returncode == 3
    assert "port 18081/tcp in use" in done.stderr
    # It is placed the moment it fits.
    cluster.orc("service", "rm", "-d", "a")
    cluster.await_running("b", 1)


def test_full_cluster_names_the_missing_resource(cluster: Cluster, hello: str) -> None:
    total = min(node["memory_total"] for node in cluster.nodes().values())
    over = str(total * 6 // 10)
    cluster.orc(
        "service", "create", "-d", "--name", "big", "--replicas", "4", "--reserve-memory", over,
        hello,
    )  # fmt: skip
    cluster.await_reason("big", "no suitable node (3 nodes: insufficient memory)")
    cluster.await_running("big", 3)
    for node in cluster.nodes().values():
        assert node["memory_reserved"] <= node["memory_total"]
    cluster.orc("service", "scale", "big=3")
    assert len(cluster.running("big")) == 3


def test_unreachable_manager_is_named_with_checks_to_make(
    cluster: Cluster, hello: str, tmp_path: Path
) -> None:
    cluster.stop("manager1")
    line = cluster.refused("node", "ls")
    assert ":7420" in line
    assert "is 'orc manager' running there" in line


def test_a_wrong_token_and_a_second_join(cluster: Cluster) -> None:
    address = cluster.json("cluster", "info")["join_address"]
    token = cluster.orc("cluster", "token", "worker", "-q").stdout.strip()
    for wrong, words in (
        (token[:-1] + ("a" if token[-1] != "a" else "b"), "not valid"),
        ("ORC-1-" + "0" * 64 + token[-31:], "its CA differs"),
        ("SWMTKN-1-x", "not a join token"),
    ):
        done = cluster.exec(
            "node1", ORC, "cluster", "join", "--token", wrong, "--data-dir", "/run/x", address,
            ok=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert words in done.stderr
    assert "node.json" not in cluster.exec("node1", "ls", "/run/x", ok=False).stdout
    assert len(cluster.nodes()) == 3


def test_removed_node_is_refused(cluster: Cluster) -> None:
    cluster.dev("up", "--nodes", "4")
    try:
        assert "is up" in cluster.refused("node", "rm", "node4")
        cluster.power_off("node4")
        eventually(lambda: cluster.nodes()["node4"]["state"] == "down")
        cluster.orc("node", "rm", "node4")
        assert set(cluster.nodes()) == {"node1", "node2", "node3"}
        assert "node4" not in str(cluster.json("network", "inspect", "default"))
    finally:
        cluster.power_off("node4")


def test_labels_with_special_characters(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "odd", "--label", "a b=c d", "--label", "ü=ö",
                "--label", "lines=one\ntwo", hello)  # fmt: skip
    assert cluster.json("service", "inspect", "odd")[0]["spec"]["labels"]["lines"] == "one\ntwo"
    shown = cluster.orc("service", "inspect", "--pretty", "odd").stdout
    assert "a b=c d, lines=one\\ntwo, ü=ö" in shown
    assert "cannot be shown" in cluster.refused("node", "update", "--label-add", "a\nb=1", "node1")
    assert cluster.nodes()["node1"]["labels"] == {}
