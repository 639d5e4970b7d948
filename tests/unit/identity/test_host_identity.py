# SPDX-License-Identifier: Apache-2.0
"""The identity files of a host, across versions."""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator.identity.host_identity import (
    ManagerIdentity,
    read_manager,
    read_node,
    remember,
    write_identity,
)

FIRST_RELEASE = {
    "manager_id": "m1",
    "cluster_id": "c1",
    "address": "10.0.0.1",
    "port": 7420,
    "network_cidr": "10.128.0.0/14",
    "worker_token": "w",
    "manager_token": "m",
    "certificate_lifetime": 0.0,
}
"""The `manager.json` of release 0.1.0, which refuses further keys."""


def test_the_first_release_reads_the_identity_of_a_manager(tmp_path: Path) -> None:
    path = tmp_path / "manager.json"
    path.write_text(json.dumps(FIRST_RELEASE))
    remember(tmp_path, peer_port=7425, managers=("10.0.0.1:7420", "10.0.0.2:7420"))
    assert json.loads(path.read_text()) == FIRST_RELEASE
    found = read_manager(tmp_path)
    assert found == ManagerIdentity(
        **FIRST_RELEASE,  # type: ignore[arg-type]
        peer_port=7425,
        managers=("10.0.0.1:7420", "10.0.0.2:7420"),
    )


def test_keys_of_a_newer_version_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "manager.json").write_text(json.dumps(FIRST_RELEASE | {"novel": 1}))
    assert read_manager(tmp_path) == ManagerIdentity(**FIRST_RELEASE)  # type: ignore[arg-type]
    node = {"node_id": "n", "cluster_id": "c", "role": "worker", "address": "", "managers": []}
    (tmp_path / "node.json").write_text(json.dumps(node | {"novel": 1}))
    assert read_node(tmp_path).node_id == "n"


def test_a_manager_that_joins_is_written_completely(tmp_path: Path) -> None:
    joining = ManagerIdentity(
        **FIRST_RELEASE,  # type: ignore[arg-type]
        initial_cluster="m1=https://10.0.0.1:7425",
        joining=True,
    )
    write_identity(tmp_path / "manager.json", joining)
    assert read_manager(tmp_path) == joining
