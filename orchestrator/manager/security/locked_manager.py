# SPDX-License-Identifier: Apache-2.0
"""A manager that has started with locked key files: it waits for the unlock key.

It serves its ports with its own certificate, whose key is not locked, so the unlock key travels
over mutual TLS, from an admin. Without the store it cannot know revocations; a revoked admin would
still need the unlock key. Every other call says that the manager is locked.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc

from orchestrator import __version__
from orchestrator.daemon.background import background
from orchestrator.daemon.process import Supervisor
from orchestrator.identity.certificates import TlsFiles
from orchestrator.identity.host_identity import ManagerIdentity
from orchestrator.identity.key_files import KeyFiles, WrongUnlockKey
from orchestrator.identity.roles import may_call
from orchestrator.identity.tls import join_credentials, peer_identity, server_credentials
from orchestrator.model.administration.managers import host_port
from orchestrator.pb import managers_pb2, security_pb2

log = logging.getLogger(__name__)

_UNLOCK = "/orchestrator.v1.Security/Unlock"
_STATUS = "/orchestrator.v1.Membership/GetStatus"


async def wait_for_unlock(
    files: KeyFiles, identity: ManagerIdentity, supervisor: Supervisor
) -> None:
    """Serve until an admin unlocks `files`. Raises RuntimeError if the ports cannot be opened."""
    waiting = _Locked(files, identity)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((waiting,))
    tls = TlsFiles.of(files.folder, "manager")
    for port, credentials in (
        (identity.port, server_credentials(tls)),
        (identity.port + 1, join_credentials(tls)),
    ):
        server.add_secure_port(host_port(identity.address, port), credentials)
    await server.start()
    log.warning("key files are locked: waiting for 'orc cluster unlock'")
    try:
        async with background(supervisor.attend(locked=True)):
            await waiting.unlocked.wait()
    finally:
        await server.stop(1.0)
    log.info("unlocked")


class _Locked(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Answers all calls of a locked manager."""

    def __init__(self, files: KeyFiles, identity: ManagerIdentity) -> None:
        self.unlocked = asyncio.Event()
        self._files = files
        self._identity = identity

    def service(self, details: Any) -> Any:
        method = str(details.method)
        if method == _UNLOCK:
            return grpc.unary_unary_rpc_method_handler(
                self._unlock,
                request_deserializer=security_pb2.UnlockRequest.FromString,
                response_serializer=security_pb2.UnlockReply.SerializeToString,
            )
        if method == _STATUS:
            return grpc.unary_unary_rpc_method_handler(
                self._status,
                request_deserializer=managers_pb2.GetStatusRequest.FromString,
                response_serializer=managers_pb2.ManagerStatus.SerializeToString,
            )
        return grpc.stream_stream_rpc_method_handler(self._refuse)

    async def _admit(self, context: Any, service: str) -> str:
        """Abort the call unless the caller's role may make it; the caller's name."""
        caller = peer_identity(context)
        refusal = may_call(caller, f"orchestrator.v1.{service}", self._identity.cluster_id)
        if refusal or caller is None:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, refusal)
            raise AssertionError  # abort raises
        return caller.id

    async def _unlock(self, request: Any, context: Any) -> Any:
        admin = await self._admit(context, "Security")
        try:
            await asyncio.to_thread(self._files.unlock, request.key)
        except (WrongUnlockKey, OSError) as error:
            log.warning(
                "unlock refused",
                extra={"peer": context.peer(), "admin": admin, "reason": str(error)},
            )
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        log.info("unlocking", extra={"peer": context.peer(), "admin": admin})
        self.unlocked.set()
        return security_pb2.UnlockReply(manager=self._identity.manager_id)

    async def _status(self, request: Any, context: Any) -> Any:
        await self._admit(context, "Membership")
        return managers_pb2.ManagerStatus(version=__version__, locked=True)

    async def _refuse(self, requests: Any, context: Any) -> None:
        await context.abort(
            grpc.StatusCode.UNAVAILABLE,
            f"the manager at {host_port(self._identity.address, self._identity.port)} is locked; "
            "run 'orc cluster unlock'",
        )
