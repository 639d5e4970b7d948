# SPDX-License-Identifier: Apache-2.0
"""Operations on services and their tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from orchestrator.manager.errors import (
    aborted,
    already_exists,
    failed_precondition,
    invalid_argument,
)
from orchestrator.manager.event_loop import offload
from orchestrator.manager.object_lookup import find_node, find_service
from orchestrator.manager.operations.context import Operations, hostnames
from orchestrator.manager.operations.images.digest_resolution import resolve_digest
from orchestrator.manager.operations.published_ports import (
    PortClaim,
    check_ports,
    claim_ports,
    with_effective_port_modes,
)
from orchestrator.manager.operations.references import (
    check_no_dependents,
    resolve_dependencies,
    resolve_documents,
    resolve_networks,
)
from orchestrator.manager.operations.workloads.queues import check_queue_exists
from orchestrator.manager.operations.workloads.task_pages import by_service, task_page
from orchestrator.manager.planning.networking.allocation import allocate_vips
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.reconcile import job_runs
from orchestrator.manager.planning.reconcile.convergence import Watch, progress
from orchestrator.manager.planning.reconcile.document_versions import (
    newest_versions,
    versions_for_rollback,
    with_due_versions,
)
from orchestrator.manager.planning.reconcile.spec_history import rolled_back, with_spec
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import PORT_TURN, name_key, object_key
from orchestrator.manager.store.kv import Conflict, Delete, Guard, Put
from orchestrator.model.compatibility.manager_features import AUTOSCALING, AUTOSCALING_QUERIES
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.formats.spec_diff import describe_differences
from orchestrator.model.objects import Object
from orchestrator.model.services import Service, UpdateState
from orchestrator.model.specs import ServiceSpec
from orchestrator.model.tasks import Task
from orchestrator.model.validation.service_specs import validate_service, validate_tasks_of_service
from orchestrator.pb import control_pb2, types_pb2
from orchestrator.tracing.spans import current

PROGRESS_INTERVAL = 0.02
"""Seconds between two progress messages, at least: one message about the start of sixty tasks
covers many changes."""


def _check_features(view: ClusterView, spec: ServiceSpec) -> None:
    """Raise RequestError for a job in a queue that does not exist, or for a spec that a manager of
    an older version would not follow."""
    check_queue_exists(view, spec.job.queue)
    if not spec.autoscale.enabled:
        return
    query = spec.autoscale.query
    feature = AUTOSCALING_QUERIES if query else AUTOSCALING
    old = [each.hostname for each in view.managers.values() if feature not in each.features]
    if old:
        what = "autoscaling by a query" if query else "autoscaling"
        raise failed_precondition(
            f"{what} is not known to {', '.join(sorted(old))}; upgrade all managers first"
        )
    if query and (view.cluster is None or not view.cluster.prometheus):
        raise failed_precondition(
            "autoscaling by a query needs a Prometheus that managers reach; name it with 'orc "
            "cluster update --prometheus URL'"
        )


class ServiceOperations(Operations):
    """Operations of `orc service …`."""

    async def create_service(self, request: control_pb2.CreateServiceRequest) -> types_pb2.Service:
        """Create a service. The image's tag is resolved to a digest once for all replicas."""
        ctx = self.ctx
        spec = _with_effective_port_modes(ctx.view, from_proto(request.spec, strict=True))
        validate_service(spec)
        validate_tasks_of_service(spec.task.container)
        name = spec.name
        if (there := ctx.view.service_by_name(name)) is not None and not there.removed:
            raise already_exists(
                f"service '{name}' already exists; choose another name, "
                f"or change it with 'orc service update {name}'"
            )
        _check_features(ctx.view, spec)
        resolve_networks(ctx.view, spec)
        resolve_dependencies(ctx.view, spec)
        resolve_documents(ctx.view, spec.task.container)
        check_ports(ctx.view, spec.task, "")
        now = ctx.now()
        service = Service(
            id=ctx.new_id(),
            created_at=now,
            updated_at=now,
            spec=spec,
            image_digest=await resolve_digest(
                ctx, spec.task.container, ask_registry=not request.no_resolve_image
            ),
        )
        service = replace(job_runs.with_first_run(service), trace=current())
        key = name_key(Service, name)
        while True:
            read = ctx.cache.revision
            documents = resolve_documents(ctx.view, spec.task.container)
            service = replace(service, documents=newest_versions(ctx.view, spec.task.container))
            born = _with_vips(ctx.view, service)
            turn = await claim_ports(ctx.kv, ctx.cache, spec.task, service.id)
            try:
                revision = await commit(
                    ctx.kv,
                    [Change(None, born)],
                    [
                        *resolve_networks(ctx.view, spec),
                        *resolve_dependencies(ctx.view, spec),
                        *documents,
                    ],
                    guards=[Guard(key, mod_revision=0), *turn.guards],
                    ops=[Put(key, service.id.encode()), *turn.ops],
                )
            except Conflict as conflict:
                if key in conflict.keys:
                    raise already_exists(
                        f"service '{name}' already exists, perhaps in another letter case; "
                        "choose another name"
                    ) from None
                await ctx.cache.wait_for(read + 1)
            else:
                await ctx.cache.wait_for(revision)
                return to_proto(replace(born, revision=revision))

    async def update_service(self, request: control_pb2.UpdateServiceRequest) -> types_pb2.Service:
        """Replace a service's spec; fails if it was modified since the `base` of the request."""
        ctx = self.ctx
        service = find_service(ctx.view, request.service)
        if request.revision and request.revision != service.revision:
            _check_base(request, service)
        spec = _with_effective_port_modes(ctx.view, from_proto(request.spec, strict=True))
        if spec.name != service.spec.name:
            raise invalid_argument(
                "a service cannot be renamed; create another and remove this one"
            )
        if spec.mode is not service.spec.mode:
            raise invalid_argument("a service's mode cannot be changed; create another service")
        validate_service(spec)
        validate_tasks_of_service(spec.task.container)
        _check_features(ctx.view, spec)
        read = self._references(spec, service)
        check_ports(ctx.view, spec.task, service.id)
        digest = service.image_digest
        image_named = (
            request.resolve_image or spec.task.container.image != service.spec.task.container.image
        )
        if image_named or spec.task.force != service.spec.task.force:
            digest = await resolve_digest(
                ctx, spec.task.container, ask_registry=not request.no_resolve_image
            )
        documents = newest_versions(ctx.view, spec.task.container)

        def change(current: Service) -> Service:
            # With an unchanged spec, a new version of a secret or config begins its update here and
            # not some time later in the planner: who waits for this write waits for that, too.
            after = with_spec(current, spec, digest, ctx.now(), documents)
            return with_due_versions(ctx.view, after, ctx.now())

        return await self._commit_change(service, change, read)

    def _references(self, spec: ServiceSpec, service: Service) -> list[Object]:
        """The objects that a new spec refers to, which must not change until it is committed.
        Raises RequestError if the spec is not allowed."""
        view = self.ctx.view
        read: list[Object] = [*resolve_networks(view, spec, service.spec)]
        read += resolve_documents(view, spec.task.container)
        if spec.depends_on != service.spec.depends_on:
            read += resolve_dependencies(view, spec)
        return read

    async def rollback_service(
        self, request: control_pb2.RollbackServiceRequest
    ) -> types_pb2.Service:
        """Return a service to an earlier version of its spec."""
        service = find_service(self.ctx.view, request.service)
        name = service.spec.name
        versions = [past.version for past in service.history]
        if not versions:
            raise invalid_argument(f"service '{name}' has no previous spec to roll back to")
        version = request.version or versions[0]
        if version not in versions:
            known = ", ".join(map(str, versions))
            raise invalid_argument(
                f"service '{name}' has no version {version} in its history; it has {known}"
            )
        past = service.history[versions.index(version)]
        read = self._references(past.spec, service)
        check_ports(self.ctx.view, past.spec.task, service.id)
        documents = versions_for_rollback(self.ctx.view, past.spec.task.container, past.documents)
        words = f"back to version {version}"
        return await self._commit_change(
            service,
            lambda now: rolled_back(now, past, self.ctx.now(), words, documents=documents),
            read,
        )

    async def promote_service(
        self, request: control_pb2.PromoteServiceRequest
    ) -> types_pb2.Service:
        """Continue a rolling update that waits at its canaries."""
        service = find_service(self.ctx.view, request.service)
        goes_on = {
            UpdateState.CANARY: UpdateState.UPDATING,
            UpdateState.UPDATING: UpdateState.UPDATING,
        }.get(service.update.state)
        if goes_on is None:
            raise invalid_argument(
                f"service '{service.spec.name}' has no update at its canaries; see "
                f"'orc service inspect {service.spec.name}'"
            )
        update = replace(service.update, state=goes_on, promoted=True, finished_at=0.0, message="")
        return await self._commit_change(service, lambda now: replace(now, update=update), ())

    async def _commit_change(
        self, service: Service, change: Callable[[Service], Service], requires: Iterable[Object]
    ) -> Any:
        """Commit a changed service; return it."""
        ctx = self.ctx
        while True:
            after, turn = replace(change(service), trace=current()), PortClaim()
            ports = after.spec.task.ports
            if ports != service.spec.task.ports:
                turn = await claim_ports(ctx.kv, ctx.cache, after.spec.task, service.id)
            try:
                revision = await commit(
                    ctx.kv,
                    [Change(service, after)],
                    requires,
                    guards=turn.guards,
                    ops=turn.ops,
                )
            except Conflict as conflict:
                if conflict.keys != (PORT_TURN,):
                    service = await self._unless_modified(service, conflict)
            else:
                await ctx.cache.wait_for(revision)
                return to_proto(replace(after, revision=revision))

    async def _unless_modified(self, service: Service, conflict: Conflict) -> Service:
        """The current service, if only its status has changed, which the planner writes often.
        Raises the Conflict otherwise."""
        now = await self._current(service, conflict)
        if (now.spec, now.update) != (service.spec, service.update):
            raise conflict
        return now

    async def _current(self, service: Service, conflict: Conflict) -> Service:
        """The current service. Raises the Conflict if that is about something else, or if the
        service was removed."""
        if object_key(service) not in conflict.keys:
            raise conflict
        cache = self.ctx.cache
        while (now := cache.view.services.get(service.id)) is not None:
            if now.revision != service.revision:
                break
            await cache.wait_for(cache.revision + 1)
        if now is None or now.removed:
            raise conflict
        return now

    async def remove_service(
        self, request: control_pb2.RemoveServiceRequest
    ) -> control_pb2.RemoveServiceReply:
        """Remove a service; the planner stops its tasks."""
        ctx = self.ctx
        service = find_service(ctx.view, request.service)
        name = Delete(name_key(Service, service.spec.name))
        while True:
            check_no_dependents(ctx.view, service)
            after = replace(service, removed=True, updated_at=ctx.now())
            try:
                revision = await commit(ctx.kv, [Change(service, after)], ops=[name])
            except Conflict as conflict:
                service = await self._current(service, conflict)
            else:
                break
        await ctx.cache.wait_for(revision)
        return control_pb2.RemoveServiceReply(id=service.id)

    async def list_services(
        self, request: control_pb2.ListServicesRequest
    ) -> control_pb2.ListServicesReply:
        """List services with their numbers of running and desired tasks."""
        return await offload(_service_list, self.ctx.view, request)

    async def list_tasks(self, request: control_pb2.ListTasksRequest) -> control_pb2.ListTasksReply:
        """List tasks, optionally of one service or one node, and in pages."""
        return await offload(_task_list, self.ctx.view, request)

    async def watch_service(
        self, request: control_pb2.WatchServiceRequest
    ) -> AsyncIterator[control_pb2.ServiceProgress]:
        """Stream a service's progress until it is removed."""
        service_id = find_service(self.ctx.view, request.service).id
        since = request.since or self.ctx.cache.revision
        monitor = request.monitor if request.HasField("monitor") else None
        sent: dict[str, tuple[Task, Any]] = {}
        async with self.ctx.cache.subscribe() as feed:
            while True:
                watch = Watch(self.ctx.now(), since, monitor, request.since)
                picture = await offload(self._progress_message, service_id, watch, sent)
                yield picture
                if picture.removed:
                    return
                await asyncio.sleep(PROGRESS_INTERVAL)
                # Tasks become stable by time alone.
                with suppress(TimeoutError):
                    async with asyncio.timeout(picture.stable_in or None):
                        await feed.next()

    def _progress_message(
        self, service_id: str, watch: Watch, sent: dict[str, tuple[Task, Any]]
    ) -> Any:
        """The service's progress. `sent` caches each task's message as long as the task is
        unchanged: most are, from one message to the next."""
        view = self.ctx.view
        service = view.services.get(service_id)
        if service is None:
            return control_pb2.ServiceProgress(removed=True)
        state = progress(view, service_id, watch)
        tasks = view.tasks_of_service(service_id)
        for task_id, task in tasks.items():
            if task_id not in sent or sent[task_id][0] is not task:
                sent[task_id] = (task, to_proto(task))
        return control_pb2.ServiceProgress(
            service=to_proto(replace(service, history=())),
            tasks=[
                sent[task.id][1]
                for task in sorted(tasks.values(), key=lambda t: (t.slot, t.created_at))
            ],
            desired=state.desired,
            converged=state.converged,
            completed=state.completed,
            completions=state.completions,
            given_up=state.given_up,
            stable_in=state.stable_in,
            crashed=state.crashed,
            failing=state.failing,
            hostnames=hostnames(view),
        )


