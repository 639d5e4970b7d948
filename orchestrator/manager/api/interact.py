"""Calls about what runs: programs, terminals, files and figures, relayed to the container's node.

A session's messages pass through as they are. A few frames are under way in each direction, so
that a slow end slows the other; nothing is gathered or delayed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from orchestrator.manager.api.context import Calls, answering
from orchestrator.manager.background import background
from orchestrator.manager.lookup import find_container
from orchestrator.manager.refusal import invalid, precondition
from orchestrator.manager.tunnels import Tunnel
from orchestrator.model.objects import Task
from orchestrator.pb import dispatch_pb2, interact_pb2_grpc


class InteractApi(Calls, interact_pb2_grpc.InteractServicer):  # type: ignore[misc]
    """`orc exec`, `attach`, `cp`, `top`, `stats`."""

    @answering
    async def Session(self, request: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        messages = aiter(request)
        first = await anext(messages, None)
        kind = first.WhichOneof("kind") if first is not None else ""
        if kind not in ("exec", "attach"):
            raise invalid("a session begins with what to run or to attach to")
        wanted = getattr(first, kind)
        if kind == "exec" and not wanted.command:
            raise invalid("say what to run in the container")
        task = find_container(self.api.view, wanted.container)
        wanted.container = task.id
        order = dispatch_pb2.OpenTunnel(**{kind: wanted})
        async with self._tunnel(task, order) as tunnel, background(_inputs(messages, tunnel)):
            async for frame in tunnel.frames():
                match frame.WhichOneof("kind"):
                    case "session_output":
                        yield frame.session_output
                    case "result" if frame.result.error:
                        raise precondition(frame.result.error)

    @asynccontextmanager
    async def _tunnel(self, task: Task, order: Any) -> AsyncIterator[Tunnel]:
        """A tunnel to the node of a task."""
        if not task.node_id:
            raise precondition(f"container {task.name} has no node yet; see 'orc service ps'")
        node = self.api.view.nodes.get(task.node_id)
        name = node.description.hostname if node else task.node_id
        push = self.api.dispatcher.push
        async with self.api.tunnels.open(task.node_id, name, order, push) as tunnel:
            yield tunnel


async def _inputs(messages: AsyncIterator[Any], tunnel: Tunnel) -> None:
    async for message in messages:
        await tunnel.send(dispatch_pb2.Frame(session_input=message))
