# SPDX-License-Identifier: Apache-2.0
"""A host becomes a manager or stops being one, with stand-ins for systemctl and for the program
that an operator names; both record their arguments."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
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
MANAGER_COMMAND = """#!/bin/sh
echo "$@" >>"$(dirname "$0")/asked"
read -r outcome <"$(dirname "$0")/outcome"
[ "$outcome" = joined ] || { echo "orc: $outcome"; exit 1; }
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


class _Host:
    """A host whose `--manager-command` ends as the test says."""

    def __init__(self, folder: Path) -> None:
        self._asked, self._outcome = folder / "asked", folder / "outcome"
        program = folder / "manager-command"
        program.write_text(MANAGER_COMMAND)
        program.chmod(0o755)
        os.mkfifo(self._outcome)
        self._role = HostRole("10.0.0.2", (str(program),))

    async def promote(self, request_id: str, address: str = "10.0.0.1:7421") -> None:
        order = dispatch_pb2.HostRoleOrder(
            manager=True, join_address=address, request_id=request_id
        )
        call: Any = None
        async with asyncio.TaskGroup() as readers:
            await self._role.serve(call, dispatch_pb2.OpenTunnel(host_role=order), readers)

    async def finish(self, outcome: str) -> None:
        """Have the program that runs, or will, end. Waits for it to read."""
        await asyncio.to_thread(self._outcome.write_text, f"{outcome}\n")

    @property
    def asked(self) -> list[str]:
        return self._asked.read_text().splitlines()


async def test_a_promotion_outlasts_its_tunnel(tmp_path: Path) -> None:
    host = _Host(tmp_path)
    first = asyncio.create_task(host.promote("one"))
    await _until(lambda: host.asked == ["join 10.0.0.1:7421 10.0.0.2"])
    first.cancel()
    await asyncio.wait((first,))
    again = asyncio.create_task(host.promote("one"))
    await host.finish("joined")
    await again
    await host.promote("one")
    assert len(host.asked) == 1
    other = asyncio.create_task(host.promote("two"))
    await host.finish("joined")
    await other
    assert len(host.asked) == 2


async def test_a_promotion_that_failed_goes_on_at_another_manager(tmp_path: Path) -> None:
    host = _Host(tmp_path)
    first = asyncio.create_task(host.promote("one"))
    await _until(lambda: len(host.asked) == 1)
    again = asyncio.create_task(host.promote("one", "10.0.0.3:7421"))
    await asyncio.sleep(0)
    await host.finish("cannot reach 10.0.0.1:7421")
    with pytest.raises(ExceptionGroup) as raised:
        await first
    assert raised.group_contains(TunnelFailure, match="cannot reach 10.0.0.1:7421")
    await host.finish("joined")
    await again
    assert host.asked == ["join 10.0.0.1:7421 10.0.0.2", "join 10.0.0.3:7421 10.0.0.2"]


async def _until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    async with asyncio.timeout(30):
        while True:
            with suppress(FileNotFoundError):
                if condition():
                    return
            await asyncio.sleep(0.01)
