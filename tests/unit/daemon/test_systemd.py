# SPDX-License-Identifier: Apache-2.0
"""What a daemon says to systemd."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.daemon.background import background
from orchestrator.daemon.process import Supervisor


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The end at which systemd listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "300000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        yield listener


async def test_readiness_and_watchdog_notifications(systemd: socket.socket) -> None:
    async with background(Supervisor.taken().attend()):
        heard = [await asyncio.to_thread(systemd.recv, 64) for _ in range(5)]
    assert heard == [b"READY=1", b"STATUS="] + 3 * [b"WATCHDOG=1"]


def test_socket_is_private(systemd: socket.socket) -> None:
    assert Supervisor.taken().watchdog == 0.3
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & os.environ.keys()


def test_watchdog_of_another_process_is_ignored(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert Supervisor.taken().watchdog == 0.0


async def test_without_systemd_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    await Supervisor.taken().attend()
    Supervisor("/nowhere/notify", 0.0).notify("READY=1")
