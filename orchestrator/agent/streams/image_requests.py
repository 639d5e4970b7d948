# SPDX-License-Identifier: Apache-2.0
"""Requests of managers about images: pull, push, tag, archives, layers, builds and their cache."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from orchestrator.agent.builds.build_cgroup import BuildLimits
from orchestrator.agent.builds.buildah import Progress
from orchestrator.agent.builds.builder import BuildSpec, CacheUsage
from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.images.pulls import ImagePuller
from orchestrator.agent.images.store import ImageStore
from orchestrator.agent.images.transfer import layout
from orchestrator.agent.images.transfer.archive import NOT_COMPRESSED, decompressed
from orchestrator.agent.images.transfer.registry import LayerProgress, Registry
from orchestrator.agent.streams.frames import Frames, receive, send, send_piece
from orchestrator.agent.tasks.runner import TaskRunner
from orchestrator.linux.trees import remove_tree
from orchestrator.model.convert import to_proto
from orchestrator.model.names import short_id
from orchestrator.model.objects import Image
from orchestrator.model.states import is_terminal
from orchestrator.model.tasks import Task
from orchestrator.pb import control_pb2, dispatch_pb2, images_pb2

log = logging.getLogger(__name__)

IMAGE_REQUESTS = (
    *("pull", "push", "resolve", "tag", "remove_image", "read_image"),
    *("save", "import_image", "login"),
)
"""The kinds of requests that are served here."""

_Handler = Callable[[Any, Any], Awaitable[dispatch_pb2.TunnelResult]]


class ImageRequests:
    """Serves requests about images."""

    def __init__(
        self,
        *,
        store: ImageStore,
        images: ImagePuller,
        registry: Registry,
        runners: Mapping[str, TaskRunner],
        scratch: Path,
    ) -> None:
        """`runners` are this node's tasks; `scratch` is an exclusive folder on the store's file
        system."""
        self._store = store
        self._images = images
        self._registry = registry
        self._runners = runners
        self._scratch = scratch
        scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in scratch.iterdir():
            remove_tree(left)

    async def serve(
        self, call: Any, order: dispatch_pb2.OpenTunnel, readers: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        """Serve one of `IMAGE_REQUESTS`; exceptions become the tunnel's error."""
        kind = order.WhichOneof("order") or ""
        handlers: dict[str, _Handler] = {
            "pull": self._pull,
            "push": self._push,
            "resolve": self._resolve,
            "tag": self._tag,
            "remove_image": self._remove,
            "read_image": self._read,
            "save": self._save,
            "import_image": self._import,
            "login": self._login,
        }
        return await handlers[kind](call, getattr(order, kind))

    def in_use(self) -> frozenset[str]:
        """Digests of the images of containers on this node."""
        held = [
            runner.task
            for runner in self._runners.values()
            if runner.may_hold_resources or not runner.task.service_id
        ]
        return self._images_of(held)

    def needed(self) -> frozenset[str]:
        """Digests of the images of containers on this node, including those still to be created."""
        waiting = [
            runner.task for runner in self._runners.values() if not is_terminal(runner.status.state)
        ]
        return self.in_use() | self._images_of(waiting)

    def _images_of(self, tasks: Iterable[Task]) -> frozenset[str]:
        wanted = (task.image_digest or task.spec.container.image for task in tasks)
        # A container with `rootfs` has no image.
        return frozenset(
            digest for text in wanted if text and (digest := self._store.resolve(text))
        )

    async def _pull(self, call: Any, order: images_pb2.PullOrder) -> dispatch_pb2.TunnelResult:
        grant = images_pb2.Grant(nodes=order.sources, registry=order.registry, auth=order.auth)
        async with Frames.sending(call) as frames:
            progress, _ = _reporters(frames)
            local = await self._images.pull(order.name, order.digest, grant, progress, rename=True)
        return self._result(local.digest)

    async def _push(self, call: Any, order: images_pb2.PushOrder) -> dispatch_pb2.TunnelResult:
        manifest = self._store.blob_path(order.image)
        if manifest is None:
            raise ImageError(f"this node lacks the image {order.name}")
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            place = Path(folder) / "image"
            await asyncio.to_thread(layout.make_dir_layout, place, manifest)
            async with Frames.sending(call) as frames:
                digest = await self._registry.push(
                    place, order.name, order.auth, *_reporters(frames)
                )
            await call.write(dispatch_pb2.Frame(line=f"digest: {digest}"))
        return self._result(order.image)

    async def _resolve(self, call: Any, order: images_pb2.ResolveOrder) -> Any:
        digest = await self._registry.resolve(order.name, order.auth, order.within or 60.0)
        await call.write(dispatch_pb2.Frame(line=digest))
        return dispatch_pb2.TunnelResult()

    async def _login(self, call: Any, order: images_pb2.LoginOrder) -> Any:
        await self._registry.login(order.registry, *_credentials(order.auth))
        return dispatch_pb2.TunnelResult()

    async def _tag(self, call: Any, order: images_pb2.TagOrder) -> Any:
        await self._store.tag(order.image, order.name)
        return self._result(order.image)

    async def _remove(self, call: Any, order: images_pb2.RemoveOrder) -> Any:
        if self._store.resolve(order.image) is None:
            return dispatch_pb2.TunnelResult()
        if order.name:
            await self._store.untag(order.name, order.image)
        else:
            await self._store.remove(order.image, self.in_use())
        return dispatch_pb2.TunnelResult()

    async def remove(self, digests: Sequence[str]) -> None:
        """Remove images that were removed while this node was disconnected, except those in use;
        the manager names these again later."""
        for digest in digests:
            try:
                if self._store.resolve(digest) is not None:
                    await self._store.remove(digest, self.in_use())
            except ImageError as error:
                log.debug("an image in use is not removed: %s", error, extra={"image": digest})

    async def _read(self, call: Any, order: images_pb2.ReadOrder) -> Any:
        manifest = await asyncio.to_thread(self._text, order.image)
        config = json.loads(manifest)["config"]["digest"]
        await call.write(dispatch_pb2.Frame(line=manifest))
        await call.write(dispatch_pb2.Frame(line=await asyncio.to_thread(self._text, config)))
        return dispatch_pb2.TunnelResult()

    def _text(self, digest: str) -> str:
        path = self._store.blob_path(digest)
        if path is None:
            raise ImageError(f"this node lacks {digest}")
        return path.read_text()

    async def _save(self, call: Any, order: images_pb2.SaveOrder) -> Any:
        images = [(image.digest, list(image.names)) for image in order.images]
        before = layout.SavedSoFar.parse(order.before)
        saved = await asyncio.to_thread(layout.with_images, self._store, images, before)
        pieces = layout.save_blobs(self._store, saved.blobs - before.blobs)
        await send(call, partial(next, pieces, b""))
        if order.more:
            return dispatch_pb2.TunnelResult(saved=saved.dump())
        await send_piece(call, layout.save_end(saved))
        return dispatch_pb2.TunnelResult()

    async def _import(self, call: Any, order: images_pb2.ImportOrder) -> Any:
        header = order.header
        async with self._folder() as folder:
            archive = folder / "archive"
            with archive.open("wb") as file:
                await receive(call, file)
            # A layer is plain, or compressed by gzip or zstd.
            if (await asyncio.to_thread(_magic, archive)) in (b"BZh", b"\xfd7z"):
                try:
                    archive = await asyncio.to_thread(decompressed, archive, folder)
                except NOT_COMPRESSED as error:
                    raise ImageError(f"the archive is damaged: {error}") from error
            new = layout.NewLayer(
                archive, header.changes, comment=header.message or "Imported from -"
            )
            place = folder / "layout"
            await asyncio.to_thread(layout.compose, self._store, "", new, place)
            image = await self._store.load(place, header.name)
        return dispatch_pb2.TunnelResult(image=to_proto(image))

    @asynccontextmanager
    async def _folder(self) -> AsyncIterator[Path]:
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            yield Path(folder)

    def _result(self, digest: str) -> dispatch_pb2.TunnelResult:
        image = next(i for i in self._store.inventory() if i.id == digest)
        return dispatch_pb2.TunnelResult(image=to_proto(image))


