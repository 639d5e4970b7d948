"""Files into and out of containers: the program `copying` in the container's root, fed and read
through a tunnel."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from orchestrator import copying
from orchestrator.agent.runner import TaskRunner
from orchestrator.agent.runtime.access import Access
from orchestrator.agent.runtime.base import RuntimeFailure
from orchestrator.pb import dispatch_pb2, interact_pb2


class Copies:
    """The copies of a node."""

    def __init__(self, runners: Mapping[str, TaskRunner], access: Callable[[str], Access]) -> None:
        self._runners = runners
        self._access = access

    async def copy_from(
        self, call: Any, order: dispatch_pb2.OpenTunnel, readers: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        """Send a file or folder as a tar. Raises RuntimeFailure."""
        request = order.copy_from
        words = {"verb": "pack", "path": request.path, "follow": request.follow_link}
        async with self._program(request.container, words, stdin=DEVNULL, stdout=PIPE) as process:
            assert process.stdout is not None
            if head := await process.stdout.readline():
                about = interact_pb2.CopySource(**json.loads(head))
                await call.write(dispatch_pb2.Frame(copy_source=about))
            while data := await process.stdout.read(copying.CHUNK):
                await call.write(dispatch_pb2.Frame(data=data))
        return dispatch_pb2.TunnelResult()

    async def copy_to(
        self, call: Any, order: dispatch_pb2.OpenTunnel, readers: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        """Unpack the tar that comes. Raises RuntimeFailure."""
        request = order.copy_to
        owner = self._access(request.container).user() if request.archive else None
        words = {
            "verb": "unpack",
            "path": request.path,
            "top": request.top,
            "folder": request.folder,
            "owner": owner,
        }
        async with self._program(request.container, words, stdin=PIPE, stdout=DEVNULL) as process:
            stdin = process.stdin
            assert stdin is not None
            while True:
                frame = await call.read()
                if not isinstance(frame, dispatch_pb2.Frame):  # grpc.aio.EOF
                    process.kill()
                    raise RuntimeFailure("the upload broke off; what came until then is there")
                if frame.eof:
                    break
                stdin.write(frame.data)
                try:
                    await stdin.drain()
                except ConnectionError:
                    # It has enough, or it failed and says why.
                    continue
            stdin.close()
        return dispatch_pb2.TunnelResult()

    @asynccontextmanager
    async def _program(
        self, task_id: str, words: dict[str, Any], *, stdin: int, stdout: int
    ) -> AsyncIterator[Process]:
        """The program, for the duration of the block; then it must have done its work."""
        if task_id not in self._runners:
            raise RuntimeFailure("the container is not on this node any more")
        words = {"pid": self._access(task_id).running().pid, **words}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-S", "-X", "utf8", copying.__file__, json.dumps(words)),
            stdin=stdin,
            stdout=stdout,
            stderr=PIPE,
        )
        try:
            yield process
            assert process.stderr is not None
            said = await process.stderr.read()
            if await process.wait():
                lines = said.decode(errors="replace").strip().splitlines()
                raise RuntimeFailure(lines[-1] if lines else "the copy broke off")
        finally:
            if process.returncode is None:
                process.kill()
                await asyncio.shield(process.wait())
