# SPDX-License-Identifier: Apache-2.0
"""Operations on containers: standalone ones, and single containers of services."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any
from zlib import crc32

from orchestrator.manager.errors import (
    RequestError,
    already_exists,
    failed_precondition,
    invalid_argument,
)
from orchestrator.manager.event_loop import offload
from orchestrator.manager.object_lookup import container_by_name, find_container, find_node
from orchestrator.manager.operations.context import Operations
from orchestrator.manager.operations.images.digest_resolution import resolve_digest
from orchestrator.manager.operations.published_ports import (
    PortClaim,
    check_ports,
    claim_ports,
    with_assigned_ports,
    with_effective_port_modes,
)
from orchestrator.manager.operations.references import resolve_documents, resolve_networks
from orchestrator.manager.operations.workloads import container_lifecycle
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.reconcile.document_versions import newest_versions
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import unique_key
from orchestrator.manager.store.kv import Conflict, Delete, Guard, Put
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.limits import limits_of
from orchestrator.model.names import check_container_name
from orchestrator.model.nodes import Node
from orchestrator.model.objects import Image
from orchestrator.model.signals import signal_number
from orchestrator.model.specs import Resources, ServiceSpec, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.model.validation.mount_specs import split_volumes_from
from orchestrator.model.validation.service_specs import (
    known_signal,
    validate_constraints,
    validate_priority,
    validate_task,
)
from orchestrator.model.validation.shared_namespaces import namespace_container, not_shared
from orchestrator.pb import containers_pb2, dispatch_pb2, types_pb2
from orchestrator.tracing.spans import current

_ADJECTIVES_TEXT = """
able agile amber ample azure bold brave brisk bright calm clear clever cosy crisp curious
daring deft eager early easy fair fast fine fleet fond frank fresh gentle glad golden
grand happy hardy honest humble jolly keen kind lively lucid lucky mellow merry mighty
modest neat nimble noble patient plain polite proud quick quiet rapid ready serene sharp
silent smart steady sunny swift tidy vivid warm wise witty
"""
_NOUNS_TEXT = """
acorn alder anchor apple aspen badger beacon beaver birch bison brook candle canyon cedar
cliff clover comet coral crane delta dolphin falcon fern finch forest fox garden glacier
harbor hawk hazel heron hill island ivy jaguar juniper kestrel lagoon lantern larch lark
maple marten meadow moose oak orchid otter owl panda pebble pine planet puffin quartz
raven reef ridge river robin rowan salmon sparrow spruce summit swan thistle tiger tulip
valley walnut willow wren
"""
_ADJECTIVES, _NOUNS = _ADJECTIVES_TEXT.split(), _NOUNS_TEXT.split()


def generate_container_name(id: str, taken: Callable[[str], bool]) -> str:
    """An unused name, derived from the container's id; with a suffix if it collides too often."""
    count = len(_ADJECTIVES) * len(_NOUNS)
    first = crc32(id.encode())
    for turn in range(16):
        number = (first + turn * 7919) % count
        name = f"{_ADJECTIVES[number // len(_NOUNS)]}_{_NOUNS[number % len(_NOUNS)]}"
        if not taken(name):
            return name
    return f"{name}_{first:08x}"


_LIVE = (TaskState.STARTING, TaskState.RUNNING)