def _reporters(frames: Frames) -> tuple[LayerProgress, Callable[[str], None]]:
    """Functions that report the progress of a layer, and a layer that the registry already has."""

    def progress(digest: str, done: int, total: int) -> None:
        layer = control_pb2.LayerProgress(digest=digest, done=done, total=total)
        frames.put(dispatch_pb2.Frame(layer=layer))

    def exists(digest: str) -> None:
        frames.put(dispatch_pb2.Frame(line=f"{short_id(digest)}: already exists"))

    return progress, exists


def _magic(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(3)


def _credentials(auth: bytes) -> tuple[str, str]:
    (entry,) = json.loads(auth)["auths"].values()
    user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
    return user, password


BUILD_REQUESTS = ("build", "build_cache")
"""The kinds of requests that are served here."""


class ImageBuilder(Protocol):
    """The methods of `builds.builder.Builder` that are used here."""

    async def build(self, context: Path, spec: BuildSpec, progress: Progress) -> Image: ...

    async def cache(self) -> CacheUsage: ...

    async def prune(self, everything: bool) -> int: ...


class BuildRequests:
    """Serves requests about builds."""

    def __init__(self, builder: ImageBuilder, scratch: Path) -> None:
        """`scratch`: an existing folder for uploaded contexts."""
        self._builder = builder
        self._scratch = scratch

    async def serve(
        self, call: Any, order: dispatch_pb2.OpenTunnel, readers: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        """Serve one of `BUILD_REQUESTS`. Raises ImageError."""
        if order.WhichOneof("order") == "build_cache":
            return await self._cache(order.build_cache)
        with tempfile.NamedTemporaryFile(dir=self._scratch) as file:
            await receive(call, file)
            async with Frames.sending(call) as frames:
                image = await self._builder.build(
                    Path(file.name),
                    _spec(order.build),
                    lambda line: frames.put(dispatch_pb2.Frame(line=line)),
                )
        return dispatch_pb2.TunnelResult(image=to_proto(image))

    async def _cache(self, order: images_pb2.BuildCacheOrder) -> dispatch_pb2.TunnelResult:
        freed = await self._builder.prune(order.all) if order.prune else 0
        usage = await self._builder.cache()
        cache = images_pb2.BuildCache(entries=usage.entries, size=usage.size, freed=freed)
        return dispatch_pb2.TunnelResult(build_cache=cache)


def _spec(order: control_pb2.ImageHeader) -> BuildSpec:
    return BuildSpec(
        names=tuple(name for name in (order.name, *order.more_names) if name),
        dockerfile=order.dockerfile,
        content=order.dockerfile_content,
        build_args=dict(order.build_args),
        labels=dict(order.labels),
        target=order.target,
        no_cache=order.no_cache,
        pull=order.pull,
        oci=order.format == "oci",
        network=order.network,
        add_hosts=tuple(order.add_hosts),
        secrets=dict(order.secrets),
        limits=BuildLimits(
            memory=order.limits.memory,
            memory_swap=order.limits.memory_swap,
            cpu_shares=order.limits.cpu_shares,
            cpu_quota=order.limits.cpu_quota,
            cpu_period=order.limits.cpu_period,
            cpuset_cpus=order.limits.cpuset_cpus,
            pids=order.limits.pids,
            shm_size=order.limits.shm_size,
            ulimits=tuple(order.limits.ulimits),
        ),
    )
