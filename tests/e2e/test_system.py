# SPDX-License-Identifier: Apache-2.0
"""Disk usage of the nodes, and what may go: `system df`, `prune`, `info`, `check`."""

from __future__ import annotations

import pytest
from devcluster import Cluster

pytestmark = pytest.mark.root

BOX = ("--entrypoint", "/bin/busybox")


def totals(cluster: Cluster) -> dict[str, dict[str, int]]:
    return {row["type"]: row for row in cluster.json("system", "df")}


def test_system_prune_removes_only_unused_objects(cluster: Cluster, hello: str) -> None:
    cluster.orc("run", "-d", "--name", "kept", "-v", "/data", *BOX, hello, "sleep", "1000")
    write = ("sh", "-c", "head -c 3000000 /dev/urandom > /file")
    cluster.orc("run", "--name", "done", "--label", "tier=db", "-v", "/data", *BOX, hello, *write)
    (row,) = cluster.json("ps", "-a", "-s", "--filter", "name=done")
    assert 3_000_000 <= row["size"] < 3_200_000
    found = totals(cluster)
    assert (found["Containers"]["total"], found["Containers"]["active"]) == (2, 1)
    assert found["Containers"]["reclaimable"] >= 3_000_000
    assert found["Images"]["size"] > found["Images"]["reclaimable"]
    assert found["Volumes"]["total"] == 2
    assert hello in cluster.orc("system", "df", "-v").stdout

    assert (
        "reclaimed space: 0B"
        in cluster.orc("container", "prune", "-f", "--filter", "label=tier=web").stdout
    )
    assert (
        "reclaimed space: 0B"
        in cluster.orc("container", "prune", "-f", "--filter", "until=1h").stdout
    )
    pruned = cluster.orc("container", "prune", "-f", "--filter", "label=tier=db").stdout
    assert pruned.splitlines()[0] == "done"
    assert "reclaimed space: 3" in pruned
    assert [row["name"] for row in cluster.json("ps", "-a")] == ["kept"]

    # Nobody is at the terminal to say yes.
    refused = cluster.orc("system", "prune", ok=False)
    assert "This removes all stopped containers" in refused.stderr
    assert refused.returncode != 0
    cluster.orc("system", "prune", "-f", "--volumes")
    found = totals(cluster)
    assert (found["Containers"]["total"], found["Volumes"]["total"]) == (1, 1)
    assert hello in {f"{row['repository']}:{row['tag']}" for row in cluster.json("images")}
    cluster.orc("rm", "-fv", "kept")


def test_the_cluster_in_figures(cluster: Cluster, hello: str) -> None:
    row = cluster.json("info")
    assert row["nodes"] == row["nodes_ready"] == len(cluster.nodes())
    assert row["images"] == len({image["id"] for image in cluster.json("images")})
    assert cluster.orc("system", "info", "-f", "{{.NodesReady}}").stdout == f"{row['nodes']}\n"


def test_system_top_shows_resource_usage_of_nodes(cluster: Cluster, hello: str) -> None:
    cluster.orc(
        "run", "-d", "--name", "busy", "--node", "node1", "--cpus", "0.3",
        *BOX, hello, "sh", "-c", "while :; do :; done",
    )  # fmt: skip
    rows = {row["hostname"]: row for row in cluster.json("system", "top", "--no-stream")}
    assert rows.keys() == cluster.nodes().keys()
    assert rows["node1"]["containers"] == 1
    assert 0 < rows["node1"]["cpu_percent"] < 100, "three tenths of a core are its limit"
    assert all(row["containers"] == 0 for name, row in rows.items() if name != "node1")
    cluster.orc("rm", "-f", "busy")


def test_a_host_is_checked_before_it_joins(cluster: Cluster) -> None:
    findings = {row["check"]: row for row in cluster.json("system", "check")}
    assert all(row["ok"] for row in findings.values() if row["needed"])
    lacking = cluster.orc("system", "check", "--runtime", "no-such-runtime", ok=False)
    assert lacking.returncode == 1
    assert lacking.stderr == "orc: this host cannot be a node yet: no-such-runtime\n"