class ContainerOperations(Operations):
    """Operations of `orc
    run|create|start|stop|restart|kill|pause|unpause|rm|rename|ps|wait|events`."""

    async def create_container(
        self, request: containers_pb2.CreateContainerRequest
    ) -> types_pb2.Task:
        """Create a standalone container, and have it run if `start` is set."""
        ctx, view = self.ctx, self.ctx.view
        id = ctx.new_id()
        spec = with_effective_port_modes(
            view, with_assigned_ports(view, from_proto(request.spec, strict=True), id)
        )
        validate_task(spec)
        for text in spec.container.volumes_from:
            find_container(view, split_volumes_from(text)[0])
        if word := namespace_container(spec.container):
            other = find_container(view, word).spec.container
            if reason := not_shared(spec.container, other):
                raise failed_precondition(reason)
        constraints = tuple(request.constraints)
        affinities = tuple(from_proto(each, strict=True) for each in request.affinities)
        validate_constraints(constraints, affinities)
        validate_priority(request.priority)
        if request.node:
            constraints = (*constraints, f"node.id=={find_node(view, request.node).id}")
        name = request.name or generate_container_name(
            id, lambda n: container_by_name(view, n) is not None
        )
        _check_name(name)
        wanted = ServiceSpec(task=spec)
        resolve_networks(view, wanted, name=name)
        resolve_documents(view, spec.container)
        check_ports(view, spec, id)
        now = ctx.now()
        task = Task(
            id=id,
            created_at=now,
            spec=spec,
            image_digest=await resolve_digest(ctx, spec.container, newest=False),
            desired_state=TaskState.RUNNING if request.start else TaskState.READY,
            status=TaskStatus(TaskState.PENDING, at=now, run=1),
            container_name=name,
            run=1,
            auto_remove=request.auto_remove,
            constraints=constraints,
            affinities=affinities,
            priority=request.priority,
            trace=current(),
        )
        key = unique_key(task)
        assert key is not None  # it has a name
        while True:
            read = ctx.cache.revision
            documents = resolve_documents(ctx.view, spec.container)
            task = replace(task, documents=newest_versions(ctx.view, spec.container))
            turn = await claim_ports(ctx.kv, ctx.cache, spec, id)
            try:
                revision = await commit(
                    ctx.kv,
                    [Change(None, task)],
                    [*resolve_networks(ctx.view, wanted, name=name), *documents],
                    guards=[Guard(key, mod_revision=0), *turn.guards],
                    ops=[Put(key, id.encode()), *turn.ops],
                )
            except Conflict as conflict:
                if key in conflict.keys:
                    raise _name_taken(view, name) from None
                await ctx.cache.wait_for(read + 1)
            else:
                await ctx.cache.wait_for(revision)
                return to_proto(replace(task, revision=revision))

    async def start_container(self, request: containers_pb2.ContainerRequest) -> types_pb2.Task:
        """Run a container that does not run."""
        return to_proto(
            await self._change(request.container, container_lifecycle.start, ports=True)
        )

    async def prepare_container(self, request: containers_pb2.ContainerRequest) -> types_pb2.Task:
        """Prepare a container's next run, so that `start_container` only needs to start it."""
        return to_proto(
            await self._change(request.container, container_lifecycle.prepare, ports=True)
        )

    async def stop_container(self, request: containers_pb2.StopContainerRequest) -> types_pb2.Task:
        """Stop a container and keep it stopped."""
        return to_proto(await self._stop_with(request, container_lifecycle.stop))

    async def restart_container(
        self, request: containers_pb2.StopContainerRequest
    ) -> types_pb2.Task:
        """Stop a container, if it runs, and run it again."""
        return to_proto(await self._stop_with(request, container_lifecycle.restart))

    async def remove_container(
        self, request: containers_pb2.RemoveContainerRequest
    ) -> types_pb2.Task:
        """Remove a container and its files."""

        def edit(task: Task) -> Task:
            return container_lifecycle.remove(self.ctx.view, task, request.force, request.volumes)

        return to_proto(await self._change(request.container, edit))

    async def rename_container(
        self, request: containers_pb2.RenameContainerRequest
    ) -> types_pb2.Task:
        """Rename a standalone container."""
        ctx = self.ctx
        _check_name(request.name)

        def edit(task: Task) -> Task:
            if not task.standalone:
                raise failed_precondition(
                    f"'{task.name}' is a task of a service; it cannot be renamed"
                )
            return replace(task, container_name=request.name)

        while True:
            read = ctx.cache.revision
            task = find_container(ctx.view, request.container)
            after = edit(task)
            old, new = unique_key(task), unique_key(after)
            assert old is not None
            assert new is not None  # both have names
            if old == new:
                return to_proto(task)
            try:
                revision = await commit(
                    ctx.kv,
                    [Change(task, after)],
                    guards=[Guard(new, mod_revision=0)],
                    ops=[Put(new, task.id.encode()), Delete(old)],
                )
            except Conflict as conflict:
                if new in conflict.keys:
                    raise _name_taken(ctx.view, request.name) from None
                await ctx.cache.wait_for(read + 1)
            else:
                await ctx.cache.wait_for(revision)
                return to_proto(replace(after, revision=revision))

    async def update_container(
        self, request: containers_pb2.UpdateContainerRequest
    ) -> types_pb2.Task:
        """Change resources and restart policy of a container, in place."""
        enforced: Task | None = None
        try:
            while True:
                read = self.ctx.cache.revision
                task = find_container(self.ctx.view, enforced.id if enforced else request.container)
                spec = _updated(task.spec, request)
                validate_task(spec)
                after = container_lifecycle.update(self.ctx.view, task, spec)
                if after == task:
                    return to_proto(task)
                # The node first: limits that its kernel rejects must not become the desired state.
                running = task.status.state is TaskState.RUNNING
                if running and limits_of(spec) != limits_of(task.spec):
                    await self._resize(task, spec)
                    enforced = task
                try:
                    revision = await commit(self.ctx.kv, [Change(task, after)])
                except Conflict:
                    await self.ctx.cache.wait_for(read + 1)
                else:
                    await self.ctx.cache.wait_for(revision)
                    return to_proto(replace(after, revision=revision))
        except Exception:
            # If the new limits were stored after all, the next assignment sets them again.
            if enforced is not None:
                with suppress(RequestError):
                    await self._resize(enforced, enforced.spec)
            raise

    async def _resize(self, task: Task, spec: TaskSpec) -> None:
        """Have the node enforce the limits of `spec` on a running container."""
        await self._send_order(task, dispatch_pb2.ContainerOrder.RESIZE, spec=to_proto(spec))

    async def kill_container(self, request: containers_pb2.KillContainerRequest) -> types_pb2.Task:
        """Send a signal to a running container."""
        if request.signal and not known_signal(request.signal):
            raise invalid_argument(
                f"signal {request.signal!r} is unknown; write such as SIGTERM or SIGINT"
            )
        number = signal_number(request.signal or "SIGKILL")
        task = self._running(request.container)
        if task.standalone and number == signal_number("SIGKILL"):
            # As desired state, so that it survives failures and no restart policy undoes it.
            return to_proto(
                await self._change(
                    task.id,
                    lambda found: container_lifecycle.stop(
                        found, "SIGKILL", container_lifecycle.NO_GRACE
                    ),
                )
            )
        await self._send_order(task, dispatch_pb2.ContainerOrder.SIGNAL, signal=number)
        return to_proto(task)

    async def pause_container(self, request: containers_pb2.ContainerRequest) -> types_pb2.Task:
        """Freeze a container's processes; return once its node reports it."""
        return await self._set_paused(request.container, True)

    async def unpause_container(self, request: containers_pb2.ContainerRequest) -> types_pb2.Task:
        """Thaw a container's processes; return once its node reports it."""
        return await self._set_paused(request.container, False)

    async def list_containers(
        self, request: containers_pb2.ListContainersRequest
    ) -> containers_pb2.ListContainersReply:
        """List all containers, or those that are named."""
        return await offload(_list, self.ctx.view, request)

    async def watch_container(
        self, request: containers_pb2.ContainerRequest
    ) -> AsyncIterator[containers_pb2.ContainerRow]:
        """Stream a container's states until it is removed; no state is left out."""
        cache, wake = self.ctx.cache, asyncio.Event()
        async with cache.subscribe() as feed:
            word = request.container
            if word not in cache.view.tasks and (gone := self.ctx.events.removed(word)):
                # It may have failed and been removed before its caller began to watch it.
                yield _row(cache.view, gone, removed=True)
                return
            task = find_container(cache.view, word)
            id, node_id = task.id, task.node_id
            rows: deque[Any] = deque([_row(cache.view, task)])

            def take() -> None:
                # Immediately, because the feed folds what it holds: no state may be left out.
                nonlocal node_id
                for change in feed.take():
                    found = change.subject
                    if isinstance(found, Task) and found.id == id:
                        node_id = found.node_id
                        rows.append(_row(cache.view, found, removed=change.after is None))
                    elif isinstance(found, Node) and found.id == node_id and id in cache.view.tasks:
                        rows.append(_row(cache.view, cache.view.tasks[id]))
                wake.set()

            feed.on_change = take
            while True:
                while rows:
                    row = rows.popleft()
                    yield row
                    if row.removed:
                        return
                wake.clear()
                await wake.wait()

    async def events(
        self, request: containers_pb2.EventsRequest
    ) -> AsyncIterator[containers_pb2.Event]:
        """Stream events of the cluster, past and future."""
        events, wake = self.ctx.events, asyncio.Event()
        async with events.follow(wake.set) as queue:
            known = request.after_revision, request.after_number
            past = events.since(request.since) if request.since else []
            if request.after_revision:
                past = events.after(known)
            for event in past:
                if not request.until or event.at <= request.until:
                    yield _event(event)
            while True:
                while queue:
                    event = queue.popleft()
                    # This manager may be behind the one that delivered the last one.
                    seen = event.revision and event.position <= known
                    if not seen and not (request.until and event.at > request.until):
                        yield _event(event)
                left = request.until - self.ctx.now() if request.until else None
                if left is not None and left <= 0:
                    return
                wake.clear()
                # Nothing is yielded within the timeout, which cancels what the caller does then.
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await wake.wait()

    async def _stop_with(
        self, request: Any, order: Callable[[Task, str, float | None], Task]
    ) -> Task:
        if request.signal and not known_signal(request.signal):
            raise invalid_argument(
                f"signal {request.signal!r} is unknown; write such as SIGTERM or SIGINT"
            )
        grace = request.grace if request.HasField("grace") else None
        return await self._change(
            request.container, lambda task: order(task, request.signal, grace)
        )

    async def _change(
        self, word: str, edit: Callable[[Task], Task], *, ports: bool = False
    ) -> Task:
        """Commit a change of a container; retried while the leader commits reports about it. With
        `ports`, claim its published ports."""
        cache = self.ctx.cache
        while True:
            read = cache.revision
            task = find_container(cache.view, word)
            word = task.id
            after = edit(task)
            if after == task:
                return task
            if after.run > task.run:
                after = replace(after, trace=current())
            turn = PortClaim()
            if ports:
                turn = await claim_ports(self.ctx.kv, cache, task.spec, task.id)
            try:
                revision = await commit(
                    self.ctx.kv, [Change(task, after)], guards=turn.guards, ops=turn.ops
                )
            except Conflict:
                await cache.wait_for(read + 1)
            else:
                await cache.wait_for(revision)
                return replace(after, revision=revision)

    def _running(self, word: str) -> Task:
        task = find_container(self.ctx.view, word)
        if task.status.state not in _LIVE:
            raise failed_precondition(f"container '{task.name}' is not running")
        return task

    async def _send_order(self, task: Task, action: Any, **details: Any) -> None:
        """Have the container's node act on it immediately. Raises RequestError."""
        node = self.ctx.view.nodes.get(task.node_id)
        hostname = node.description.hostname if node else task.node_id
        order = dispatch_pb2.OpenTunnel(
            container=dispatch_pb2.ContainerOrder(task_id=task.id, action=action, **details)
        )
        async with self.ctx.tunnels.open(
            task.node_id, hostname, order, self.ctx.dispatcher.deliver
        ) as tunnel:
            async for frame in tunnel.frames():
                if frame.WhichOneof("kind") == "result" and frame.result.error:
                    raise failed_precondition(f"container '{task.name}': {frame.result.error}")

    async def _set_paused(self, word: str, paused: bool) -> Any:
        task = self._running(word)
        if task.status.paused is paused:
            word = "is paused already" if paused else "is not paused"
            raise failed_precondition(f"container '{task.name}' {word}")
        actions = dispatch_pb2.ContainerOrder
        async with self.ctx.cache.subscribe() as feed:
            await self._send_order(task, actions.PAUSE if paused else actions.UNPAUSE)
            while True:
                known = self.ctx.view.tasks.get(task.id)
                if known is None or known.status.paused is paused:
                    return to_proto(known or task)
                if known.status.state not in _LIVE:
                    raise failed_precondition(f"container '{task.name}' has ended meanwhile")
                await feed.next()


