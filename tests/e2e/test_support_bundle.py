# SPDX-License-Identifier: Apache-2.0
"""The support bundle of a real cluster, with a node down, and with no manager at all."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest
from devcluster import Cluster, eventually

pytestmark = pytest.mark.root

ENV = {"DB_PASSWORD": "zebra-crossing", "URL": "redis://u:tigertiger@db", "PLAIN": "antelope77"}


def bundle(cluster: Cluster, folder: Path) -> dict[str, str]:
    target = folder / "bundle.tar.gz"
    assert cluster.orc("support-bundle", "-o", str(target)).stdout == f"{target}\n"
    with tarfile.open(target) as archive:
        return {
            each.name.partition("/")[2]: archive.extractfile(each).read().decode()  # type: ignore[union-attr]
            for each in archive.getmembers()
        }


def test_support_bundle_has_all_hosts_and_no_secrets(
    cluster: Cluster, hello: str, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("kangaroo-in-a-secret")
    cluster.orc("secret", "create", "bundled", str(tmp_path / "secret"))
    env = [word for name, value in ENV.items() for word in ("-e", f"{name}={value}")]
    there = ("--constraint", "node.hostname==node1")
    cluster.orc("service", "create", "--name", "told", "--secret", "bundled", *env, *there, hello)
    cluster.orc("run", "-d", "--name", "alone", *env, hello)
    token = re.findall(r"ORC-1-\w+-(\w+)", cluster.orc("cluster", "token", "worker").stdout)[0]
    texts = [path.read_text() for path in cluster.data("manager1").glob("*.key")]
    # Of a PEM file its first line of data.
    keys = [(text.splitlines()[1:] or [text.strip()])[0] for text in texts]
    assert keys
    cluster.stop("node3")
    try:
        found = bundle(cluster, tmp_path)
    finally:
        cluster.start("node3")
    everything = "".join(found.values())
    for secret in (*ENV.values(), "tigertiger", "kangaroo-in-a-secret", token, *keys):
        assert secret not in everything
    assert "agent started" in found["node1/log/agent.log"]
    assert '"name": "told.1"' in found["node1/tasks.json"]
    assert "table inet" in found["node2/network/nftables.txt"]
    assert found["node1/network/drift.json"] == "[]\n"
    manager = next(name.partition("/")[0] for name in found if name.startswith("manager-"))
    assert "msg=serving" in found[f"{manager}/log/manager.log"]
    assert f"{manager}/log/etcd.log" in found
    assert '"name": "told"' in found["cluster/services.json"]
    assert '"hostname": "node3"' in found["cluster/nodes.json"]
    assert '"action": "create"' in found["cluster/events.json"]
    assert "node node3" in found["problems.txt"]

    cluster.stop("manager1")
    try:
        found = bundle(cluster, tmp_path)
    finally:
        cluster.start("manager1")
    assert "cannot reach a manager" in found["problems.txt"]
    # The agents run on this host, so their logs are found without a manager.
    logs = [text for name, text in found.items() if name.startswith("here/log/agent-")]
    assert any("session opened" in text for text in logs)
    eventually(lambda: cluster.orc("node", "ls", ok=False).returncode == 0)
    cluster.await_ready("node1", "node2", "node3")
    cluster.orc("service", "rm", "-d", "told")
    cluster.orc("rm", "-f", "alone")
    eventually(lambda: cluster.orc("secret", "rm", "bundled", ok=False).returncode == 0)