def _service_list(view: ClusterView, request: Any) -> Any:
    if request.service:
        services = [find_service(view, request.service)]
    else:
        live = (s for s in view.services.values() if not s.removed)
        services = sorted(live, key=lambda s: s.spec.name)
    rows = []
    for service in services:
        state = progress(view, service.id)
        rows.append(
            control_pb2.ServiceRow(
                service=to_proto(service),
                running=state.running,
                desired=state.desired,
                completed=state.completed,
                completions=state.completions,
            )
        )
    return control_pb2.ListServicesReply(services=rows)


def _task_list(view: ClusterView, request: Any) -> Any:
    node = find_node(view, request.node) if request.node else None
    groups: Iterable[Iterable[Task]]
    if request.service:
        tasks = view.tasks_of_service(find_service(view, request.service).id).values()
        groups = [[task for task in tasks if node is None or task.node_id == node.id]]
    elif node is not None:
        groups = [view.tasks_of_node(node.id).values()]
    else:
        groups = by_service(view, request.page_token)
    page = task_page(groups, request.page_size, request.page_token)
    orphans = [
        each
        for each in view.orphans.values()
        if node is not None and each.node_id == node.id and not request.page_token
    ]
    if request.page_size:
        nodes = {task.node_id for task in page.tasks} | {each.node_id for each in orphans}
        named = {
            id: view.nodes[id].description.hostname for id in sorted(nodes & view.nodes.keys())
        }
    else:
        named = hostnames(view)
    return control_pb2.ListTasksReply(
        tasks=[to_proto(task) for task in page.tasks],
        hostnames=named,
        orphans=[to_proto(each) for each in orphans],
        next_page_token=page.next_token,
    )


def _with_effective_port_modes(view: ClusterView, spec: ServiceSpec) -> ServiceSpec:
    return replace(spec, task=with_effective_port_modes(view, spec.task))


def _with_vips(view: ClusterView, service: Service) -> Service:
    """A new service with its VIPs, which the leader would otherwise allocate a moment later."""
    for change in allocate_vips(view.evolve([Change(None, service)]), [service.id]):
        if isinstance(change.after, Service):
            return change.after
    return service


def _check_base(request: Any, service: Service) -> None:
    """Raise RequestError if the spec that an update is based on was modified."""
    base = from_proto(request.base) if request.HasField("base") else None
    if base == service.spec:
        return  # only its status has changed
    what = f": {describe_differences(base, service.spec)}" if base is not None else ""
    raise aborted(
        f"service '{service.spec.name}' was modified concurrently{what}; "
        f"look at 'orc service inspect {service.spec.name}' and try again"
    )
