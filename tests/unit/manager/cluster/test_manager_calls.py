# SPDX-License-Identifier: Apache-2.0
"""Calls between managers, over real TLS connections on the loopback."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import grpc

from orchestrator.identity.bootstrap import init_cluster
from orchestrator.identity.certificates import TlsFiles
from orchestrator.identity.tls import server_credentials
from orchestrator.manager.cluster.manager_calls import ManagerChannels
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.administration.managers import Manager
from orchestrator.pb import managers_pb2, managers_pb2_grpc


class Membership(managers_pb2_grpc.MembershipServicer):  # type: ignore[misc]
    async def GetStatus(self, request: Any, context: Any) -> Any:
        return managers_pb2.ManagerStatus(version="1.2.3")


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_manager_that_returns_answers_at_once(tmp_path: Path) -> None:
    """However often it was asked in vain while it was down."""
    port = unused_port()
    init_cluster(tmp_path, "127.0.0.1", port, "10.128.0.0/14")
    files = TlsFiles.of(tmp_path, "manager")
    manager = Manager(id="m2", hostname="m2", address="127.0.0.1", port=port)
    view = ClusterView.of([manager])
    server = grpc.aio.server()
    managers_pb2_grpc.add_MembershipServicer_to_server(Membership(), server)
    async with ManagerChannels(files, lambda: view) as channels:
        for _ in range(30):
            assert await channels.statuses([manager]) == {}
            await asyncio.sleep(0.1)
        server.add_secure_port(f"127.0.0.1:{port}", server_credentials(files))
        await server.start()
        try:
            statuses = await channels.statuses([manager], wait=True)
            assert {id: each.version for id, each in statuses.items()} == {"m2": "1.2.3"}
        finally:
            await server.stop(None)
