# SPDX-License-Identifier: Apache-2.0
"""What every operation gets: the manager's components, the caller, and common errors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

from orchestrator.identity import ca
from orchestrator.identity.host_identity import ManagerIdentity
from orchestrator.identity.revocation import Revocations
from orchestrator.identity.tls import Identity
from orchestrator.manager.audit.trail import AuditEntry
from orchestrator.manager.dispatch.dispatcher import Dispatcher
from orchestrator.manager.dispatch.tunnels import Tunnels
from orchestrator.manager.errors import (
    RequestError,
    aborted,
    failed_precondition,
    invalid_argument,
    not_ready,
)
from orchestrator.manager.operations.images.registry_client import RegistryClient
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.security.vault import Vault, VaultError
from orchestrator.manager.store.cache import Cache, Unreadable
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import object_key
from orchestrator.manager.store.kv import Conflict, Guard, Kv, Op, StoreError, StoreFull, TooLarge
from orchestrator.manager.telemetry.event_log import EventLog
from orchestrator.model.convert import ConvertError
from orchestrator.model.objects import Cluster
from orchestrator.model.validation.service_specs import InvalidSpec
from orchestrator.tracing.spans import OFF, Tracer


@dataclass(frozen=True, slots=True)
class ManagerContext:
    """The manager's components, as operations use them."""

    kv: Kv
    cache: Cache
    dispatcher: Dispatcher
    tunnels: Tunnels
    events: EventLog
    vault: Vault
    identity: ManagerIdentity
    ca_digest: str
    leader: Callable[[], str]
    """Id of the leading manager; empty while there is none."""
    now: Callable[[], float]
    new_id: Callable[[], str]
    keys: Callable[[], Mapping[str, str]] = dict
    """Contents of this manager's key files, by name."""
    revocations: Revocations = field(default_factory=Revocations)
    record: Callable[[AuditEntry], None] = lambda entry: None
    """Adds an entry to the audit trail. gRPC calls are recorded by the interceptor."""
    registries: RegistryClient = field(default_factory=RegistryClient)
    tracer: Tracer = OFF

    @property
    def view(self) -> ClusterView:
        """The newest snapshot."""
        return self.cache.view

    @property
    def token_digest(self) -> str:
        """Digest of the CA that signs, as join tokens have it."""
        cluster = self.view.cluster
        return ca.digest(cluster.ca_certificate) if cluster else self.ca_digest

    def sealing(self) -> list[Cluster]:
        """Have the vault seal with the key that the cluster's object names. What is sealed is to be
        written on condition that the object is unchanged, so that nothing is sealed with the former
        key once a rotation has begun to seal everything anew. Raises RequestError."""
        cluster = self.view.cluster
        if cluster is None:
            return []
        if cluster.secrets_key_id and not self.vault.use(cluster.secrets_key_id):
            raise not_ready("this manager has not received the new data key yet; retry")
        return [cluster]

    async def commit_sealed(
        self, change: Change, make: Callable[[], Sequence[Op]], guards: Sequence[Guard] = ()
    ) -> int:
        """Commit a change with operations that `make` seals; again if the cluster's object changed
        concurrently. Raises RequestError, and as `commit`."""
        while True:
            sealing = self.sealing()
            try:
                return await commit(self.kv, [change], sealing, guards=guards, ops=make())
            except Conflict as conflict:
                if list(conflict.keys) != [object_key(each) for each in sealing]:
                    raise
                entry = await self.kv.get(conflict.keys[0])
                await self.cache.wait_for(entry.mod_revision if entry else 0)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who requests an operation. Front ends authenticate and authorise it before."""

    identity: Identity
    peer: str = ""
    """Network address as the transport writes it, such as `ipv4:10.0.0.1:4321`."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """Which attempt of a request this is. Clients repeat a request whose outcome they do not
    know."""

    request_id: str
    """The same in each attempt."""
    again: bool = False
    """Whether there was one before, perhaps at another manager."""


class Operations:
    """Base of the operations on one kind of object."""

    def __init__(self, ctx: ManagerContext) -> None:
        self.ctx = ctx


_O = TypeVar("_O", bound="Operations")
_P = ParamSpec("_P")
_R = TypeVar("_R")


def on_current_state(
    method: Callable[Concatenate[_O, _P], Coroutine[Any, Any, _R]],
) -> Callable[Concatenate[_O, _P], Coroutine[Any, Any, _R]]:
    """Run an operation again if an object that it read was modified concurrently.

    For requests that mean the same on every state of the object, such as an added label or a
    removal. The other writer may be the leader, another user, or an earlier attempt of the same
    request, whose outcome was unknown. The operation must find the object in the view each time:
    one that it got as an argument would conflict for ever. Raises what the operation raises, but no
    Conflict.
    """

    async def repeated(self: _O, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        cache = self.ctx.cache
        while True:
            read = cache.revision
            try:
                return await method(self, *args, **kwargs)
            except Conflict:
                await cache.wait_for(read + 1)

    functools.update_wrapper(repeated, method)
    return repeated


def hostnames(view: ClusterView) -> dict[str, str]:
    """Node id → hostname."""
    return {node.id: node.description.hostname for node in view.nodes.values()}


def request_error(error: Exception) -> RequestError | None:
    """An operation's exception as an error of the request; None for a defect of the manager."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    match error:
        case RequestError():
            return error
        case InvalidSpec() | ConvertError() | TooLarge():
            return invalid_argument(str(error))
        case VaultError() | Unreadable() | StoreFull():
            return failed_precondition(str(error))
        case Conflict():
            return aborted("conflict: modified concurrently; retry")
        case StoreError():
            return not_ready(f"etcd is unavailable: {error}")
        case _:
            return None
