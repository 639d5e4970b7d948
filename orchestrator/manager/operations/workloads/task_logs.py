# SPDX-License-Identifier: Apache-2.0
"""`orc service logs`: log lines of many tasks on many nodes as one stream.

An unreachable node produces one notice; the others continue. Following a service includes tasks
that are created later, and resumes for nodes that return, without duplicates.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any

from orchestrator.daemon.background import background
from orchestrator.manager.errors import RequestError, failed_precondition
from orchestrator.manager.object_lookup import find_log_source
from orchestrator.manager.operations.context import ManagerContext, Operations
from orchestrator.model.formats.log_options import NONE, unreadable
from orchestrator.model.formats.log_position import LogPosition
from orchestrator.model.services import Service
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task
from orchestrator.pb import control_pb2, dispatch_pb2

_BUFFER = 16
"""Batches of lines buffered for a slow client before nodes have to wait."""
_RETRY = 0.5
"""Seconds between two checks whether the followed object still exists."""


class LogOperations(Operations):
    """Operations of `orc service logs`, `orc logs`."""

    async def logs(
        self, request: control_pb2.LogsRequest
    ) -> AsyncGenerator[control_pb2.LogBatch, None]:
        """Stream the log lines of a service, job or container."""
        service, tasks = find_log_source(self.ctx.view, request.service, request.of_job)
        if tasks and all(each.spec.container.logging.driver == NONE for each in tasks):
            name = service.spec.name if service is not None else tasks[0].name
            raise failed_precondition(unreadable(name))
        stream = _LogStream(self.ctx, request)
        async with background(stream.pump(service, tasks)):
            while (batch := await stream.batches.get()) is not None:
                yield batch


class _LogStream:
    """The logs that one client requested."""

    def __init__(self, ctx: ManagerContext, request: Any) -> None:
        self.batches: asyncio.Queue[Any | None] = asyncio.Queue(_BUFFER)
        """Batches for the client; None at the end."""
        self._ctx = ctx
        self._request = request
        self._sent_notices: set[tuple[str, str]] = set()
        """Node and text of notices that the client got, until lines of that node arrive."""

    async def pump(self, service: Service | None, tasks: Sequence[Task]) -> None:
        """Put all batches into `batches`."""
        placed = [task for task in tasks if task.node_id]
        async with asyncio.TaskGroup() as group:
            for task in placed:
                group.create_task(self._send(task, self._request.tail))
            if service is not None and self._request.follow:
                await self._follow_new_tasks(service.id, {task.id for task in placed}, group)
        await self.batches.put(None)

    async def _follow_new_tasks(
        self, service_id: str, known: set[str], group: asyncio.TaskGroup
    ) -> None:
        """Follow tasks that the service gets from now on, for as long as the service exists."""
        async with self._ctx.cache.subscribe() as feed:
            while service_id in self._ctx.view.services:
                for task in self._ctx.view.tasks_of_service(service_id).values():
                    if task.node_id and task.id not in known:
                        known.add(task.id)
                        group.create_task(self._send(task, -1))
                await feed.next()

    async def _send(self, task: Task, tail: int) -> None:
        """All lines of one task; if followed, across interruptions of its node's connection."""
        if not await self._accepted(task):
            return
        node = self._ctx.view.nodes.get(task.node_id)
        name = node.description.hostname if node else task.node_id
        place = LogPosition(self._request.since, tail)
        while True:
            try:
                await self._receive(task, name, place)
                return
            except RequestError as refusal:
                missing = "come when it is back" if self._request.follow else "are missing here"
                await self._note(task, name, f"{refusal.text} (its lines {missing})")
            if not self._request.follow:
                return
            while not self._ctx.dispatcher.connected(task.node_id):
                if task.id not in self._ctx.view.tasks:
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(_RETRY):
                        await self._ctx.dispatcher.session_of(task.node_id)

    async def _accepted(self, task: Task) -> bool:
        """Whether the task's node has it; if followed, wait for that."""
        async with self._ctx.cache.subscribe() as feed:
            while (newest := self._ctx.view.tasks.get(task.id)) is not None:
                if newest.status.state >= TaskState.ACCEPTED or newest.run > 1:
                    return True
                if not self._request.follow:
                    return False
                await feed.next()
        return False

    async def _receive(self, task: Task, name: str, place: LogPosition) -> None:
        """One stream from the node. Raises RequestError when it breaks."""
        order = dispatch_pb2.LogsOrder(
            task_id=task.id,
            follow=self._request.follow,
            tail=place.tail,
            since=place.since,
            until=self._request.until,
        )
        place.begin()
        async with self._ctx.tunnels.open(
            task.node_id, name, dispatch_pb2.OpenTunnel(logs=order), self._ctx.dispatcher.deliver
        ) as tunnel:
            async for frame in tunnel.frames():
                match frame.WhichOneof("kind"):
                    case "log":
                        self._sent_notices = {
                            note for note in self._sent_notices if note[0] != name
                        }
                        batch = frame.log
                        place.advance(batch.records)
                        if batch.records:
                            batch.task_id, batch.task_name, batch.node = task.id, task.name, name
                            await self.batches.put(batch)
                    case "result" if frame.result.error:
                        await self._note(task, name, frame.result.error)

    async def _note(self, task: Task, node: str, text: str) -> None:
        if (node, text) in self._sent_notices:
            return
        self._sent_notices.add((node, text))
        note = control_pb2.LogRecord(notice=True, line=text.encode())
        await self.batches.put(control_pb2.LogBatch(task_id=task.id, node=node, records=[note]))
