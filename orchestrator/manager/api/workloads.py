# SPDX-License-Identifier: Apache-2.0
"""gRPC services of containers, streams to containers, and jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from orchestrator.manager.api.grpc_status import streaming, unary
from orchestrator.manager.operations.context import ManagerContext
from orchestrator.manager.operations.workloads.container_streams import ContainerStreamOperations
from orchestrator.manager.operations.workloads.containers import ContainerOperations
from orchestrator.manager.operations.workloads.jobs import JobOperations
from orchestrator.manager.operations.workloads.orphans import OrphanOperations
from orchestrator.manager.operations.workloads.queues import QueueOperations
from orchestrator.pb import containers_pb2_grpc, interact_pb2_grpc, jobs_pb2_grpc


class ContainersApi(containers_pb2_grpc.ContainersServicer):  # type: ignore[misc]
    """Handles the calls of `Containers`."""

    def __init__(self, ctx: ManagerContext) -> None:
        self._container = ContainerOperations(ctx)
        self._orphan = OrphanOperations(ctx)

    @unary
    async def CreateContainer(self, request: Any, context: Any) -> Any:
        return await self._container.create_container(request)

    @unary
    async def StartContainer(self, request: Any, context: Any) -> Any:
        return await self._container.start_container(request)

    @unary
    async def PrepareContainer(self, request: Any, context: Any) -> Any:
        return await self._container.prepare_container(request)

    @unary
    async def StopContainer(self, request: Any, context: Any) -> Any:
        return await self._container.stop_container(request)

    @unary
    async def RestartContainer(self, request: Any, context: Any) -> Any:
        return await self._container.restart_container(request)

    @unary
    async def RemoveContainer(self, request: Any, context: Any) -> Any:
        return await self._container.remove_container(request)

    @unary
    async def KillContainer(self, request: Any, context: Any) -> Any:
        return await self._container.kill_container(request)

    @unary
    async def PauseContainer(self, request: Any, context: Any) -> Any:
        return await self._container.pause_container(request)

    @unary
    async def UnpauseContainer(self, request: Any, context: Any) -> Any:
        return await self._container.unpause_container(request)

    @unary
    async def RenameContainer(self, request: Any, context: Any) -> Any:
        return await self._container.rename_container(request)

    @unary
    async def UpdateContainer(self, request: Any, context: Any) -> Any:
        return await self._container.update_container(request)

    @unary
    async def ListContainers(self, request: Any, context: Any) -> Any:
        return await self._container.list_containers(request)

    @streaming
    def WatchContainer(self, request: Any, context: Any) -> AsyncIterator[Any]:
        return self._container.watch_container(request)

    @streaming
    def Events(self, request: Any, context: Any) -> AsyncIterator[Any]:
        return self._container.events(request)

    @unary
    async def ListOrphans(self, request: Any, context: Any) -> Any:
        return await self._orphan.list_orphans(request)

    @unary
    async def AdoptOrphan(self, request: Any, context: Any) -> Any:
        return await self._orphan.adopt(request)

    @unary
    async def RemoveOrphan(self, request: Any, context: Any) -> Any:
        return await self._orphan.remove(request)


class InteractApi(interact_pb2_grpc.InteractServicer):  # type: ignore[misc]
    """Handles the calls of `Interact`."""

    def __init__(self, ctx: ManagerContext) -> None:
        self._container_stream = ContainerStreamOperations(ctx)

    @streaming
    def Session(self, request: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        return self._container_stream.session(request)

    @streaming
    def Copy(self, request: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        return self._container_stream.copy(request)

    @unary
    async def GetExec(self, request: Any, context: Any) -> Any:
        return await self._container_stream.get_exec(request)

    @unary
    async def Top(self, request: Any, context: Any) -> Any:
        return await self._container_stream.top(request)

    @streaming
    def Stats(self, request: Any, context: Any) -> AsyncIterator[Any]:
        return self._container_stream.stats(request)


class JobsApi(jobs_pb2_grpc.JobsServicer):  # type: ignore[misc]
    """Handles the calls of `Jobs`."""

    def __init__(self, ctx: ManagerContext) -> None:
        self._job = JobOperations(ctx)
        self._queue = QueueOperations(ctx)

    @unary
    async def StartJob(self, request: Any, context: Any) -> Any:
        return await self._job.start_job(request)

    @unary
    async def StopJob(self, request: Any, context: Any) -> Any:
        return await self._job.stop_job(request)

    @unary
    async def ListQueues(self, request: Any, context: Any) -> Any:
        return await self._queue.list_queues(request)

    @unary
    async def SetQueue(self, request: Any, context: Any) -> Any:
        return await self._queue.set_queue(request)

    @unary
    async def RemoveQueue(self, request: Any, context: Any) -> Any:
        return await self._queue.remove_queue(request)
