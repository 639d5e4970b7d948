# SPDX-License-Identifier: Apache-2.0
"""Copies files into and out of containers: `copy_program` runs in the container's root, its input
and output go through a tunnel."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from orchestrator.agent.runtime.engine.bundle import ContainerHandle
from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.tasks.runner import TaskRunner
from orchestrator.copying import CHUNK
from orchestrator.daemon import bareprogram
from orchestrator.model.tasks import Task
from orchestrator.pb import dispatch_pb2, interact_pb2

_PROGRAM = bareprogram.command("orchestrator.agent.streams.copy_program", "-X", "utf8")


class ContainerCopies:
    """Serves requests to copy files into and out of this node's containers."""

    def __init__(
        self,
        runners: Mapping[str, TaskRunner],
        access: Callable[[str], ContainerHandle],
        layers: Callable[[Task], Awaitable[Sequence[Path]]],
    ) -> None:
        """`layers` finds the layers of a task's image, lowest first."""
        self._runners = runners
        self._access = access
        self._layers = layers

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
            while data := await process.stdout.read(CHUNK):
                await call.write(dispatch_pb2.Frame(data=data))
        return dispatch_pb2.TunnelResult()

    async def copy_to(
        self, call: Any, order: dispatch_pb2.OpenTunnel, readers: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        """Unpack a received tar. Raises RuntimeFailure."""
        request = order.copy_to
        owner = None
        if request.archive:
            access = self._access(request.container)
            access.running()
            owner = access.user()
        words = {
            "verb": "unpack",
            "path": request.path,
            "top": request.top,
            "folder": request.folder,
            "owner": owner,
        }
        warnings: list[str] = []
        async with self._program(
            request.container, words, stdin=PIPE, stdout=DEVNULL, warnings=warnings
        ) as process:
            stdin = process.stdin
            assert stdin is not None
            while True:
                frame = await call.read()
                if not isinstance(frame, dispatch_pb2.Frame):  # grpc.aio.EOF
                    process.kill()
                    raise RuntimeFailure(
                        "the upload was interrupted; the files received before remain"
                    )
                if frame.eof:
                    break
                stdin.write(frame.data)
                try:
                    await stdin.drain()
                except ConnectionError:
                    # It has read enough, or failed and reports why.
                    continue
            stdin.close()
        for line in warnings:
            await call.write(dispatch_pb2.Frame(line=line))
        return dispatch_pb2.TunnelResult()

    @asynccontextmanager
    async def _program(
        self,
        task_id: str,
        words: dict[str, Any],
        *,
        stdin: int,
        stdout: int,
        warnings: list[str] | None = None,
    ) -> AsyncIterator[Process]:
        """The running program. Leaving the block raises RuntimeFailure if it failed, and adds its
        output for the user to `warnings`."""
        async with (
            self._place(task_id) as place,
            self._started({**place, **words}, warnings, stdin=stdin, stdout=stdout) as process,
        ):
            yield process

    @asynccontextmanager
    async def _place(self, task_id: str) -> AsyncIterator[dict[str, Any]]:
        """The root of a container: its process, held by a pidfd, or the layers to mount."""
        runner = self._runners.get(task_id)
        if runner is None:
            raise RuntimeFailure("the container is no longer on this node")
        access = self._access(task_id)
        found = access.process()
        if found is not None and (pidfd := found.open()) is not None:
            try:
                yield {"pid": found.pid, "pidfd": pidfd}
            finally:
                os.close(pidfd)
            return
        upper = access.bundle.upper
        if not upper.is_dir():
            raise RuntimeFailure("the container has ended, and its files are removed")
        if runner.task.spec.container.storage_size:
            raise RuntimeFailure("its disk is not mounted while it is stopped; start it first")
        layers = await self._layers(runner.task)
        # Beside the writable layer, as overlayfs demands; removed with the copy, or with the layer.
        with tempfile.TemporaryDirectory(dir=access.bundle.state) as folder:
            places = {name: f"{folder}/{name}" for name in ("root", "work")}
            for place in places.values():
                os.mkdir(place)
            yield {
                "layers": [str(layer) for layer in layers],
                "upper": str(upper),
                **places,
            }

    @asynccontextmanager
    async def _started(
        self, words: dict[str, Any], warnings: list[str] | None, *, stdin: int, stdout: int
    ) -> AsyncIterator[Process]:
        process = await asyncio.create_subprocess_exec(
            *_PROGRAM,
            json.dumps(words),
            stdin=stdin,
            stdout=stdout,
            stderr=PIPE,
            pass_fds=[words["pidfd"]] if "pidfd" in words else [],
        )
        try:
            yield process
            assert process.stderr is not None
            lines = (await process.stderr.read()).decode(errors="replace").strip().splitlines()
            if await process.wait():
                raise RuntimeFailure(lines[-1] if lines else "the copy was interrupted")
            if warnings is not None:
                warnings += lines
        finally:
            if process.returncode is None:
                process.kill()
                await asyncio.shield(process.wait())