def _updated(spec: TaskSpec, request: Any) -> TaskSpec:
    """The spec with the changes of a request."""

    def given(name: str, value: Any) -> Any:
        return getattr(request, name) if request.HasField(name) else value

    return replace(
        spec,
        reservation=Resources(
            given("reserved_shares", spec.reservation.shares),
            given("reserved_memory", spec.reservation.memory),
        ),
        limit=Resources(
            given("limit_shares", spec.limit.shares), given("limit_memory", spec.limit.memory)
        ),
        shares=given("shares", spec.shares),
        container=replace(
            spec.container,
            memory_swap=given("memory_swap", spec.container.memory_swap),
            pids_limit=given("pids_limit", spec.container.pids_limit),
            cpuset_cpus=given("cpuset_cpus", spec.container.cpuset_cpus),
        ),
        restart=from_proto(request.restart, strict=True)
        if request.HasField("restart")
        else spec.restart,
    )


def _check_name(name: str) -> None:
    try:
        check_container_name(name)
    except ValueError as error:
        raise invalid_argument(str(error)) from None


def _name_taken(view: ClusterView, name: str) -> Exception:
    there = container_by_name(view, name)
    what = f" ({there.id[:12]})" if there else ""
    return already_exists(
        f"container '{name}' already exists{what}; remove it with 'orc rm {name}', rename it, "
        "or choose another name"
    )


