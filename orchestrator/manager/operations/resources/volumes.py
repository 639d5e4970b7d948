# SPDX-License-Identifier: Apache-2.0
"""Operations on volumes: declared ones, and those that nodes and their plugins report."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.manager.errors import (
    RequestError,
    already_exists,
    failed_precondition,
    invalid_argument,
    not_found,
)
from orchestrator.manager.object_lookup import find_node, matches_prune_filters
from orchestrator.manager.operations.context import Operations, on_current_state
from orchestrator.manager.operations.references import in_use_error
from orchestrator.manager.planning.consumers import consumer, in_order
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.scheduling.volume_placement import volume_consumers
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.kv import Conflict
from orchestrator.model.convert import to_proto
from orchestrator.model.mounts import LOCAL_DRIVER, check_volume_name
from orchestrator.model.names import near_miss
from orchestrator.model.nodes import Node, NodeState
from orchestrator.model.objects import Volume, VolumeScope
from orchestrator.model.tasks import Task
from orchestrator.model.validation.mount_specs import check_driver_options
from orchestrator.pb import dispatch_pb2, types_pb2, volumes_pb2

LIST_TIMEOUT = 1.0
"""Seconds that a listing waits for nodes; nodes that have not answered by then are named."""

CREATE_TIMEOUT, REMOVE_TIMEOUT = 60.0, 60.0
"""Seconds that a node's driver has to create or remove a volume."""


@dataclass(slots=True)
class _NodeAnswers:
    """The answers of the nodes."""

    volumes: dict[str, list[tuple[Node, Any]]] = field(default_factory=dict)
    """Name → the nodes that have it, each with its NodeVolume."""
    notices: list[str] = field(default_factory=list)


