# SPDX-License-Identifier: Apache-2.0
"""The identity files of a host, across versions."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest

from orchestrator.identity import ca
from orchestrator.identity.certificates import TlsFiles
from orchestrator.identity.host_identity import (
    ManagerIdentity,
    NoIdentity,
    check_certificates,
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


@pytest.mark.parametrize("name", ["manager.json", "membership.json", "node.json"])
@pytest.mark.parametrize("left", [b"", b'{"manager_id": "m', bytes(64), b"\xff\xfe", b"[]"])
def test_a_damaged_identity_is_named_with_the_remedy(
    tmp_path: Path, name: str, left: bytes
) -> None:
    write_identity(tmp_path / "manager.json", ManagerIdentity(**FIRST_RELEASE))  # type: ignore[arg-type]
    (tmp_path / name).write_bytes(left)
    with pytest.raises(NoIdentity, match=f"{name} is damaged .*join again"):
        (read_node if name == "node.json" else read_manager)(tmp_path)


@pytest.mark.parametrize("name", ["ca.pem", "manager.pem", "manager.key"])
@pytest.mark.parametrize("left", [b"", b"-----BEGIN CERT", b"\xb5\xaa" * 32])
def test_a_damaged_certificate_or_key_is_named(tmp_path: Path, name: str, left: bytes) -> None:
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    root = ca.new_ca("c1", now)
    issued = ca.issue(
        root,
        common_name="m1",
        role="manager",
        cluster_id="c1",
        now=now,
        lifetime=dt.timedelta(days=1),
    )
    (tmp_path / "ca.pem").write_text(root.certificate)
    TlsFiles.of(tmp_path, "manager").pair.replace(issued)
    check_certificates(tmp_path, "manager")
    (tmp_path / name).write_bytes(left)
    with pytest.raises(NoIdentity, match=f"{name}.* cannot be used .*copy"):
        check_certificates(tmp_path, "manager")
