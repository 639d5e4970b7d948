# SPDX-License-Identifier: Apache-2.0
"""Dry runs (`orc plan`): which steps a change would lead to.

The change goes through the operation that would make it, with all its checks, on a store that
records what would be written and writes nothing. The planner then simulates the consequences.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from orchestrator.manager.event_loop import offload
from orchestrator.manager.operations.administration.nodes import NodeOperations
from orchestrator.manager.operations.context import ManagerContext, Operations
from orchestrator.manager.operations.resources.documents import DocumentOperations
from orchestrator.manager.operations.resources.networks import NetworkOperations
from orchestrator.manager.operations.workloads.containers import ContainerOperations
from orchestrator.manager.operations.workloads.jobs import JobOperations
from orchestrator.manager.operations.workloads.placement import PlacementOperations
from orchestrator.manager.operations.workloads.services import ServiceOperations
from orchestrator.manager.planning.dry_run import simulate
from orchestrator.manager.planning.networking.allocation import allocate_slices
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache, find_object
from orchestrator.manager.store.keys import object_type
from orchestrator.manager.store.kv import Entry, Guard, Kv, Op, Put, Snapshot
from orchestrator.model.convert import decode
from orchestrator.model.objects import Object
from orchestrator.pb import control_pb2


class DryRunOperations(Operations):
    """Operations of `orc plan …`."""

    async def plan(self, request: control_pb2.PlanRequest) -> control_pb2.PlanReply:
        """Simulate changes and return the steps that they would lead to; writes nothing."""
        ctx = self.ctx
        before = ctx.view
        dry_run = _DryRun(ctx)
        for change in request.changes:
            await dry_run.apply(change)
            # Nothing in it waits, and there may be many changes.
            await asyncio.sleep(0)
        if request.check_only:
            return control_pb2.PlanReply()
        return await offload(_reply, before, dry_run.changes, ctx.now(), ctx.new_id)


def _reply(
    before: ClusterView, changes: Sequence[Change], now: float, new_id: Callable[[], str]
) -> Any:
    """The steps that the changes lead to."""
    names = {node.id: node.description.hostname or node.id for node in before.nodes.values()}
    return control_pb2.PlanReply(
        steps=[
            control_pb2.PlannedStep(
                action=cast(Any, int(step.action)),
                service=step.service,
                name=step.name,
                source=names.get(step.source, step.source),
                target=names.get(step.target, step.target),
                reason=step.reason,
            )
            for step in simulate(before, changes, now, new_id)
        ]
    )


class _DryRun:
    """The operations, on a store that records what would be written."""

    def __init__(self, ctx: ManagerContext) -> None:
        self._cache = _DryRunCache(ctx.view, ctx.cache.revision)
        self._kv = _DryRunKv(ctx.kv, self._cache)
        simulated = replace(ctx, kv=cast(Kv, self._kv), cache=cast(Cache, self._cache))
        services, jobs = ServiceOperations(simulated), JobOperations(simulated)
        documents = DocumentOperations(simulated)
        self._operations: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "create_service": services.create_service,
            "update_service": services.update_service,
            "remove_service": services.remove_service,
            "rollback_service": services.rollback_service,
            "promote_service": services.promote_service,
            "update_node": NodeOperations(simulated).update_node,
            "start_job": jobs.start_job,
            "stop_job": jobs.stop_job,
            "create_network": NetworkOperations(simulated).create_network,
            "create_document": documents.create_document,
            "update_document": documents.update_document,
            "rebalance": PlacementOperations(simulated).rebalance,
            "create_container": ContainerOperations(simulated).create_container,
        }

    @property
    def changes(self) -> Sequence[Change]:
        """What would have been written."""
        return self._kv.changes

    async def apply(self, change: control_pb2.PlannedChange) -> None:
        """Simulate a change. Raises what the operation raises."""
        kind = change.WhichOneof("change")
        await self._operations[kind](getattr(change, kind))
        if kind == "create_network":
            # Which fixed addresses services can have depends on the nodes' slices of the network.
            view = self._cache.view
            self._cache.view = view.evolve(await offload(allocate_slices, view))


class _DryRunCache:
    def __init__(self, view: ClusterView, revision: int) -> None:
        self.view = view
        self.revision = revision

    async def wait_for(self, revision: int) -> None:
        """Return at once: simulated writes are visible immediately."""


class _DryRunKv:
    def __init__(self, kv: Kv, cache: _DryRunCache) -> None:
        self._kv = kv
        self._cache = cache
        self.changes: list[Change] = []

    @property
    def max_txn_ops(self) -> int:
        return self._kv.max_txn_ops

    async def get(self, key: str) -> Entry | None:
        return await self._kv.get(key)

    async def list(self, prefix: str) -> Snapshot:
        return await self._kv.list(prefix)

    async def txn(self, guards: Sequence[Guard], ops: Sequence[Op]) -> int:
        for op in ops:
            if (found := object_type(op.key)) is not None:
                kind, identifier = found
                before = find_object(self._cache.view, kind, identifier)
                after: Object | None = None
                if isinstance(op, Put):
                    revision = before.revision if before is not None else 0
                    after = decode(kind, op.value, revision)
                change = Change(before, after)
                self.changes.append(change)
                self._cache.view = self._cache.view.evolve([change])
        return self._cache.revision
