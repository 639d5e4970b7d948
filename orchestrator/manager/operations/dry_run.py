"""`orc plan`: a change that is only thought through.

The change is made by the very call that would make it, with all its checks, on a store that takes
down what would be written and writes nothing; what that leads to is the planner's to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from orchestrator.manager.event_loop import offload
from orchestrator.manager.operations.administration.nodes import NodeOperations
from orchestrator.manager.operations.context import ManagerContext, Operations, mapping_errors
from orchestrator.manager.operations.resources.documents import DocumentOperations
from orchestrator.manager.operations.resources.networks import NetworkOperations
from orchestrator.manager.operations.workloads.containers import ContainerOperations
from orchestrator.manager.operations.workloads.jobs import JobOperations
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
    """`orc plan …`."""

    @mapping_errors
    async def Plan(self, request: Any, context: Any) -> Any:
        api = self.api
        before = api.view
        pretended = _DryRun(api)
        for change in request.changes:
            await pretended.make(change, context)
            # Nothing in it waits, and there may be many.
            await asyncio.sleep(0)
        if request.check_only:
            return control_pb2.PlanReply()
        return await offload(_reply, before, pretended.changes, api.now(), api.new_id)


def _reply(
    before: ClusterView, changes: Sequence[Change], now: float, new_id: Callable[[], str]
) -> Any:
    """What the changes lead to."""
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
    """The API on a store that takes down what it is told."""

    def __init__(self, api: ManagerContext) -> None:
        self._cache = _DryRunCache(api.view, api.cache.revision)
        self._kv = _DryRunKv(api.kv, self._cache)
        pretending = replace(api, kv=cast(Kv, self._kv), cache=cast(Cache, self._cache))
        self._services, jobs = ServiceOperations(pretending), JobOperations(pretending)
        documents = DocumentOperations(pretending)
        self._calls: dict[str, Operations] = {
            "update_node": NodeOperations(pretending),
            "create_container": ContainerOperations(pretending),
            "start_job": jobs,
            "stop_job": jobs,
            "create_network": NetworkOperations(pretending),
            "create_document": documents,
            "update_document": documents,
        }

    @property
    def changes(self) -> Sequence[Change]:
        """What would have been written."""
        return self._kv.changes

    async def make(self, change: Any, context: Any) -> None:
        """Make a PlannedChange. Raises what the call raises."""
        kind = change.WhichOneof("change")
        request = getattr(change, kind)
        method = "".join(map(str.capitalize, kind.split("_")))
        calls = self._calls.get(kind, self._services)
        # Without the decorator, that turns refusals into the end of the call: there is one already.
        await getattr(type(calls), method).__wrapped__(calls, request, context)
        if kind == "create_network":
            # Which fixed addresses services can have depends on what nodes have of the network.
            view = self._cache.view
            self._cache.view = view.evolve(await offload(allocate_slices, view))


class _DryRunCache:
    def __init__(self, view: ClusterView, revision: int) -> None:
        self.view = view
        self.revision = revision

    async def wait_for(self, revision: int) -> None:
        """It is there."""


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
