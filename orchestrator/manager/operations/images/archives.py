# SPDX-License-Identifier: Apache-2.0
"""Image archives and containers' layers: `save`, `import`, `commit`, `diff`, `export`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from orchestrator.manager.dispatch.tunnels import Tunnel
from orchestrator.manager.errors import failed_precondition, invalid_argument
from orchestrator.manager.object_lookup import find_container, find_image_by_word
from orchestrator.manager.operations.context import Operations
from orchestrator.manager.operations.node_requests import (
    choose_node,
    node_with_image,
    parse_image_name,
    register_image,
    send_request,
    stream_replies,
    upload_header,
)
from orchestrator.model.convert import to_proto
from orchestrator.model.names import parse_image
from orchestrator.model.nodes import Node
from orchestrator.model.tasks import Task
from orchestrator.pb import control_pb2, dispatch_pb2, images_pb2, types_pb2


class ImageArchiveOperations(Operations):
    """Operations on images and containers as archives."""

    async def save(
        self, request: images_pb2.SaveImageRequest
    ) -> AsyncIterator[images_pb2.FileData]:
        """Stream one archive of images, which may be on different nodes; each node adds its own."""
        if not request.images:
            raise invalid_argument("specify an image to save")
        ctx = self.ctx
        names: dict[str, list[str]] = {}
        for word in request.images:
            image = find_image_by_word(ctx.view, word, reported=True)
            named = names.setdefault(image.id, [])
            known = {*image.names, *image.reported_names}
            if (name := _full(word)) in known and name not in named:
                named.append(name)
        orders: dict[str, images_pb2.SaveOrder] = {}
        for digest, node_id in self._spread(list(names)).items():
            order = orders.setdefault(node_id, images_pb2.SaveOrder(more=True))
            order.images.append(images_pb2.NamedImage(digest=digest, names=names[digest]))
        *_, last = orders.values()
        last.more = False
        before = b""
        for node_id, order in orders.items():
            order.before = before
            node = ctx.view.nodes[node_id]
            async for frame in stream_replies(ctx, node, dispatch_pb2.OpenTunnel(save=order)):
                if frame.data:
                    yield images_pb2.FileData(data=frame.data)
                elif frame.WhichOneof("kind") == "result":
                    before = frame.result.saved

    def _spread(self, digests: list[str]) -> dict[str, str]:
        """For each image a connected node that has it, with as few nodes as possible. Raises
        RequestError."""
        ctx = self.ctx
        images = [ctx.view.images[digest] for digest in digests]
        holders = {image.id: set(ctx.dispatcher.reachable_nodes(image.nodes)) for image in images}
        found: dict[str, str] = {}
        while left := [image for image in images if image.id not in found]:
            counts = Counter(id for image in left for id in sorted(holders[image.id]))
            best = counts.most_common(1)[0][0] if counts else ""
            for image in left:
                if not holders[image.id]:
                    node_with_image(ctx, image)  # raises the reason
                if best in holders[image.id]:
                    found[image.id] = best
        return found

    async def import_image(
        self, request: AsyncIterator[images_pb2.ImportImageUpload]
    ) -> AsyncIterator[control_pb2.ImageProgress]:
        """Make an image of a file system archive."""
        uploads = aiter(request)
        header = await upload_header(uploads)
        node = choose_node(self.ctx, header.node)
        order = dispatch_pb2.OpenTunnel(import_image=images_pb2.ImportOrder(header=header))
        async with self.ctx.tunnels.open(
            node.id, node.description.hostname, order, self.ctx.dispatcher.deliver
        ) as tunnel:
            sender = asyncio.ensure_future(_send(uploads, tunnel))
            try:
                async for frame in tunnel.frames():
                    if frame.WhichOneof("kind") == "result":
                        image = await register_image(self.ctx, node, frame.result, (header.name,))
                        yield control_pb2.ImageProgress(image=to_proto(image))
            finally:
                sender.cancel()

    async def commit_container(self, request: images_pb2.CommitRequest) -> types_pb2.Image:
        """Make an image of a container's changes."""
        task, node = self._container(request.container)
        if request.name:
            request.name = str(parse_image_name(request.name))
        order = self._order(task, images_pb2.ContainerFilesOrder.COMMIT)
        order.container_files.commit.CopyFrom(request)
        _, result = await send_request(self.ctx, node, order)
        return to_proto(await register_image(self.ctx, node, result, (request.name,)))

    async def diff(self, request: images_pb2.DiffRequest) -> images_pb2.DiffReply:
        """List the files that a container has changed."""
        task, node = self._container(request.container)
        order = self._order(task, images_pb2.ContainerFilesOrder.DIFF)
        lines, _ = await send_request(self.ctx, node, order)
        parts = (line.partition(" ") for line in lines)
        return images_pb2.DiffReply(
            changes=[images_pb2.PathChange(kind=kind, path=path) for kind, _, path in parts]
        )

    async def export(self, request: images_pb2.ExportRequest) -> AsyncIterator[images_pb2.FileData]:
        """Stream a container's file system as an archive."""
        task, node = self._container(request.container)
        order = self._order(task, images_pb2.ContainerFilesOrder.EXPORT)
        async for frame in stream_replies(self.ctx, node, order):
            if frame.data:
                yield images_pb2.FileData(data=frame.data)

    def _container(self, word: str) -> tuple[Task, Node]:
        """The container and its node. Raises RequestError."""
        task = find_container(self.ctx.view, word)
        node = self.ctx.view.nodes.get(task.node_id)
        if node is None:
            raise failed_precondition(f"container '{word}' is on no node yet")
        return task, node

    def _order(self, task: Task, action: Any) -> dispatch_pb2.OpenTunnel:
        files = images_pb2.ContainerFilesOrder(task_id=task.id, action=action)
        return dispatch_pb2.OpenTunnel(container_files=files)


def _full(word: str) -> str:
    try:
        return str(parse_image(word))
    except ValueError:
        return ""


async def _send(uploads: AsyncIterator[Any], tunnel: Tunnel) -> None:
    async for upload in uploads:
        await tunnel.send(dispatch_pb2.Frame(data=upload.data))
    await tunnel.send(dispatch_pb2.Frame(eof=True))
