# SPDX-License-Identifier: Apache-2.0
"""A host stops being a manager, with a stand-in for systemctl that records its arguments."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent.streams.host_role import HostRole
from orchestrator.agent.streams.tunnels import TunnelFailure
from orchestrator.identity.host_identity import REMOVED_MANAGER
from orchestrator.pb import dispatch_pb2

SYSTEMCTL = """#!/bin/sh
echo "$@" >>"$(dirname "$0")/asked"
[ ! -e "$(dirname "$0")/fails" ] || { echo "Failed to connect to bus"; exit 1; }
"""
DEMOTE = dispatch_pb2.OpenTunnel(host_role=dispatch_pb2.HostRoleOrder(manager=False))


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "systemctl").write_text(SYSTEMCTL)
    (folder / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Of a manager that was stopped before it noticed that it was removed."""
    folder = tmp_path / "manager"
    (folder / "etcd").mkdir(parents=True)
    for name in ("ca.key", "cluster.key", "manager.json"):
        (folder / name).write_text("{}")
    return folder


async def _demoted(data: Path) -> None:
    async with asyncio.TaskGroup() as readers:
        call: Any = None
        await HostRole("127.0.0.1", manager_data=data).serve(call, DEMOTE, readers)


def test_a_demoted_host_keeps_no_key_of_the_cluster(programs: Path, data: Path) -> None:
    asyncio.run(_demoted(data))
    assert (programs / "asked").read_text() == "disable --now --quiet orc-manager.service\n"
    assert {each.name for each in data.iterdir()} == {REMOVED_MANAGER}
    asyncio.run(_demoted(data))


def test_the_keys_of_a_manager_that_cannot_be_stopped_stay(programs: Path, data: Path) -> None:
    (programs / "fails").touch()
    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(_demoted(data))
    assert raised.group_contains(TunnelFailure, match="Failed to connect to bus")
    assert (data / "ca.key").exists()
