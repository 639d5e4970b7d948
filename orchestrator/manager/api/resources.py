# SPDX-License-Identifier: Apache-2.0
"""gRPC services of networks, volumes, secrets, configs and disk usage."""

from __future__ import annotations

from typing import Any

from orchestrator.manager.api.grpc_status import unary
from orchestrator.manager.operations.context import ManagerContext
from orchestrator.manager.operations.resources.disk_usage import DiskUsageOperations
from orchestrator.manager.operations.resources.documents import DocumentOperations
from orchestrator.manager.operations.resources.network_policies import NetworkPolicyOperations
from orchestrator.manager.operations.resources.networks import NetworkOperations
from orchestrator.manager.operations.resources.volumes import VolumeOperations
from orchestrator.pb import (
    documents_pb2_grpc,
    networks_pb2_grpc,
    policies_pb2_grpc,
    system_pb2_grpc,
    volumes_pb2_grpc,
)


class NetworksApi(networks_pb2_grpc.NetworksServicer):  # type: ignore[misc]
    """Handles the calls of `Networks`."""

    def __init__(self, ctx: ManagerContext) -> None:
        self._network = NetworkOperations(ctx)

    @unary
    async def CreateNetwork(self, request: Any, context: Any) -> Any:
        return await self._network.create_network(request)

    @unary
    async def RemoveNetwork(self, request: Any, context: Any) -> Any:
        return await self._network.remove_network(request)

    @unary
    async def ConnectNetwork(self, request: Any, context: Any) -> Any:
        return await self._network.connect_network(request)

    @unary
    async def DisconnectNetwork(self, request: Any, context: Any) -> Any:
        return await self._network.disconnect_network(request)

    @unary
    async def PruneNetworks(self, request: Any, context: Any) -> Any:
        return await self._network.prune_networks(request)


class PoliciesApi(policies_pb2_grpc.PoliciesServicer):  # type: ignore[misc]
    """Handles the calls of `Policies`."""

    def __init__(self, ctx: ManagerContext) -> None:
        self._network_policy = NetworkPolicyOperations(ctx)

    @unary
    async def AddPolicy(self, request: Any, context: Any) -> Any:
        return await self._network_policy.add_policy(request)

    @unary
    async def RemovePolicy(self, request: Any, context: Any) -> Any:
        return await self._network_policy.remove_policy(request)


class VolumesApi(volumes_pb2_grpc.VolumesServicer):  # type: ignore[misc]
    """Handles the calls of `Volumes`."""

    def __init__(self, ctx: ManagerContext) -> None:
        self._volume = VolumeOperations(ctx)

    @unary
    async def CreateVolume(self, request: Any, context: Any) -> Any:
        return await self._volume.create_volume(request)

    @unary
    async def ListVolumes(self, request: Any, context: Any) -> Any:
        return await self._volume.list_volumes(request)

    @unary
    async def RemoveVolume(self, request: Any, context: Any) -> Any:
        return await self._volume.remove_volume(request)

    @unary
    async def PruneVolumes(self, request: Any, context: Any) -> Any:
        return await self._volume.prune_volumes(request)


class DocumentsApi(documents_pb2_grpc.DocumentsServicer):  # type: ignore[misc]
    """Handles the calls of `Documents`."""

    def __init__(self, ctx: ManagerContext) -> None:
        self._document = DocumentOperations(ctx)

    @unary
    async def CreateDocument(self, request: Any, context: Any) -> Any:
        return await self._document.create_document(request)

    @unary
    async def ListDocuments(self, request: Any, context: Any) -> Any:
        return await self._document.list_documents(request)

    @unary
    async def UpdateDocument(self, request: Any, context: Any) -> Any:
        return await self._document.update_document(request)

    @unary
    async def RemoveDocument(self, request: Any, context: Any) -> Any:
        return await self._document.remove_document(request)


class SystemApi(system_pb2_grpc.SystemServicer):  # type: ignore[misc]
    """Handles the calls of `System`."""

    def __init__(self, ctx: ManagerContext) -> None:
        self._disk_usage = DiskUsageOperations(ctx)

    @unary
    async def DiskUsage(self, request: Any, context: Any) -> Any:
        return await self._disk_usage.disk_usage(request)