class VolumeOperations(Operations):
    """Operations of `orc volume …`."""

    async def create_volume(self, request: volumes_pb2.CreateVolumeRequest) -> types_pb2.Volume:
        """Declare a volume; creating an identical one again is no error."""
        ctx = self.ctx
        volume = Volume(
            id=request.name or ctx.new_id(),
            created_at=ctx.now(),
            driver=request.driver or LOCAL_DRIVER,
            options=dict(request.options),
            labels=dict(request.labels),
        )
        try:
            check_volume_name(volume.name)
            check_driver_options(volume.driver, volume.options)
        except ValueError as error:
            raise invalid_argument(str(error)) from None
        node = find_node(ctx.view, request.node) if request.node else None
        if (known := ctx.view.volumes.get(volume.name)) is not None:
            return to_proto(_check_identical(known, volume, node))
        node, volume = self._creation_node(volume, node)
        if node is not None:
            order = dispatch_pb2.OpenTunnel(create_volume=to_proto(volume))
            await self._ask(node, order, CREATE_TIMEOUT)
        try:
            revision = await commit(ctx.kv, [Change(None, volume)])
        except Conflict:
            raise already_exists(
                f"volume '{volume.name}' was created concurrently; retry"
            ) from None
        await ctx.cache.wait_for(revision)
        return to_proto(replace(volume, revision=revision))

    async def list_volumes(
        self, request: volumes_pb2.ListVolumesRequest
    ) -> volumes_pb2.ListVolumesReply:
        """List declared volumes and those that nodes report."""
        seen = await self._ask_nodes(request.name)
        rows = self._rows(seen)
        if request.name:
            rows = [row for row in rows if row.volume.id == request.name]
            if not rows:
                raise self._unknown(request.name)
        return volumes_pb2.ListVolumesReply(volumes=rows, notices=seen.notices)

    async def remove_volume(
        self, request: volumes_pb2.RemoveVolumeRequest
    ) -> volumes_pb2.RemoveVolumeReply:
        """Remove a volume and its data from all nodes."""
        await self._remove(request.name, request.node, request.force)
        return volumes_pb2.RemoveVolumeReply(name=request.name)

    async def prune_volumes(
        self, request: volumes_pb2.PruneVolumesRequest
    ) -> volumes_pb2.PruneVolumesReply:
        """Remove volumes that nothing uses, with their data."""
        seen = await self._ask_nodes("")
        reply = volumes_pb2.PruneVolumesReply(notices=seen.notices)
        for row in self._rows(seen):
            managed = row.declared or row.seen.managed
            if row.used_by or not managed or not _matches(row, request):
                continue
            try:
                await self._remove(row.volume.id, row.node if not row.declared else "", False)
            except RequestError as refusal:
                reply.notices.append(refusal.text)
                continue
            reply.names.append(row.volume.id)
            reply.reclaimed += max(0, row.seen.size)
        return reply

    def _creation_node(self, volume: Volume, node: Node | None) -> tuple[Node | None, Volume]:
        """The node on which to create the volume now, and the volume to store. A local volume
        without a given node is created where its first user is placed; one of a plugin with global
        scope at once, by any node that has the plugin."""
        able = [
            one
            for one in sorted(self.ctx.view.nodes.values(), key=lambda n: n.description.hostname)
            if one.state is NodeState.READY
            and (volume.driver == LOCAL_DRIVER or volume.driver in one.description.volume_drivers)
        ]
        if node is not None and volume.driver != LOCAL_DRIVER and node not in able:
            raise failed_precondition(
                f"node {node.description.hostname} has no volume driver '{volume.driver}'"
            )
        if not able and volume.driver != LOCAL_DRIVER:
            raise failed_precondition(
                f"no node that is up has the volume driver '{volume.driver}'; start its plugin"
            )
        chosen = node or (able[0] if able else None)
        scopes = chosen.description.volume_drivers if chosen else {}
        if scopes.get(volume.driver) == "global":
            return chosen, replace(volume, scope=VolumeScope.GLOBAL)
        return node, replace(volume, node_id=node.id if node else "")

    @on_current_state
    async def _remove(self, name: str, hostname: str, force: bool) -> None:
        """Mark the volume, so that it takes no new users; check for users; remove its data; delete
        it."""
        ctx = self.ctx
        volume = ctx.view.volumes.get(name)
        if volume is None:
            await self._remove_undeclared(name, hostname, force)
            return
        self._check_unused(name)
        marked = replace(volume, removing=True)
        revision = await commit(ctx.kv, [Change(volume, marked)])
        await ctx.cache.wait_for(revision)
        marked = replace(marked, revision=revision)
        try:
            self._check_unused(name)
            await self._remove_data(volume, force)
        except BaseException:
            await commit(ctx.kv, [Change(marked, replace(marked, removing=False))])
            raise
        await ctx.cache.wait_for(await commit(ctx.kv, [Change(marked, None)]))

    def _check_unused(self, name: str) -> None:
        if tasks := volume_consumers(self.ctx.view).get(name):
            raise self._in_use(name, tasks)

    def _in_use(self, name: str, tasks: Iterable[Task]) -> RequestError:
        found = {consumer(self.ctx.view, task) for task in tasks}
        return in_use_error(f"volume '{name}'", in_order(found))

    async def _remove_data(self, volume: Volume, force: bool) -> None:
        node = self._home(volume)
        if node is None:
            if (volume.node_id or volume.scope is VolumeScope.GLOBAL) and not force:
                raise failed_precondition(
                    f"the node of volume '{volume.name}' is gone; --force forgets the volume"
                )
            return
        order = dispatch_pb2.OpenTunnel(
            remove_volume=dispatch_pb2.RemoveVolumeOrder(volume=to_proto(volume), force=force)
        )
        try:
            await self._ask(node, order, REMOVE_TIMEOUT)
        except RequestError:
            if not (force and node.state is not NodeState.READY):
                raise

    def _home(self, volume: Volume) -> Node | None:
        """The node that can remove the volume's data."""
        view = self.ctx.view
        if volume.scope is VolumeScope.LOCAL:
            return view.nodes.get(volume.node_id)
        able = (
            node.id
            for node in view.nodes.values()
            if volume.driver in node.description.volume_drivers
        )
        first = min(self.ctx.dispatcher.reachable_nodes(able), default="")
        return view.nodes.get(first)

    async def _remove_undeclared(self, name: str, hostname: str, force: bool) -> None:
        seen = await self._ask_nodes(name)
        found = [
            (node, one)
            for node, one in seen.volumes.get(name, ())
            if not hostname or node.description.hostname == hostname
        ]
        if not found:
            if force:
                return
            raise self._unknown(name)
        if len(found) > 1:
            where = ", ".join(node.description.hostname for node, _ in found)
            raise invalid_argument(f"volume '{name}' is on {where}; name the node with --node")
        node, one = found[0]
        if one.users:
            raise self._in_use(name, self._tasks(one.users))
        volume = Volume(id=name, driver=one.driver, node_id=node.id)
        order = dispatch_pb2.OpenTunnel(
            remove_volume=dispatch_pb2.RemoveVolumeOrder(volume=to_proto(volume), force=force)
        )
        await self._ask(node, order, REMOVE_TIMEOUT)

    async def _ask_nodes(self, name: str) -> _NodeAnswers:
        """Ask the nodes that may have it (all, without a name), in parallel."""
        seen = _NodeAnswers()
        view = self.ctx.view
        volume = view.volumes.get(name)
        nodes = sorted(view.nodes.values(), key=lambda node: node.description.hostname)
        if volume is not None and volume.node_id:
            nodes = [node for node in nodes if node.id == volume.node_id]
        answers = await asyncio.gather(*(self._ask_what(node) for node in nodes))
        for node, answer in zip(nodes, answers, strict=True):
            hostname = node.description.hostname
            if isinstance(answer, str):
                seen.notices.append(answer)
                continue
            seen.notices += [f"{hostname}: {notice}" for notice in answer.notices]
            for one in answer.volumes:
                seen.volumes.setdefault(one.name, []).append((node, one))
        return seen

    async def _ask_what(self, node: Node) -> Any:
        """A node's NodeVolumes, or a line that says why there is none."""
        hostname = node.description.hostname
        if node.state is not NodeState.READY:
            return f"node {hostname} is {node.state.name.lower()}; its volumes are not listed"
        order = dispatch_pb2.OpenTunnel(list_volumes=dispatch_pb2.VolumesOrder())
        try:
            return (await self._ask(node, order, LIST_TIMEOUT)).volumes
        except RequestError as refusal:
            return refusal.text

    async def _ask(self, node: Node, order: Any, timeout: float) -> Any:
        """The TunnelResult of a request to a node. Raises RequestError."""
        ctx, hostname = self.ctx, node.description.hostname
        try:
            async with (
                asyncio.timeout(timeout),
                ctx.tunnels.open(node.id, hostname, order, ctx.dispatcher.deliver) as tunnel,
            ):
                async for frame in tunnel.frames():
                    if frame.WhichOneof("kind") == "result":
                        if frame.result.error:
                            raise failed_precondition(f"{frame.result.error} (on node {hostname})")
                        return frame.result
        except TimeoutError:
            pass
        raise failed_precondition(f"node {hostname} did not answer within {timeout:g} s")

    def _rows(self, seen: _NodeAnswers) -> list[Any]:
        view = self.ctx.view
        used = volume_consumers(view)
        rows = []
        for volume in view.volumes.values():
            found = seen.volumes.pop(volume.name, [])
            home = view.nodes.get(volume.node_id)
            rows.append(
                volumes_pb2.VolumeRow(
                    volume=to_proto(volume),
                    seen=found[0][1] if found else None,
                    node=home.description.hostname if home else volume.node_id,
                    used_by=[task.name for task in used.get(volume.name, ())],
                    declared=True,
                )
            )
        for name, found in seen.volumes.items():
            for node, one in found:
                volume = Volume(
                    id=name,
                    created_at=one.created_at,
                    driver=one.driver,
                    labels=dict(one.labels),
                    options=dict(one.options),
                    node_id=node.id,
                )
                rows.append(
                    volumes_pb2.VolumeRow(
                        volume=to_proto(volume),
                        seen=one,
                        node=node.description.hostname,
                        used_by=[task.name for task in self._tasks(one.users)],
                    )
                )
        rows.sort(key=lambda row: (row.volume.id, row.node))
        return rows

    def _tasks(self, ids: Iterable[str]) -> list[Task]:
        tasks = self.ctx.view.tasks
        return [tasks.get(id) or Task(id=id, service_name=id) for id in ids]

    def _unknown(self, name: str) -> RequestError:
        guess = near_miss(name, self.ctx.view.volumes)
        hint = f"did you mean '{guess}'?" if guess else "see 'orc volume ls'"
        return not_found(f"no volume '{name}'; {hint}")


def _check_identical(known: Volume, wanted: Volume, node: Node | None) -> Volume:
    """Raise RequestError if the existing volume differs: creating an identical one is a no-op."""
    if known.driver != wanted.driver:
        raise already_exists(f"volume '{known.name}' already exists with the driver {known.driver}")
    if known.options != wanted.options:
        raise already_exists(f"volume '{known.name}' already exists with other options")
    if node is not None and known.node_id not in ("", node.id):
        raise already_exists(f"volume '{known.name}' already exists on another node")
    return known


def _matches(row: Any, request: Any) -> bool:
    """Docker's rule: without `all`, only anonymous volumes."""
    if not request.all and (row.declared or not row.seen.anonymous):
        return False
    return matches_prune_filters(row.volume.labels, row.volume.created_at, request)
