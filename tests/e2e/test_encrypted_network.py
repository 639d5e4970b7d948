# SPDX-License-Identifier: Apache-2.0
"""An encrypted network on nodes whose kernel has no WireGuard, as this machine's has none."""

from __future__ import annotations

from pathlib import Path

import pytest
from devcluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

REASON = "its kernel has no WireGuard, for encrypted network secret"


def test_its_tasks_wait_with_a_reason(cluster: Cluster, hello: str) -> None:
    if Path("/sys/module/wireguard").exists():
        pytest.fail("this kernel has WireGuard: what is tried here is one that has none")
    made = cluster.orc("network", "create", "--opt", "encrypted", "--attachable", "secret")
    assert made.stderr == (
        "no node can encrypt: load WireGuard into its kernel (modprobe wireguard) and restart"
        " its agent\n"
    )
    try:
        rows = {row["name"]: row for row in cluster.json("network", "ls")}
        assert (rows["secret"]["encrypted"], rows["default"]["encrypted"]) == (True, False)
        assert cluster.json("network", "inspect", "secret")[0]["encrypted"] is True
        cluster.orc("service", "create", "-d", "--name", "quiet", "--network", "secret", hello)
        count = len(cluster.nodes())

        def waits() -> bool:
            task = cluster.task("quiet")
            return task["state"] == "pending" and f"{count} nodes: {REASON}" in task["error"]

        eventually(waits)
        # A published port does not bring it to nodes that cannot have it.
        cluster.orc("service", "update", "-d", "--publish-add", "18777:80", "quiet")
        log = Path(cluster.status()["node1"]["log"]).read_text()
        assert "network secret cannot be applied" not in log
        assert "has no WireGuard" in cluster.refused("node", "update", "--rotate-key", "node1")
    finally:
        cluster.orc("service", "rm", "-d", "quiet", ok=False)
        cluster.orc("network", "rm", "secret")
