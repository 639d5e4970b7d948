# SPDX-License-Identifier: Apache-2.0
"""A manager in the test's own process: real ports, real TLS, a store in memory."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from orchestrator.daemon.process import Supervisor
from orchestrator.identity import ca, join_tokens
from orchestrator.identity.authority import Authority
from orchestrator.identity.bootstrap import init_cluster, new_id
from orchestrator.identity.certificates import KeyPair, TlsFiles
from orchestrator.identity.host_identity import ManagerIdentity
from orchestrator.identity.join import Joined, join
from orchestrator.identity.tls import channel_options
from orchestrator.manager.daemon import Manager, ManagerSettings
from orchestrator.manager.store.kv import Kv
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.pb import control_pb2, control_pb2_grpc
from tests.freeports import free_ports

_NUMBERS = itertools.count(1)
"""Of hosts that join."""


@dataclass
class Running:
    """A manager with a memory store, on free loopback ports."""

    folder: Path
    identity: ManagerIdentity
    authority: KeyPair
    admin: KeyPair
    manager: Manager
    kv: Kv

    @property
    def token(self) -> str:
        return str(
            join_tokens.JoinToken(ca.digest(self.authority.certificate), self.identity.worker_token)
        )

    def issue(self, role: str, *, name: str = "x", cluster: str = "", days: int = 0) -> KeyPair:
        return ca.issue(
            self.authority,
            common_name=name,
            role=role,
            cluster_id=cluster or self.identity.cluster_id,
            now=dt.datetime.now(dt.UTC) + dt.timedelta(days=days),
        )

    def channel(self, pair: KeyPair | None, *, root: str = "") -> grpc.aio.Channel:
        root = root or self.authority.certificate
        credentials = grpc.ssl_channel_credentials(
            root.encode(),
            pair.key.encode() if pair else None,
            pair.certificate.encode() if pair else None,
        )
        return grpc.aio.secure_channel(
            f"127.0.0.1:{self.identity.port}", credentials, options=channel_options()
        )

    async def join(self, text: str, hostname: str = "") -> Joined:
        """Join a host; without a name, one that nobody has."""
        address = f"127.0.0.1:{self.identity.port + 1}"
        hostname = hostname or f"host-{next(_NUMBERS)}"
        return await asyncio.to_thread(join, address, text, hostname)

    async def allow(self, node: str, *names: str) -> None:
        """Allow containers on a node to have something of its host."""
        async with self.channel(self.admin) as channel:
            request = control_pb2.UpdateNodeRequest(node=node, allow=names)
            await control_pb2_grpc.ControlStub(channel).UpdateNode(request)


@asynccontextmanager
async def manager_in(
    folder: Path,
    node_timeout: float | None = None,
    kv: Kv | None = None,
    authority: Authority | None = None,
) -> AsyncIterator[Running]:
    """The first manager of a new cluster; without `kv` on a store of its own, and without
    `authority` with a CA of its own."""
    identity, _, admin = init_cluster(
        folder, "127.0.0.1", free_ports(2), "10.128.0.0/14", authority=authority
    )
    kv = kv or MemoryKv(asyncio.get_running_loop().time)
    async with _serving(folder, identity, admin, kv, node_timeout) as running:
        yield running


@asynccontextmanager
async def manager_beside(other: Running, folder: Path) -> AsyncIterator[Running]:
    """One more manager of a cluster, on the same store."""
    shutil.copytree(other.folder, folder)
    identity = replace(other.identity, manager_id=new_id(), port=free_ports(2))
    certificate = ca.issue(
        other.authority,
        common_name=identity.manager_id,
        role="manager",
        cluster_id=identity.cluster_id,
        now=dt.datetime.now(dt.UTC),
        addresses=["127.0.0.1"],
    )
    TlsFiles.of(folder, "manager").pair.replace(certificate)
    async with _serving(folder, identity, other.admin, other.kv, None) as running:
        yield running


@asynccontextmanager
async def manager_again(before: Running) -> AsyncIterator[Running]:
    """A manager that has ended, once more."""
    async with _serving(before.folder, before.identity, before.admin, before.kv, None) as running:
        yield running


@asynccontextmanager
async def _serving(
    folder: Path,
    identity: ManagerIdentity,
    admin: KeyPair,
    kv: Kv,
    node_timeout: float | None,
) -> AsyncIterator[Running]:
    key = folder / "ca.key"  # none with an external CA
    authority = KeyPair((folder / "ca.pem").read_text(), key.read_text() if key.exists() else "")
    manager = Manager(
        ManagerSettings(folder, node_timeout=node_timeout), identity, kv, Supervisor("", 0.0)
    )
    running = Running(folder, identity, authority, admin, manager, kv)
    served = asyncio.create_task(manager.run())
    try:
        await manager.serving.wait()
        yield running
    finally:
        served.cancel()
        with suppress(asyncio.CancelledError):
            await served
