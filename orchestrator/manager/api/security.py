# SPDX-License-Identifier: Apache-2.0
"""The gRPC service of the control plane's keys."""

from __future__ import annotations

from typing import Any

from orchestrator.manager.api.grpc_status import caller_of, unary
from orchestrator.manager.errors import failed_precondition
from orchestrator.manager.operations.administration.security import SecurityOperations
from orchestrator.pb import security_pb2_grpc


class SecurityApi(security_pb2_grpc.SecurityServicer):  # type: ignore[misc]
    """Handles the calls of `Security`."""

    def __init__(self, operations: SecurityOperations) -> None:
        self._security = operations

    @unary
    async def RotateDataKey(self, request: Any, context: Any) -> Any:
        return await self._security.rotate_data_key(caller_of(context).identity.id)

    @unary
    async def GetDataKeyStatus(self, request: Any, context: Any) -> Any:
        return await self._security.data_key_status()

    @unary
    async def Lock(self, request: Any, context: Any) -> Any:
        return await self._security.lock(request)

    @unary
    async def GetUnlockKey(self, request: Any, context: Any) -> Any:
        return await self._security.unlock_key()

    @unary
    async def RotateCa(self, request: Any, context: Any) -> Any:
        return await self._security.rotate_ca(request, caller_of(context).identity.id)

    @unary
    async def GetCaStatus(self, request: Any, context: Any) -> Any:
        return await self._security.ca_status()

    @unary
    async def Unlock(self, request: Any, context: Any) -> Any:
        raise failed_precondition("this manager is not locked")
