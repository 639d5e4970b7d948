# SPDX-License-Identifier: Apache-2.0
"""Streams to running containers: exec, attach, copies, processes and statistics, relayed to the
node.

Messages of a session pass through unchanged. A few frames are in flight in each direction, so that
a slow end slows the other; nothing is collected or delayed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from orchestrator.daemon.background import background
from orchestrator.manager.dispatch.tunnels import Tunnel
from orchestrator.manager.errors import RequestError, failed_precondition, invalid_argument
from orchestrator.manager.object_lookup import find_container
from orchestrator.manager.operations.context import Operations
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import NodeState
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.tasks import Task
from orchestrator.model.validation.host_access import PRIVILEGED, allows, refusal
from orchestrator.pb import dispatch_pb2, interact_pb2

_END_TIMEOUT = 5.0
"""Seconds that a client waits for its container's node to report the end that the client saw."""

_RETRY = 0.5
"""Seconds until a node whose statistics broke off is asked again."""

_MAX_QUEUED_STATS = 64
"""Statistics of nodes that wait for a slow client, at most."""


class ContainerStreamOperations(Operations):
    """Operations of `orc exec`, `attach`, `cp`, `top`, `stats`."""

    async def session(
        self, request: AsyncIterator[interact_pb2.SessionInput]
    ) -> AsyncIterator[interact_pb2.SessionOutput]:
        """Run a program in a container, attach to it, or resume such a session; relay input and
        output."""
        messages = aiter(request)
        first = await anext(messages, None)
        kind = first.WhichOneof("kind") if first is not None else ""
        if kind not in ("exec", "attach", "resume"):
            raise invalid_argument("a session begins with what to run or to attach to")
        wanted = getattr(first, kind)
        if kind == "exec" and not wanted.command:
            raise invalid_argument("say what to run in the container")
        task = find_container(self.ctx.view, wanted.container)
        if kind == "exec" and wanted.privileged:
            self._check_privileged(task)
        wanted.container = task.id
        attached = kind == "attach" or (kind == "resume" and wanted.attach)
        order = dispatch_pb2.OpenTunnel(**{kind: wanted})
        async with self._tunnel(task, order) as tunnel, background(_inputs(messages, tunnel)):
            async for frame in tunnel.frames():
                match frame.WhichOneof("kind"):
                    case "session_output":
                        if attached and frame.session_output.HasField("exited"):
                            await self._wait_for_end(task)
                        yield frame.session_output
                    case "result" if frame.result.error:
                        raise failed_precondition(frame.result.error)

    def _check_privileged(self, task: Task) -> None:
        """Raises RequestError unless the task's node allows privileged programs."""
        node = self.ctx.view.nodes.get(task.node_id)
        if node is not None and not allows(node, PRIVILEGED):
            raise failed_precondition(refusal(PRIVILEGED, node.description.hostname))

    async def _wait_for_end(self, task: Task) -> None:
        """Wait until the store has the end of a container's run, or a timeout: a client that saw
        the end may start the container again at once."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_TIMEOUT), self.ctx.cache.subscribe() as feed:
                while (known := self.ctx.view.tasks.get(task.id)) is not None:
                    status = known.status
                    if status.run > task.run:
                        return
                    if status.run == task.run and is_terminal(status.state):
                        return
                    await feed.next()

    async def copy(
        self, request: AsyncIterator[interact_pb2.CopyInput]
    ) -> AsyncIterator[interact_pb2.CopyOutput]:
        """Copy files into or out of a container."""
        messages = aiter(request)
        first = await anext(messages, None)
        kind = first.WhichOneof("kind") if first is not None else ""
        if kind not in ("copy_from", "copy_to"):
            raise invalid_argument("a copy begins with what to copy, or where to")
        wanted = getattr(first, kind)
        task = find_container(self.ctx.view, wanted.container)
        wanted.container = task.id
        order = dispatch_pb2.OpenTunnel(**{kind: wanted})
        async with self._tunnel(task, order) as tunnel, background(_upload(messages, tunnel)):
            async for frame in tunnel.frames():
                match frame.WhichOneof("kind"):
                    case "copy_source":
                        yield interact_pb2.CopyOutput(source=frame.copy_source)
                    case "data":
                        yield interact_pb2.CopyOutput(data=frame.data)
                    case "line":
                        yield interact_pb2.CopyOutput(notice=frame.line)
                    case "result" if frame.result.error:
                        raise failed_precondition(frame.result.error)
                    case "result":
                        yield interact_pb2.CopyOutput(done=True)

    async def get_exec(self, request: interact_pb2.GetExecRequest) -> interact_pb2.ExecState:
        """How a process of `exec` is, or has ended."""
        task = find_container(self.ctx.view, request.container)
        request.container = task.id
        state = interact_pb2.ExecState()
        async with self._tunnel(task, dispatch_pb2.OpenTunnel(get_exec=request)) as tunnel:
            async for frame in tunnel.frames():
                if frame.WhichOneof("kind") == "result":
                    if frame.result.error:
                        raise failed_precondition(frame.result.error)
                    state = frame.result.exec
        return state

    async def top(self, request: interact_pb2.TopRequest) -> interact_pb2.TopReply:
        """List a container's processes."""
        task = find_container(self.ctx.view, request.container)
        request.container = task.id
        reply = interact_pb2.TopReply()
        async with self._tunnel(task, dispatch_pb2.OpenTunnel(top=request)) as tunnel:
            async for frame in tunnel.frames():
                match frame.WhichOneof("kind"):
                    case "top":
                        reply = frame.top
                    case "result" if frame.result.error:
                        raise failed_precondition(frame.result.error)
        return reply

    async def stats(
        self, request: interact_pb2.StatsRequest
    ) -> AsyncIterator[interact_pb2.NodeStats]:
        """Stream resource usage of containers, per node."""
        rows: asyncio.Queue[Any] = asyncio.Queue(_MAX_QUEUED_STATS)
        if request.containers:
            work = self._collect_some(self._stats_orders(request.containers), rows)
        elif self._ready_nodes():
            work = self._collect_all(rows)
        else:
            raise failed_precondition("no node is ready; see 'orc node ls'")
        async with background(work):
            while True:
                yield await rows.get()

    def _ready_nodes(self) -> list[str]:
        nodes = self.ctx.view.nodes.values()
        return [node.id for node in nodes if node.state is NodeState.READY]

    def _stats_orders(self, containers: Sequence[str]) -> dict[str, Any]:
        """The statistics request for each node that has some of the containers."""
        view = self.ctx.view
        orders: dict[str, Any] = {}
        for word in containers:
            task = find_container(view, word)
            if not task.node_id or task.status.state is not TaskState.RUNNING:
                raise failed_precondition(f"container {task.name} does not run")
            order = orders.setdefault(task.node_id, interact_pb2.StatsRequest())
            order.containers.append(task.id)
        return orders

    async def _collect_some(self, orders: Mapping[str, Any], rows: asyncio.Queue[Any]) -> None:
        async with asyncio.TaskGroup() as group:
            for node_id, order in orders.items():
                group.create_task(self._follow(node_id, order, lambda: len(orders), rows))

    async def _collect_all(self, rows: asyncio.Queue[Any]) -> None:
        """The statistics of all nodes, including those that become ready later."""
        asked: set[str] = set()
        order = interact_pb2.StatsRequest()
        async with asyncio.TaskGroup() as group, self.ctx.cache.subscribe() as feed:
            while True:
                for node_id in set(self._ready_nodes()) - asked:
                    asked.add(node_id)
                    group.create_task(self._follow(node_id, order, lambda: len(asked), rows))
                await feed.next()

    async def _follow(
        self, node_id: str, order: Any, nodes: Callable[[], int], rows: asyncio.Queue[Any]
    ) -> None:
        """The statistics of one node, across interruptions. `nodes`: number of nodes in total."""
        node = self.ctx.view.nodes.get(node_id)
        name = node.description.hostname if node else node_id
        deliver = self.ctx.dispatcher.deliver
        told = ""
        while True:
            wanted = dispatch_pb2.OpenTunnel(stats=order)
            try:
                async with self.ctx.tunnels.open(node_id, name, wanted, deliver) as tunnel:
                    async for frame in tunnel.frames():
                        if frame.WhichOneof("kind") == "stats":
                            frame.stats.node, frame.stats.nodes = name, nodes()
                            await rows.put(frame.stats)
                            told = ""
                return
            except RequestError as refusal:
                notice = refusal.text
            if notice != told:
                told = notice
                await rows.put(interact_pb2.NodeStats(node=name, nodes=nodes(), notice=notice))
            await asyncio.sleep(_RETRY)
            await self.ctx.dispatcher.session_of(node_id)

    @asynccontextmanager
    async def _tunnel(self, task: Task, order: Any) -> AsyncIterator[Tunnel]:
        """A tunnel to the node of a task."""
        if not task.node_id:
            raise failed_precondition(_unplaced_reason(self.ctx.view, task))
        node = self.ctx.view.nodes.get(task.node_id)
        name = node.description.hostname if node else task.node_id
        deliver = self.ctx.dispatcher.deliver
        async with self.ctx.tunnels.open(task.node_id, name, order, deliver) as tunnel:
            yield tunnel


def _unplaced_reason(view: ClusterView, task: Task) -> str:
    """Why an unplaced task cannot be used, and the state of its predecessor."""
    why = f": {task.status.message}" if task.status.message else ""
    text = f"container {task.name} waits for a node{why}"
    before = [
        other
        for other in view.tasks_of_service(task.service_id).values()
        if other.slot == task.slot and other.node_id
    ]
    if before:
        last = max(before, key=lambda other: other.created_at)
        node = view.nodes.get(last.node_id)
        if node is not None and node.state is NodeState.DOWN:
            text += f"; the one before it is on node {node.description.hostname}, which is down"
    hint = f"see 'orc service ps {task.service_name}'" if task.service_id else "see 'orc ps -a'"
    return f"{text}; {hint}"


async def _inputs(messages: AsyncIterator[Any], tunnel: Tunnel) -> None:
    async for message in messages:
        await tunnel.send(dispatch_pb2.Frame(session_input=message))


async def _upload(messages: AsyncIterator[Any], tunnel: Tunnel) -> None:
    async for message in messages:
        match message.WhichOneof("kind"):
            case "data":
                await tunnel.send(dispatch_pb2.Frame(data=message.data))
            case "eof":
                await tunnel.send(dispatch_pb2.Frame(eof=True))
