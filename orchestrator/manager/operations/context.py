"""What every call of the control API needs, and how its errors become one line for the user."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from orchestrator.identity.host_identity import ManagerIdentity
from orchestrator.identity.revocation import Revocations
from orchestrator.manager.audit.trail import AuditEntry
from orchestrator.manager.dispatch.dispatcher import Dispatcher
from orchestrator.manager.dispatch.tunnels import Tunnels
from orchestrator.manager.errors import RequestError
from orchestrator.manager.leader.agent_reports import ReportBuffer
from orchestrator.manager.operations.images.registry_client import RegistryClient
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.security.vault import Vault, VaultError
from orchestrator.manager.store.cache import Cache, Unreadable
from orchestrator.manager.store.kv import Conflict, Kv, StoreError, StoreFull, TooLarge
from orchestrator.manager.telemetry.event_log import EventLog
from orchestrator.model.convert import ConvertError
from orchestrator.model.validation.service_specs import InvalidSpec
from orchestrator.tracing.spans import OFF, Tracer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ManagerContext:
    """The manager's parts as the API sees them."""

    kv: Kv
    cache: Cache
    dispatcher: Dispatcher
    tunnels: Tunnels
    inbox: ReportBuffer
    events: EventLog
    vault: Vault
    identity: ManagerIdentity
    ca_digest: str
    leader: Callable[[], str]
    """Identity of the leading manager; empty when nobody leads."""
    now: Callable[[], float]
    new_id: Callable[[], str]
    revocations: Revocations = field(default_factory=Revocations)
    record: Callable[[AuditEntry], None] = lambda entry: None
    """Adds an entry to the audit trail; calls of the API are added by themselves."""
    registries: RegistryClient = field(default_factory=RegistryClient)
    tracer: Tracer = OFF

    @property
    def view(self) -> ClusterView:
        """The newest snapshot."""
        return self.cache.view


class Operations:
    """Base of the groups of calls; see the package's page."""

    def __init__(self, api: ManagerContext) -> None:
        self.api = api


def hostnames(view: ClusterView) -> dict[str, str]:
    """Node id → hostname."""
    return {node.id: node.description.hostname for node in view.nodes.values()}


def _status(error: Exception) -> tuple[grpc.StatusCode, str]:
    match error:
        case RequestError():
            return error.code, error.text
        case InvalidSpec() | ConvertError():
            return grpc.StatusCode.INVALID_ARGUMENT, str(error)
        case VaultError():
            return grpc.StatusCode.FAILED_PRECONDITION, str(error)
        case Conflict():
            return grpc.StatusCode.ABORTED, "somebody else changed it meanwhile; try again"
        case Unreadable():
            return grpc.StatusCode.FAILED_PRECONDITION, str(error)
        case StoreFull():
            return grpc.StatusCode.FAILED_PRECONDITION, str(error)
        case TooLarge():
            return grpc.StatusCode.INVALID_ARGUMENT, str(error)
        case StoreError():
            return grpc.StatusCode.UNAVAILABLE, f"the cluster's store is away: {error}"
        case _:
            log.exception("a call failed", exc_info=error)
            return grpc.StatusCode.INTERNAL, f"the manager failed: {error!r}; see its log"


Method = Callable[..., Awaitable[Any]] | Callable[..., AsyncIterator[Any]]


def mapping_errors(method: Method) -> Any:
    """Make a call's exceptions its gRPC status, with one line for the user as the details."""
    if inspect.isasyncgenfunction(method):

        @functools.wraps(method)
        async def stream(self: Operations, request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                async for item in method(self, request, context):
                    yield item
            except Exception as error:
                await context.abort(*_status(_single(error)))

        return stream

    @functools.wraps(method)
    async def unary(self: Operations, request: Any, context: Any) -> Any:
        try:
            return await method(self, request, context)  # type: ignore[misc]
        except Exception as error:
            await context.abort(*_status(_single(error)))

    return unary


def _single(error: Exception) -> Exception:
    """The cause inside a task group's exception."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
