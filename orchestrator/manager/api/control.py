# SPDX-License-Identifier: Apache-2.0
"""gRPC service `Control`: cluster, nodes, services, tasks, logs and images."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from orchestrator.manager.api.grpc_status import caller_of, streaming, unary
from orchestrator.manager.operations.administration.cluster_settings import ClusterOperations
from orchestrator.manager.operations.administration.nodes import NodeOperations
from orchestrator.manager.operations.context import ManagerContext
from orchestrator.manager.operations.dry_run import DryRunOperations
from orchestrator.manager.operations.images.building import ImageBuildOperations
from orchestrator.manager.operations.workloads.placement import PlacementOperations
from orchestrator.manager.operations.workloads.services import ServiceOperations
from orchestrator.manager.operations.workloads.task_logs import LogOperations
from orchestrator.pb import control_pb2_grpc


class ControlApi(control_pb2_grpc.ControlServicer):  # type: ignore[misc]
    """Handles the calls of `Control`."""

    def __init__(self, ctx: ManagerContext) -> None:
        self._cluster = ClusterOperations(ctx)
        self._node = NodeOperations(ctx)
        self._service = ServiceOperations(ctx)
        self._dry_run = DryRunOperations(ctx)
        self._placement = PlacementOperations(ctx)
        self._log = LogOperations(ctx)
        self._image_build = ImageBuildOperations(ctx)

    @unary
    async def GetCluster(self, request: Any, context: Any) -> Any:
        return await self._cluster.get_cluster(request)

    @unary
    async def UpdateCluster(self, request: Any, context: Any) -> Any:
        return await self._cluster.update_cluster(request)

    @unary
    async def RotateToken(self, request: Any, context: Any) -> Any:
        return await self._cluster.rotate_token(request)

    @unary
    async def ListNodes(self, request: Any, context: Any) -> Any:
        return await self._node.list_nodes(request)

    @unary
    async def UpdateNode(self, request: Any, context: Any) -> Any:
        return await self._node.update_node(request)

    @unary
    async def RemoveNode(self, request: Any, context: Any) -> Any:
        return await self._node.remove_node(request, caller_of(context))

    @unary
    async def CreateService(self, request: Any, context: Any) -> Any:
        return await self._service.create_service(request)

    @unary
    async def UpdateService(self, request: Any, context: Any) -> Any:
        return await self._service.update_service(request)

    @unary
    async def RollbackService(self, request: Any, context: Any) -> Any:
        return await self._service.rollback_service(request)

    @unary
    async def PromoteService(self, request: Any, context: Any) -> Any:
        return await self._service.promote_service(request)

    @unary
    async def Plan(self, request: Any, context: Any) -> Any:
        return await self._dry_run.plan(request)

    @unary
    async def GetCapacity(self, request: Any, context: Any) -> Any:
        return await self._placement.get_capacity(request)

    @unary
    async def GetPlacement(self, request: Any, context: Any) -> Any:
        return await self._placement.get_placement(request)

    @unary
    async def Rebalance(self, request: Any, context: Any) -> Any:
        return await self._placement.rebalance(request)

    @unary
    async def RemoveService(self, request: Any, context: Any) -> Any:
        return await self._service.remove_service(request)

    @unary
    async def ListServices(self, request: Any, context: Any) -> Any:
        return await self._service.list_services(request)

    @unary
    async def ListTasks(self, request: Any, context: Any) -> Any:
        return await self._service.list_tasks(request)

    @streaming
    def WatchService(self, request: Any, context: Any) -> AsyncIterator[Any]:
        return self._service.watch_service(request)

    @streaming
    def Logs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        return self._log.logs(request)

    @unary
    async def ListNetworks(self, request: Any, context: Any) -> Any:
        return await self._cluster.list_networks(request)

    @unary
    async def ListImages(self, request: Any, context: Any) -> Any:
        return await self._image_build.list_images(request)

    @streaming
    def LoadImage(self, request: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        return self._image_build.load_image(request)

    @streaming
    def BuildImage(self, request: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        return self._image_build.build_image(request)
