"""The few things that the page may do, each by the call that the command line makes."""

from __future__ import annotations

import inspect
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


async def act(api: ManagerContext, order: Mapping[str, Any]) -> None:
    """Do what is ordered: `{"do": …, "to": id, "replicas": …}`. Raises Refusal, InvalidSpec,
    StoreError."""
    name, target = str(order.get("do")), order.get("to")
    action = _ACTIONS.get(name)
    if action is None or not isinstance(target, str) or not target:
        raise invalid_argument("the page may scale, restart, roll back, drain and activate")
    with api.tracer.span(f"page {name}", kind="server"):
        await action(api, target, order)


async def _scale(api: ManagerContext, target: str, order: Mapping[str, Any]) -> None:
    replicas = order.get("replicas")
    if not isinstance(replicas, int) or not 0 <= replicas <= MOST_REPLICAS:
        raise invalid_argument(f"give a number of replicas from 0 to {MOST_REPLICAS}")
    service = find_service(api.view, target)
    if service.spec.mode is not ServiceMode.REPLICATED:
        raise invalid_argument(
            f"service '{service.spec.name}' is not replicated, so it has no such number"
        )
    await _update(api, target, lambda spec: replace(spec, replicas=replicas))


async def _restart(api: ManagerContext, target: str, order: Mapping[str, Any]) -> None:
    await _update(
        api, target, lambda spec: replace(spec, task=replace(spec.task, force=spec.task.force + 1))
    )


async def _update(
    api: ManagerContext, target: str, change: Callable[[ServiceSpec], ServiceSpec]
) -> None:
    while True:
        read, service = api.cache.revision, find_service(api.view, target)
        request = control_pb2.UpdateServiceRequest(
            service=service.id,
            spec=to_proto(change(service.spec)),
            revision=service.revision,
            base=to_proto(service.spec),
            no_resolve_image=True,
        )
        try:
            await _call(ServiceOperations.UpdateService, ServiceOperations(api), request)
        except Conflict:
            # Somebody changed something else of it meanwhile; what is ordered is the same.
            await api.cache.wait_for(read + 1)
        else:
            return


async def _roll_back(api: ManagerContext, target: str, order: Mapping[str, Any]) -> None:
    request = control_pb2.RollbackServiceRequest(service=target)
    await _call(ServiceOperations.RollbackService, ServiceOperations(api), request)


def _available(availability: Availability) -> Callable[..., Awaitable[None]]:
    async def update(api: ManagerContext, target: str, order: Mapping[str, Any]) -> None:
        request = control_pb2.UpdateNodeRequest(
            node=target, availability=cast(Any, availability.value)
        )
        await _call(NodeOperations.UpdateNode, NodeOperations(api), request)

    return update


async def _call(method: Any, calls: object, request: Any) -> None:
    """Make a call of the API and let its refusal out as it is."""
    await inspect.unwrap(method)(calls, request, None)


KINDS = {
    "scale": "service",
    "restart": "service",
    "rollback": "service",
    "drain": "node",
    "activate": "node",
}
"""Action → what it is done to."""

_ACTIONS: dict[str, Callable[..., Awaitable[None]]] = {
    "scale": _scale,
    "restart": _restart,
    "rollback": _roll_back,
    "drain": _available(Availability.DRAIN),
    "activate": _available(Availability.ACTIVE),
}
