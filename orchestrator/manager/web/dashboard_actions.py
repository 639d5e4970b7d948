# SPDX-License-Identifier: Apache-2.0
"""Changes that the web page makes, by the same operations as the CLI, and their audit entries."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from starlette.requests import Request

from orchestrator.manager.audit.audit_interceptor import subject_of
from orchestrator.manager.audit.audited_methods import MAX_NAME_LENGTH
from orchestrator.manager.audit.trail import AuditEntry
from orchestrator.manager.errors import invalid_argument
from orchestrator.manager.object_lookup import find_service
from orchestrator.manager.operations.administration.nodes import NodeOperations
from orchestrator.manager.operations.administration.web_sessions import Session
from orchestrator.manager.operations.context import ManagerContext
from orchestrator.manager.operations.workloads.services import ServiceOperations
from orchestrator.manager.store.kv import Conflict
from orchestrator.model.convert import to_proto
from orchestrator.model.nodes import Availability
from orchestrator.model.specs import ServiceMode, ServiceSpec
from orchestrator.pb import control_pb2

MOST_REPLICAS = 10_000


async def act(ctx: ManagerContext, order: Mapping[str, Any]) -> None:
    """Carry out `{"do": …, "to": id, "replicas": …}`. Raises what operations raise."""
    name, target = str(order.get("do")), order.get("to")
    action = _ACTIONS.get(name)
    if action is None or not isinstance(target, str) or not target:
        raise invalid_argument("the page may scale, restart, roll back, drain and activate")
    with ctx.tracer.span(f"page {name}", kind="server"):
        await action(ctx, target, order)


async def _scale(ctx: ManagerContext, target: str, order: Mapping[str, Any]) -> None:
    replicas = order.get("replicas")
    if not isinstance(replicas, int) or not 0 <= replicas <= MOST_REPLICAS:
        raise invalid_argument(f"give a number of replicas from 0 to {MOST_REPLICAS}")
    service = find_service(ctx.view, target)
    if service.spec.mode is not ServiceMode.REPLICATED:
        raise invalid_argument(
            f"service '{service.spec.name}' is not replicated, so it has no such number"
        )
    await _update(ctx, target, lambda spec: replace(spec, replicas=replicas))


async def _restart(ctx: ManagerContext, target: str, order: Mapping[str, Any]) -> None:
    await _update(
        ctx, target, lambda spec: replace(spec, task=replace(spec.task, force=spec.task.force + 1))
    )


async def _update(
    ctx: ManagerContext, target: str, change: Callable[[ServiceSpec], ServiceSpec]
) -> None:
    while True:
        read, service = ctx.cache.revision, find_service(ctx.view, target)
        request = control_pb2.UpdateServiceRequest(
            service=service.id,
            spec=to_proto(change(service.spec)),
            revision=service.revision,
            base=to_proto(service.spec),
            no_resolve_image=True,
        )
        try:
            await ServiceOperations(ctx).update_service(request)
        except Conflict:
            # Another field was modified concurrently; the requested change is the same.
            await ctx.cache.wait_for(read + 1)
        else:
            return


async def _roll_back(ctx: ManagerContext, target: str, order: Mapping[str, Any]) -> None:
    request = control_pb2.RollbackServiceRequest(service=target)
    await ServiceOperations(ctx).rollback_service(request)


def _available(availability: Availability) -> Callable[..., Awaitable[None]]:
    async def update(ctx: ManagerContext, target: str, order: Mapping[str, Any]) -> None:
        request = control_pb2.UpdateNodeRequest(
            node=target, availability=cast(Any, availability.value)
        )
        await NodeOperations(ctx).update_node(request)

    return update


KINDS = {
    "scale": "service",
    "restart": "service",
    "rollback": "service",
    "drain": "node",
    "activate": "node",
}
"""Action → kind of its subject."""

_ACTIONS: dict[str, Callable[..., Awaitable[None]]] = {
    "scale": _scale,
    "restart": _restart,
    "rollback": _roll_back,
    "drain": _available(Availability.DRAIN),
    "activate": _available(Availability.ACTIVE),
}


def client_address(request: Request) -> str:
    """IP address and port of the caller."""
    host, port = request.client or ("", 0)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class AuditedRequest:
    """A request of the web page that changes something."""

    def __init__(
        self, ctx: ManagerContext, session: Session, request: Request, method: str = "Page.act"
    ) -> None:
        self._ctx = ctx
        self._session = session
        self._address = client_address(request)
        self._began, self._clock = time.time(), time.monotonic()
        self._method, self._kind, self._name, self._id = method, "session", "", session.id

    def set_action(self, fields: Mapping[str, Any]) -> None:
        """The action that is requested, see `dashboard_actions.act`."""
        action = str(fields.get("do"))
        if action not in KINDS:
            return
        self._method, self._kind = f"Page.{action}", KINDS[action]
        # JSON can hold lone surrogates, which other texts cannot.
        word = str(fields.get("to", ""))[:MAX_NAME_LENGTH].encode(errors="replace").decode()
        if word:
            self._name, self._id = subject_of(self._ctx.view, self._kind, word)

    def record(self, result: str) -> None:
        """Record the request with its result, a gRPC status."""
        self._ctx.record(
            AuditEntry(
                at=self._began,
                user=self._session.user,
                role=self._session.role,
                certificate=self._session.certificate,
                via="page",
                address=self._address,
                method=self._method,
                kind=self._kind,
                name=self._name,
                id=self._id,
                result=result,
                seconds=round(time.monotonic() - self._clock, 6),
                request=secrets.token_hex(8),
                manager=self._ctx.identity.manager_id,
            )
        )
