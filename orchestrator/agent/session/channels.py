# SPDX-License-Identifier: Apache-2.0
"""The agent's gRPC channels and its only server; both ends authenticate by certificates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from orchestrator.agent.images.store import ImageStore
from orchestrator.agent.images.transfer.image_peers import BlobService
from orchestrator.agent.settings import AgentFailure, Settings
from orchestrator.identity.certificates import TlsFiles
from orchestrator.identity.revocation import Revocations
from orchestrator.identity.roles import RoleGuard
from orchestrator.identity.tls import (
    MANAGER_NAME,
    NODE_NAME,
    channel_credentials,
    channel_options,
    server_credentials,
)
from orchestrator.pb import blobs_pb2_grpc

IMPATIENT = (
    ("grpc.keepalive_time_ms", 500),
    ("grpc.keepalive_timeout_ms", 800),
    ("grpc.http2.ping_timeout_ms", 800),
)
"""A manager whose process is stopped, or that is cut off, answers no pings."""


class Channels:
    """Opens channels with the node's certificate."""

    def __init__(self, settings: Settings) -> None:
        self._files = TlsFiles.of(settings.data_dir, "node")

    def one_of_several_managers(self, address: str) -> grpc.aio.Channel:
        """As `manager`, but notices within two seconds if it does not answer."""
        return self.manager(address, IMPATIENT)

    def manager(self, address: str, more: Sequence[tuple[str, Any]] = ()) -> grpc.aio.Channel:
        """To a manager at HOST:PORT, with `more` options."""
        # With a pool of its own, a channel does not inherit the backoff of its predecessor.
        own: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.secure_channel(
            address,
            channel_credentials(self._files),
            options=[*{**dict(channel_options(MANAGER_NAME)), **dict(more)}.items(), *own],
        )

    def node(self, address: str) -> grpc.aio.Channel:
        """To another node's server of blobs, at HOST:PORT."""
        return grpc.aio.secure_channel(
            address, channel_credentials(self._files), options=channel_options(NODE_NAME)
        )


async def serve_blobs(
    settings: Settings, store: ImageStore, revocations: Revocations
) -> tuple[grpc.aio.Server, int]:
    """Serve this node's image blobs to others of the cluster: the server and its port. Raises
    AgentFailure."""
    address = f"{settings.identity.address}:{settings.blob_port}"
    server = grpc.aio.server(
        interceptors=[RoleGuard(settings.identity.cluster_id, revocations)],
        options=[("grpc.so_reuseport", 0)],
    )
    blobs_pb2_grpc.add_BlobsServicer_to_server(BlobService(store.blob_path), server)
    credentials = server_credentials(TlsFiles.of(settings.data_dir, "node"))
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise AgentFailure(
            f"cannot serve images at {address}; does another agent run here, and is it this host's"
            " address? --blob-port 0 takes any free port"
        ) from error
    await server.start()
    return server, port
