# SPDX-License-Identifier: Apache-2.0
"""Orphans of a restored cluster: list, adopt and remove them.

An orphan's spec is what its node reports, and no manager can verify it. It is adopted only on a
user's request, only on that node, and as a task of a service only if it is what the service's spec
says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count

from orchestrator.manager.errors import (
    RequestError,
    already_exists,
    failed_precondition,
    invalid_argument,
)
from orchestrator.manager.object_lookup import find_orphan
from orchestrator.manager.operations.context import Operations, hostnames
from orchestrator.manager.operations.published_ports import claim_ports
from orchestrator.manager.operations.references import resolve_documents, resolve_networks
from orchestrator.manager.planning.eligibility import is_eligible
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.reconcile import job_runs
from orchestrator.manager.planning.reconcile.document_versions import newest_versions
from orchestrator.manager.planning.reports.claims import credible_status
from orchestrator.manager.planning.scheduling.volume_placement import volume_changes
from orchestrator.manager.planning.slots import Slot, ended, slots_of, waits
from orchestrator.manager.planning.task_filling import filled_in
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import unique_key
from orchestrator.manager.store.kv import Conflict, Guard, Put
from orchestrator.model.administration.orphans import Orphan
from orchestrator.model.convert import to_proto
from orchestrator.model.jobs import parse_indexes
from orchestrator.model.names import check_container_name
from orchestrator.model.objects import Object
from orchestrator.model.services import JobRun, Service
from orchestrator.model.specs import ServiceMode, ServiceSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task
from orchestrator.model.validation.service_specs import MAX_REPLICAS, validate_task
from orchestrator.pb import containers_pb2, types_pb2


@dataclass(frozen=True, slots=True)
class Adoption:
    """The changes that make an orphan a task."""

    task: Task
    changes: tuple[Change, ...]
    requires: tuple[Object, ...] = ()
    """What was read, and must not have changed."""


def adoption(
    view: ClusterView, orphan: Orphan, now: float, *, standalone: bool, name: str
) -> Adoption:
    """How the orphan becomes a task of its service, or a standalone container. Raises
    RequestError if it cannot."""
    if orphan.removing:
        raise failed_precondition(f"orphan '{orphan.name}' is being removed")
    if ended(orphan.task):
        raise failed_precondition(
            f"orphan '{orphan.name}' has ended; remove it: 'orc orphan rm {orphan.id}'"
        )
    node = view.nodes.get(orphan.node_id)
    if node is None:
        raise failed_precondition(f"the node of orphan '{orphan.name}' was removed")
    base = replace(
        orphan.task,
        node_id=orphan.node_id,
        desired_state=TaskState.RUNNING,
        running_since=now,
        revision=0,
    )
    service = None if standalone or base.standalone else _service(view, base)
    if service is not None and name:
        raise invalid_argument(
            f"'{orphan.name}' becomes a task of service '{service.spec.name}', which has no name "
            "of its own; give --standalone, too"
        )
    found = (
        _standalone(view, orphan, base, name)
        if service is None
        else _of_service(view, orphan, base, service)
    )
    task = found.task
    if credible_status(view, task, task.status) != task.status:
        raise failed_precondition(
            f"orphan '{orphan.name}' has addresses that its networks do not have on its node: they "
            "were created anew; remove it, and start another container"
        )
    volumes, read = volume_changes(view, task, node, now)
    return replace(found, changes=(*volumes, *found.changes), requires=(*found.requires, *read))


def _service(view: ClusterView, task: Task) -> Service | None:
    """The service that an orphan is of, possibly created anew under its name."""
    found = view.services.get(task.service_id) or view.service_by_name(task.service_name)
    return None if found is None or found.removed else found


def _of_service(view: ClusterView, orphan: Orphan, base: Task, service: Service) -> Adoption:
    spec, node = service.spec, view.nodes[orphan.node_id]
    other = f"give --standalone, or remove it: 'orc orphan rm {orphan.id}'"
    run = _run(base, service, other) if spec.mode.is_job else None
    # What the task has to be: a run in progress keeps the spec with which it began.
    wanted = service if run is None else job_runs.service_at_run(service, run)
    run_number = 0 if run is None else run.number
    siblings = {
        id: task
        for id, task in view.tasks_of_service(service.id).items()
        if task.job_run == run_number
    }
    slots = slots_of(siblings)
    if spec.mode.is_global:
        number = _slot_of_node(slots, base)
    elif 1 <= base.slot <= (MAX_REPLICAS if run is None else wanted.spec.replicas):
        number = base.slot
    else:
        raise failed_precondition(
            f"service '{spec.name}' has no replicas that orphan '{orphan.name}' could be; {other}"
        )
    if (spec.mode.is_global or run is not None) and not is_eligible(node, service):
        raise failed_precondition(
            f"service '{spec.name}' may not run on {node.description.hostname}, the node of orphan "
            f"'{orphan.name}': it is drained, or a constraint excludes it; change that, or {other}"
        )
    task = replace(
        base,
        service_id=service.id,
        service_name=spec.name,
        slot=number,
        job_run=run_number,
        spec=wanted.spec.task,
        spec_version=wanted.spec_version,
    )
    filled = filled_in(view, task).spec
    if replace(orphan.task.spec, restart=filled.restart) != filled or (
        (task.image_digest, task.documents) != (wanted.image_digest, wanted.documents)
    ):
        raise failed_precondition(
            f"orphan '{orphan.name}' has another spec, image or secret than service "
            f"'{spec.name}', which would replace it; update the service, or {other}"
        )
    changes = [Change(orphan, None)]
    newest = task.created_at
    for former in slots[number].tasks if number in slots else ():
        newest = max(newest, math.nextafter(former.created_at, math.inf))
        if not ended(former) and former.desired_state <= TaskState.RUNNING:
            changes.append(_stopped(former))
    task = replace(task, created_at=newest)
    after = service
    if spec.mode is ServiceMode.REPLICATED:
        kept = {slot.number for slot in slots.values() if slot.kept}
        replicas = max(spec.replicas, len(kept | {number}))
        after = replace(service, spec=replace(spec, replicas=replicas))
    # Written in any case: a plan of the service that does not know the task conflicts.
    return Adoption(task, (*changes, Change(None, task), Change(service, after)))


def _run(base: Task, service: Service, other: str) -> JobRun:
    """The run in progress that an orphan of a job is of, which has not counted its index yet.
    Raises RequestError."""
    name, number = service.spec.name, base.job_run
    run = next((run for run in job_runs.active_runs(service) if run.number == number), None)
    if run is None:
        raise failed_precondition(
            f"job '{name}' has no run {number} in progress, of which orphan '{base.name}' is; "
            f"{other}"
        )
    if base.slot in parse_indexes(run.completed) or base.node_id in run.nodes:
        raise failed_precondition(
            f"run {number} of job '{name}' has already completed what orphan '{base.name}' works "
            f"on; {other}"
        )
    return run


def _slot_of_node(slots: Mapping[int, Slot], base: Task) -> int:
    """The slot of a node's task of a global service. Without one the orphan keeps its number, if
    no other node's task has that."""
    on_node = [slot for slot in slots.values() if slot.newest.node_id == base.node_id]
    if on_node:
        return next((slot for slot in on_node if slot.kept), on_node[0]).number
    if 1 <= base.slot <= MAX_REPLICAS and base.slot not in slots:
        return base.slot
    return next(number for number in count(1) if number not in slots)


