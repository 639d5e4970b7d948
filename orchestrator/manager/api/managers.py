# SPDX-License-Identifier: Apache-2.0
"""gRPC services of managers: for users, and for managers among each other."""

from __future__ import annotations

from typing import Any

import grpc

from orchestrator.manager.api.grpc_status import attempt_of, caller_of, unary
from orchestrator.manager.cluster.enrolment import Enrolment
from orchestrator.manager.operations.administration.managers import ManagerOperations
from orchestrator.pb import managers_pb2_grpc


def add_manager_services(
    server: grpc.aio.Server, operations: ManagerOperations, enrolment: Enrolment
) -> None:
    """Add both services to a server."""
    managers_pb2_grpc.add_ManagersServicer_to_server(ManagersApi(operations), server)
    membership = MembershipApi(operations, enrolment)
    managers_pb2_grpc.add_MembershipServicer_to_server(membership, server)


class ManagersApi(managers_pb2_grpc.ManagersServicer):  # type: ignore[misc]
    """Handles the calls of `Managers`."""

    def __init__(self, operations: ManagerOperations) -> None:
        self._managers = operations

    @unary
    async def ListManagers(self, request: Any, context: Any) -> Any:
        return await self._managers.list_managers(request)

    @unary
    async def StepDown(self, request: Any, context: Any) -> Any:
        return await self._managers.step_down()

    @unary
    async def RemoveManager(self, request: Any, context: Any) -> Any:
        return await self._managers.remove_manager(request, caller_of(context).identity.id)

    @unary
    async def PromoteNode(self, request: Any, context: Any) -> Any:
        return await self._managers.promote_node(request, attempt_of(context))

    @unary
    async def DemoteNode(self, request: Any, context: Any) -> Any:
        by, attempt = caller_of(context).identity.id, attempt_of(context)
        return await self._managers.demote_node(request, by, attempt.request_id)

    @unary
    async def GetSchema(self, request: Any, context: Any) -> Any:
        return await self._managers.schema()

    @unary
    async def FinalizeUpgrade(self, request: Any, context: Any) -> Any:
        return await self._managers.finalize_upgrade()

    @unary
    async def CompactStore(self, request: Any, context: Any) -> Any:
        return await self._managers.compact_store()

    @unary
    async def DefragmentStore(self, request: Any, context: Any) -> Any:
        return await self._managers.defragment_store(request)

    @unary
    async def DisarmStore(self, request: Any, context: Any) -> Any:
        return await self._managers.disarm_store(request)


class MembershipApi(managers_pb2_grpc.MembershipServicer):  # type: ignore[misc]
    """Handles the calls of `Membership`, from other managers."""

    def __init__(self, operations: ManagerOperations, enrolment: Enrolment) -> None:
        self._managers = operations
        self._enrolment = enrolment

    @unary
    async def Enroll(self, request: Any, context: Any) -> Any:
        [certificate] = context.auth_context()["x509_pem_cert"]
        caller = caller_of(context).identity.id
        return await self._enrolment.enroll(caller, bytes(certificate).decode(), request)

    @unary
    async def GetStatus(self, request: Any, context: Any) -> Any:
        return await self._managers.status()

    @unary
    async def DefragmentStore(self, request: Any, context: Any) -> Any:
        return await self._managers.defragment_store(request, relayed=True)

    @unary
    async def DefragmentMember(self, request: Any, context: Any) -> Any:
        return await self._managers.defragment_member()

    @unary
    async def GetDataKeys(self, request: Any, context: Any) -> Any:
        [certificate] = context.auth_context()["x509_pem_cert"]
        caller = caller_of(context).identity.id
        return self._managers.data_keys(caller, bytes(certificate).decode(), request.ids)

    @unary
    async def Remove(self, request: Any, context: Any) -> Any:
        return await self._managers.remove_manager(request, caller_of(context).identity.id)