def _list(view: ClusterView, request: Any) -> Any:
    if request.containers:
        tasks = [find_container(view, word) for word in request.containers]
        return containers_pb2.ListContainersReply(containers=[_row(view, task) for task in tasks])
    return containers_pb2.ListContainersReply(
        containers=[_row(view, task) for task in _newest_first(view.tasks.values())],
        orphans=[
            _row(view, task) for task in _newest_first(each.task for each in view.orphans.values())
        ],
    )


def _newest_first(tasks: Iterable[Task]) -> list[Task]:
    return sorted(tasks, key=lambda task: (-task.created_at, task.id))


def _row(view: ClusterView, task: Task, removed: bool = False) -> Any:
    image = view.images.get(task.image_digest) or Image()
    command = task.spec.container.arguments(image.entrypoint, image.command)
    row = containers_pb2.ContainerRow(task=to_proto(task), removed=removed, command=command)
    if (node := view.nodes.get(task.node_id)) is not None:
        row.node.CopyFrom(to_proto(node))
    return row


def _event(event: Any) -> Any:
    return containers_pb2.Event(
        at=event.at,
        type=event.type,
        action=event.action,
        id=event.id,
        name=event.name,
        node=event.node,
        attributes=event.attributes,
        revision=event.revision,
        number=event.number,
    )