def _stopped(task: Task) -> Change:
    """The task that has filled the slot since the restore, stopped."""
    if waits(task):
        status = replace(task.status, state=TaskState.SHUTDOWN, message="its slot was adopted")
        return Change(task, replace(task, desired_state=TaskState.SHUTDOWN, status=status))
    return Change(task, replace(task, desired_state=TaskState.SHUTDOWN))


def _standalone(view: ClusterView, orphan: Orphan, base: Task, name: str) -> Adoption:
    name = name or base.name
    try:
        check_container_name(name)
    except ValueError as error:
        raise invalid_argument(str(error)) from None
    validate_task(base.spec)
    networks = resolve_networks(view, ServiceSpec(task=base.spec), name=name)
    documents = resolve_documents(view, base.spec.container)
    task = replace(
        base,
        container_name=name,
        service_id="",
        service_name="",
        slot=0,
        spec_version=0,
        job_run=0,
        documents=newest_versions(view, base.spec.container),
    )
    changes = (Change(orphan, None), Change(None, task))
    return Adoption(task, changes, (*networks, *documents))


class OrphanOperations(Operations):
    """Operations of `orc orphan`."""

    async def list_orphans(
        self, request: containers_pb2.ListOrphansRequest
    ) -> containers_pb2.ListOrphansReply:
        """List the orphans of all nodes."""
        view = self.ctx.view
        ordered = sorted(view.orphans.values(), key=lambda each: (each.name, each.id))
        return containers_pb2.ListOrphansReply(
            orphans=map(to_proto, ordered), hostnames=hostnames(view)
        )

    async def adopt(self, request: containers_pb2.AdoptOrphanRequest) -> types_pb2.Task:
        """Make an orphan a task, without a restart."""
        ctx, cache = self.ctx, self.ctx.cache
        word = request.orphan
        while True:
            read = cache.revision
            orphan = find_orphan(cache.view, word)
            word = orphan.id
            found = adoption(
                cache.view, orphan, ctx.now(), standalone=request.standalone, name=request.name
            )
            task = found.task
            key = unique_key(task)
            guards: list[Guard] = []
            ops: list[Put] = []
            if key is not None:
                turn = await claim_ports(ctx.kv, cache, task.spec, task.id)
                guards = [Guard(key, mod_revision=0), *turn.guards]
                ops = [Put(key, task.id.encode()), *turn.ops]
            try:
                revision = await commit(
                    ctx.kv, found.changes, found.requires, guards=guards, ops=ops
                )
            except Conflict as conflict:
                if key in conflict.keys:
                    raise _name_taken(task.container_name) from None
                await cache.wait_for(read + 1)
            else:
                await cache.wait_for(revision)
                return to_proto(replace(task, revision=revision))

    async def remove(self, request: containers_pb2.RemoveOrphanRequest) -> types_pb2.Orphan:
        """Have an orphan's node stop and remove it."""
        ctx, cache = self.ctx, self.ctx.cache
        word = request.orphan
        while True:
            read = cache.revision
            orphan = find_orphan(cache.view, word)
            word = orphan.id
            after = replace(orphan, removing=True)
            try:
                revision = await commit(ctx.kv, [Change(orphan, after)])
            except Conflict:
                await cache.wait_for(read + 1)
            else:
                await cache.wait_for(revision)
                return to_proto(replace(after, revision=revision))


def _name_taken(name: str) -> RequestError:
    return already_exists(f"there is a container '{name}'; give --standalone --name NAME")
