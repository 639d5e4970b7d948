# SPDX-License-Identifier: Apache-2.0
"""Questions about scheduling: how many more tasks fit, and why tasks are where they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

from orchestrator.manager.errors import invalid_argument
from orchestrator.manager.event_loop import offload
from orchestrator.manager.object_lookup import find_service, find_service_or_task
from orchestrator.manager.operations.context import Operations
from orchestrator.manager.planning.disruptions import disruptions_left, unavailable
from orchestrator.manager.planning.eligibility import is_eligible
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.scheduling.explanation import (
    NodeVerdict,
    capacity,
    next_task,
    verdicts,
)
from orchestrator.manager.planning.scheduling.node_table import priority_of
from orchestrator.manager.planning.scheduling.rebalancing import improving_moves
from orchestrator.manager.planning.scheduling.volume_placement import name_on, named_volumes
from orchestrator.manager.planning.slots import ended, slots_of, waits
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.commit import commit
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.nodes import Availability, Node
from orchestrator.model.scheduling.disruptions import DisruptionBudget, priority_text
from orchestrator.model.services import Service
from orchestrator.model.specs import ServiceSpec, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task
from orchestrator.model.validation.service_specs import validate_resources
from orchestrator.pb import scheduling_pb2

DEFAULT_MOVES = 10
"""Moves of one call of `orc rebalance`, unless it says how many."""


class PlacementOperations(Operations):
    """Operations of `orc capacity`, `orc why` and `orc rebalance`."""

    async def get_capacity(
        self, request: scheduling_pb2.CapacityRequest
    ) -> scheduling_pb2.CapacityReply:
        """Count how many more tasks of a service, or containers of a size, fit."""
        view = self.ctx.view
        service = find_service(view, request.service) if request.service else None
        spec = TaskSpec(reservation=from_proto(request.reservation, strict=True))
        validate_resources(spec)
        if service is not None:
            spec = service.spec.task
        return await offload(_capacity, view, service, spec, self.ctx.now())

    async def rebalance(
        self, request: scheduling_pb2.RebalanceRequest
    ) -> scheduling_pb2.RebalanceReply:
        """Have running tasks moved to other nodes where that improves something."""
        view = self.ctx.view
        service = find_service(view, request.service) if request.service else None
        if request.max_moves < 0:
            raise invalid_argument(f"{request.max_moves} moves are negative")
        most = request.max_moves or DEFAULT_MOVES
        id = service.id if service is not None else ""
        moves = await offload(improving_moves, view, self.ctx.now(), most, id)
        changes = [Change(move.task, replace(move.task, move_to=move.target.id)) for move in moves]
        read = {node.id: node for move in moves for node in (move.source, move.target)}
        services = {move.task.service_id: view.services[move.task.service_id] for move in moves}
        if changes:
            revision = await commit(self.ctx.kv, changes, [*read.values(), *services.values()])
            await self.ctx.cache.wait_for(revision)
        return scheduling_pb2.RebalanceReply(
            moves=[
                scheduling_pb2.TaskMove(
                    task_id=move.task.id,
                    task=move.task.name,
                    service_id=move.task.service_id,
                    source=_hostname(move.source),
                    target=_hostname(move.target),
                    reason=move.reason,
                )
                for move in moves
            ]
        )

    async def get_placement(
        self, request: scheduling_pb2.PlacementRequest
    ) -> scheduling_pb2.PlacementReply:
        """Explain where a task, or the tasks of a service, are."""
        view = self.ctx.view
        subject = find_service_or_task(view, request.subject)
        return await offload(_placement, view, subject, self.ctx.now())


def _capacity(
    view: ClusterView, service: Service | None, spec: TaskSpec, now: float
) -> scheduling_pb2.CapacityReply:
    found = capacity(view, service, spec, now)
    return scheduling_pb2.CapacityReply(
        tasks=found.tasks,
        each=to_proto(found.resources),
        limit=found.limit,
        nodes=[
            scheduling_pb2.NodeRoom(
                id=room.node.id,
                hostname=room.node.description.hostname,
                free=to_proto(room.free),
                tasks=room.tasks,
                limit=room.limit,
                availability=cast(Any, int(room.node.availability)),
                if_active=room.if_active,
            )
            for room in found.nodes
        ],
        like=found.largest.description.hostname if found.largest else "",
        per_node=found.per_largest,
        service=service.spec.name if service else "",
    )


def _placement(
    view: ClusterView, subject: Service | Task, now: float
) -> scheduling_pb2.PlacementReply:
    if isinstance(subject, Task):
        tasks, asked = [subject], subject
        service = view.services.get(subject.service_id)
    else:
        live = [task for task in view.tasks_of_service(subject.id).values() if not ended(task)]
        tasks = sorted(live, key=lambda task: (task.job_run, task.slot, task.created_at))
        asked, service = next_task(subject), subject
    impossible, nodes = verdicts(view, asked, now)
    return scheduling_pb2.PlacementReply(
        kind="task" if isinstance(subject, Task) else "service",
        name=subject.name if isinstance(subject, Task) else subject.spec.name,
        tasks=[_task(view, service, each) for each in tasks],
        notes=_notes(view, service, asked),
        nodes=[_verdict(each, asked) for each in nodes],
        impossible=impossible,
    )


def _task(view: ClusterView, service: Service | None, task: Task) -> scheduling_pb2.PlacedTask:
    node = None if waits(task) and not task.standalone else view.nodes.get(task.node_id)
    return scheduling_pb2.PlacedTask(
        id=task.id,
        name=task.name,
        state=cast(Any, int(task.status.state)),
        desired_state=cast(Any, int(task.desired_state)),
        node=_hostname(node) if node else "",
        reason=_reason(view, service, task, node),
    )


def _reason(view: ClusterView, service: Service | None, task: Task, node: Node | None) -> str:
    """Why a task waits, ended, is being stopped, or stays on a node that it is to leave."""
    if task.preempted_by:
        stopped = f"preempted by {task.preempted_by}"
        return f"{stopped}; {task.status.message}" if task.status.message else stopped
    if waits(task) or ended(task) or service is None or node is None:
        return task.status.message
    if task.desired_state > TaskState.RUNNING:
        return "it is being stopped"
    if task.move_to and (target := view.nodes.get(task.move_to)):
        return f"it is being moved to {_hostname(target)}"
    if is_eligible(node, service):
        return task.status.message
    slots = [slot for slot in slots_of(view.tasks_of_service(service.id)).values() if slot.kept]
    if task.status.works and disruptions_left(service, slots) <= 0:
        why = f"the disruption budget of {service.spec.name} allows no more unavailable tasks"
        return f"it is to leave the node, but {why} ({unavailable(slots)} of {len(slots)} are)"
    drained = node.availability is Availability.DRAIN
    if drained and 0 < node.drain_most <= unavailable(slots):
        return "it is to leave the node, but the drain's --max-unavailable is reached"
    return "it is to leave the node once its replacement works"


def _notes(view: ClusterView, service: Service | None, task: Task) -> Iterator[str]:
    """What determines where a task may be, besides capacity."""
    if priority := priority_of(view, task):
        yield f"priority {priority_text(priority)}"
    if task.standalone and task.node_id:
        yield "a container keeps its node for life"
    if task.moved_from and (former := view.nodes.get(task.moved_from)):
        yield f"it was moved from {_hostname(former)}"
    if task.nominated_node and (held := view.nodes.get(task.nominated_node)):
        yield f"room on {_hostname(held)} is held for it"
    spec = service.spec if service else ServiceSpec(constraints=task.constraints)
    if spec.mode.is_global:
        yield "one task runs on each eligible node"
    yield from (f"constraint {text}" for text in spec.constraints)
    yield from (f"{each.word} {each}" for each in spec.affinities or task.affinities)
    yield from (f"spread over {text}" for text in spec.spread)
    if spec.max_per_node:
        yield f"at most {spec.max_per_node} per node"
    for mount in named_volumes(task):
        node = view.nodes.get(task.node_id)
        name = name_on(mount, node) if node else mount.source
        volume = view.volumes.get(name)
        if volume is not None and (home := view.nodes.get(volume.node_id)):
            yield f"volume {name} is pinned to {_hostname(home)}"
    if spec.disruption != DisruptionBudget():
        budget = spec.disruption
        parts = (
            ("min available", budget.min_available),
            ("max unavailable", budget.max_unavailable),
        )
        yield "disruption budget: " + ", ".join(f"{what} {text}" for what, text in parts if text)


def _verdict(verdict: NodeVerdict, task: Task) -> scheduling_pb2.NodeVerdict:
    return scheduling_pb2.NodeVerdict(
        id=verdict.node.id,
        hostname=verdict.node.description.hostname,
        place=verdict.place,
        refusals=verdict.refusals,
        tasks=verdict.tasks,
        affinity=verdict.affinity,
        load=verdict.load,
        has_image=verdict.has_image,
        avoided=verdict.avoided,
        here=bool(task.node_id) and task.node_id == verdict.node.id,
    )


def _hostname(node: Node) -> str:
    return node.description.hostname or node.id
