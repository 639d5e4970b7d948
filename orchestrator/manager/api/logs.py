"""`orc service logs`: the lines of many tasks on many nodes as one stream.

A node that is away gives one line that says so; the others flow.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from orchestrator.manager.api.context import Calls, answering
from orchestrator.manager.background import background
from orchestrator.manager.lookup import find_tasks
from orchestrator.manager.refusal import Refusal
from orchestrator.model.objects import Task
from orchestrator.pb import control_pb2, dispatch_pb2

_BUFFER = 1024
"""Lines held for a slow client before the nodes are made to wait."""


class LogCalls(Calls):
    """Logs."""

    @answering
    async def Logs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        tasks = [task for task in find_tasks(self.api.view, request.service) if task.node_id]
        lines: asyncio.Queue[Any | None] = asyncio.Queue(_BUFFER)
        async with background(self._pump(tasks, request, lines)):
            while (record := await lines.get()) is not None:
                yield record

    async def _pump(self, tasks: list[Task], request: Any, lines: asyncio.Queue[Any]) -> None:
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(self._follow(task, request, lines))
        await lines.put(None)

    async def _follow(self, task: Task, request: Any, lines: asyncio.Queue[Any]) -> None:
        node = self.api.view.nodes.get(task.node_id)
        name = node.description.hostname if node else task.node_id
        order = dispatch_pb2.OpenTunnel(
            logs=dispatch_pb2.LogsOrder(
                task_id=task.id,
                follow=request.follow,
                tail=request.tail,
                since=request.since,
                until=request.until,
            )
        )
        try:
            async with self.api.tunnels.open(
                task.node_id, name, order, self.api.dispatcher.push
            ) as tunnel:
                async for frame in tunnel.frames():
                    match frame.WhichOneof("kind"):
                        case "log":
                            frame.log.task_id = task.id
                            frame.log.task_name = task.name
                            frame.log.node = name
                            await lines.put(frame.log)
                        case "result" if frame.result.error:
                            await lines.put(_notice(task, name, frame.result.error))
        except Refusal as refusal:
            await lines.put(_notice(task, name, refusal.text))


def _notice(task: Task, node: str, text: str) -> Any:
    return control_pb2.LogRecord(
        task_id=task.id, task_name=task.name, node=node, notice=True, line=text.encode()
    )
