# SPDX-License-Identifier: Apache-2.0
"""What the web page may change, by the same operations as the command line."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from orchestrator.manager.errors import invalid_argument
from orchestrator.manager.object_lookup import find_service
from orchestrator.manager.operations.administration.nodes import NodeOperations
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
