# SPDX-License-Identifier: Apache-2.0
"""Making the host a manager, too, or no longer one, at a manager's request.

The manager is a daemon of its own: this runs the command that an operator would run on the host,
and systemd does the rest. Where something else supervises daemons, `--manager-command` names a
program that does the same.

A change goes on when its tunnel breaks: a host that is left halfway is neither. The manager, or the
client through another one, sends the request again, and the agent answers it with the outcome of
the change that it has begun.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.agent.streams.tunnels import TunnelFailure
from orchestrator.identity.host_identity import retire_manager
from orchestrator.pb import dispatch_pb2

log = logging.getLogger(__name__)

_UNIT = "orc-manager.service"
_MANAGER_DATA = Path("/var/lib/orc/manager")
"""Data directory of the manager's unit."""
_UNIT_FOLDERS = tuple(map(Path, ("/etc/systemd/system", "/usr/lib/systemd/system")))
TOKEN = "ORC_JOIN_TOKEN"
"""Environment variable with the join token: an argument would be visible to every user."""


@dataclass(frozen=True, slots=True)
class _Change:
    """The last change that was begun."""

    request_id: str
    outcome: asyncio.Task[None]


class HostRole:
    """Serves `host_role` requests."""

    def __init__(
        self, address: str, command: Sequence[str] = (), manager_data: Path = _MANAGER_DATA
    ) -> None:
        """`address` is the host's own. `command` is run with the arguments `join ADDRESS OWN` or
        `leave`; empty: `orc cluster join`, and systemd. `manager_data` is the data directory of the
        manager that systemd runs."""
        self._address = address
        self._command = tuple(command)
        self._manager_data = manager_data
        self._turn = asyncio.Lock()
        self._last: _Change | None = None

    async def serve(
        self, call: Any, order: dispatch_pb2.OpenTunnel, readers: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        """Serve a request; exceptions become the tunnel's error."""
        wanted, last = order.host_role, self._last
        if last is not None and last.request_id == wanted.request_id != "":
            # If it fails: this attempt may name another manager to join.
            with suppress(TunnelFailure):
                await asyncio.shield(last.outcome)
                return dispatch_pb2.TunnelResult()
        outcome = asyncio.create_task(self._change(wanted), name="change of the host's role")
        outcome.add_done_callback(_log_failure)
        self._last = _Change(wanted.request_id, outcome)
        await asyncio.shield(outcome)
        return dispatch_pb2.TunnelResult()

    async def _change(self, wanted: dispatch_pb2.HostRoleOrder) -> None:
        async with self._turn:
            if wanted.manager:
                await _run(self._joining(wanted.join_address), {TOKEN: wanted.token})
            else:
                await _run(self._leaving(), {})
                if not self._command:
                    # It may have been stopped before it noticed that it was removed.
                    await asyncio.to_thread(retire_manager, self._manager_data)

    def _joining(self, to: str) -> tuple[str, ...]:
        if self._command:
            return (*self._command, "join", to, self._address)
        if not any((folder / _UNIT).exists() for folder in _UNIT_FOLDERS):
            raise TunnelFailure(f"this host has no {_UNIT}: install the package orc-manager there")
        return (sys.executable, sys.argv[0], "cluster", "join", "--address", self._address, to)

    def _leaving(self) -> tuple[str, ...]:
        if self._command:
            return (*self._command, "leave")
        return ("systemctl", "disable", "--now", "--quiet", _UNIT)


def _log_failure(change: asyncio.Task[None]) -> None:
    """The tunnel to report it in may have broken."""
    if not change.cancelled() and (error := change.exception()) is not None:
        log.warning("the host's role was not changed", extra={"error": str(error)})


async def _run(command: Sequence[str], environment: dict[str, str]) -> None:
    """Run a command to its end. Raises TunnelFailure with its last line if it fails."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        lines = output.decode(errors="replace").strip().splitlines()
        raise TunnelFailure(lines[-1].removeprefix("orc: ") if lines else "the command failed")
