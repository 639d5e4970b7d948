# SPDX-License-Identifier: Apache-2.0
"""Requests of managers about containers' file systems: diff, export, commit."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.images.layers.rootfiles import read_changes, read_root, write_layer
from orchestrator.agent.images.store import ImageStore
from orchestrator.agent.images.transfer import layout
from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.streams.frames import send_piece
from orchestrator.agent.tasks.runner import TaskRunner
from orchestrator.linux.trees import remove_tree
from orchestrator.model.convert import to_proto
from orchestrator.model.tasks import Task
from orchestrator.pb import dispatch_pb2, images_pb2

EXPORT_REQUESTS = ("container_files",)
"""The kinds of requests that are served here."""
_FROZEN = "frozen-"


class Roots(Protocol):
    """Paths and owners of a container's files (`runtime.engine.crun.CrunRuntime`)."""

    def upper(self, container_id: str) -> Path: ...

    def root(self, container_id: str) -> Path: ...

    def users(self, container_id: str) -> range: ...

    async def resume(self, container_id: str) -> None: ...


class ContainerExports:
    """Serves requests about the file systems of containers, running or not."""

    def __init__(
        self,
        *,
        store: ImageStore,
        runners: Mapping[str, TaskRunner],
        roots: Roots,
        scratch: Path,
    ) -> None:
        """`scratch`: an exclusive folder on the store's file system."""
        self._store = store
        self._runners = runners
        self._roots = roots
        self._scratch = scratch
        scratch.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def recover(self) -> None:
        """Resume containers that an earlier agent, killed during a commit, left paused."""
        for left in list(self._scratch.iterdir()):
            if left.name.startswith(_FROZEN):
                with suppress(RuntimeFailure):
                    await self._roots.resume(left.name.removeprefix(_FROZEN))
            remove_tree(left)

    async def serve(
        self, call: Any, order: dispatch_pb2.OpenTunnel, readers: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        """Serve one of `EXPORT_REQUESTS`. Raises ImageError, RuntimeFailure."""
        wanted = order.container_files
        runner, digest = self._found(wanted.task_id)
        Action = images_pb2.ContainerFilesOrder
        match wanted.action:
            case Action.DIFF:
                await self._diff(call, runner.task, digest)
            case Action.EXPORT:
                await self._export(call, runner.task, digest)
            case Action.COMMIT:
                return await self._commit(runner, digest, wanted.commit)
        return dispatch_pb2.TunnelResult()

    def _found(self, task_id: str) -> tuple[TaskRunner, str]:
        runner = self._runners.get(task_id)
        if runner is None:
            raise ImageError("the container no longer has files on this node")
        container = runner.task.spec.container
        if container.rootfs:
            raise ImageError("the container runs on the node's own files")
        digest = self._store.resolve(runner.task.image_digest or container.image)
        if not digest or not self._roots.upper(task_id).exists():
            if digest and container.storage_size:
                raise ImageError("its disk is not mounted while it is stopped; start it first")
            raise ImageError("the container no longer has files on this node")
        return runner, digest

    async def _diff(self, call: Any, task: Task, digest: str) -> None:
        upper, layers = self._roots.upper(task.id), self._store.layers(digest)
        for kind, path in await read_changes(upper, layers, _mounts(task)):
            # Names may be any bytes; invalid UTF-8 is shown as in Docker.
            shown = os.fsencode(path).decode(errors="replace")
            await call.write(dispatch_pb2.Frame(line=f"{kind} {shown}"))

    async def _export(self, call: Any, task: Task, digest: str) -> None:
        root, ids = self._roots.root(task.id), self._roots.users(task.id)
        if root.is_mount():
            await _stream(call, read_root(root, (), ids))
            return
        layers = [*self._store.layers(digest), self._roots.upper(task.id)]
        async with self._folder() as place:
            await _stream(call, read_root(place, layers, ids))

    async def _commit(
        self, runner: TaskRunner, digest: str, asked: images_pb2.CommitRequest
    ) -> dispatch_pb2.TunnelResult:
        task = runner.task
        container = task.spec.container
        upper, ids = self._roots.upper(task.id), self._roots.users(task.id)
        async with self._folder() as folder:
            archive = folder / "layer.tar"
            async with self._still(runner, pause=not asked.no_pause):
                with archive.open("wb") as file:
                    await write_layer(upper, file, _mounts(task), ids)
            new = layout.NewLayer(
                archive,
                asked.changes,
                asked.author,
                asked.message,
                " ".join([*container.entrypoint, *container.command]),
                container,
            )
            place = folder / "layout"
            await asyncio.to_thread(layout.compose, self._store, digest, new, place)
            image = await self._store.load(place, asked.name)
        return dispatch_pb2.TunnelResult(image=to_proto(image))

    @asynccontextmanager
    async def _still(self, runner: TaskRunner, *, pause: bool) -> AsyncIterator[None]:
        """Pause a running container during the block."""
        if not pause or runner.status.paused:
            yield
            return
        mark = self._scratch / f"{_FROZEN}{runner.task.id}"
        mark.touch()
        try:
            with suppress(RuntimeFailure):  # it does not run
                await runner.freeze(True)
            yield
        finally:
            with suppress(RuntimeFailure):
                await asyncio.shield(runner.freeze(False))
            mark.unlink()

    @asynccontextmanager
    async def _folder(self) -> AsyncIterator[Path]:
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            yield Path(folder)


def _mounts(task: Task) -> frozenset[str]:
    return frozenset(mount.target.strip("/") for mount in task.spec.container.mounts)


async def _stream(call: Any, pieces: AsyncIterator[bytes]) -> None:
    async with aclosing(pieces):  # type: ignore[type-var]
        async for piece in pieces:
            await send_piece(call, piece)
