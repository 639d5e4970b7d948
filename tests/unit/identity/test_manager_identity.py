# SPDX-License-Identifier: Apache-2.0
"""A manager's identity: the file that version 0.1 reads has no fields that it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.identity.host_identity import (
    ManagerIdentity,
    NoIdentity,
    read_manager,
    remember,
    retire_manager,
    write_identity,
)

IDENTITY = ManagerIdentity("m1", "c1", "10.0.0.1", 7420, "10.128.0.0/14", "w", "m", 60.0)
FIELDS_OF_0_1 = {
    *("manager_id", "cluster_id", "address", "port", "network_cidr"),
    *("worker_token", "manager_token", "certificate_lifetime"),
}


def test_identity_is_read_back_and_stays_readable_for_0_1(tmp_path: Path) -> None:
    several = replace(
        IDENTITY, peer_port=7425, initial_cluster="a=b", joining=True, managers=("10.0.0.2:7420",)
    )
    write_identity(tmp_path / "manager.json", several)
    assert read_manager(tmp_path) == several
    assert json.loads((tmp_path / "manager.json").read_text()).keys() == FIELDS_OF_0_1
    assert remember(tmp_path, joining=False) == read_manager(tmp_path)
    assert read_manager(tmp_path) == replace(several, joining=False)


def test_an_identity_of_0_1_is_read(tmp_path: Path) -> None:
    write_identity(tmp_path / "manager.json", IDENTITY)
    (tmp_path / "membership.json").unlink()
    assert read_manager(tmp_path) == IDENTITY


def test_retired_manager_has_no_keys_and_names_the_next_step(tmp_path: Path) -> None:
    write_identity(tmp_path / "manager.json", IDENTITY)
    for name in ("ca.key", "cluster.key"):
        (tmp_path / name).write_text("secret")
    retire_manager(tmp_path)
    retire_manager(tmp_path)
    assert not (tmp_path / "ca.key").exists()
    assert not (tmp_path / "cluster.key").exists()
    with pytest.raises(NoIdentity, match="was removed from its cluster"):
        read_manager(tmp_path)
