# SPDX-License-Identifier: Apache-2.0
"""Building and loading images on nodes, and the nodes' build caches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from orchestrator.daemon.background import background
from orchestrator.manager.dispatch.tunnels import Tunnel
from orchestrator.manager.errors import RequestError
from orchestrator.manager.event_loop import offload
from orchestrator.manager.object_lookup import find_node
from orchestrator.manager.operations.context import Operations, hostnames
from orchestrator.manager.operations.node_requests import (
    choose_node,
    parse_image_name,
    register_image,
    send_request,
    upload_header,
)
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.convert import to_proto
from orchestrator.model.formats.dockerfile import bases, platform_arguments
from orchestrator.model.formats.platforms import architecture
from orchestrator.model.names import parse_image
from orchestrator.model.nodes import Node
from orchestrator.pb import control_pb2, dispatch_pb2, images_pb2


class BuildCacheOperations(Operations):
    """Operations of `orc builder`."""

    async def build_caches(
        self, request: images_pb2.BuildCachesRequest
    ) -> images_pb2.BuildCachesReply:
        """List, or prune and list, the build caches of one node or of all."""
        ctx = self.ctx
        nodes = [find_node(ctx.view, request.node)] if request.node else ctx.view.nodes.values()
        cache = images_pb2.BuildCacheOrder(prune=request.prune, all=request.all)
        order = dispatch_pb2.OpenTunnel(build_cache=cache)
        reply = images_pb2.BuildCachesReply()

        async def one(node: Node) -> None:
            hostname = node.description.hostname
            if not ctx.dispatcher.reachable_nodes([node.id]):
                reply.notices.append(f"node {hostname} is unavailable")
                return
            try:
                _, result = await send_request(ctx, node, order)
            except RequestError as refused:
                reply.notices.append(f"node {hostname}: {refused.text}")
            else:
                reply.caches[hostname].CopyFrom(result.build_cache)

        await asyncio.gather(*(one(node) for node in nodes))
        return reply


def base_images(header: Any, node: Node) -> frozenset[str]:
    """Full names of the images that a build starts or copies from, according to its Dockerfile: its
    node may pull these with the cluster's credentials."""
    text = (header.dockerfile_content or header.dockerfile_inside).decode(errors="replace")
    arguments = platform_arguments("linux", architecture(node.description.arch))
    found = set()
    for base in bases(text, header.build_args, arguments, header.target):
        with suppress(ValueError):  # invalid; the node reports it
            found.add(str(parse_image(base.name)))
    return frozenset(found)


class ImageBuildOperations(Operations):
    """Operations of `orc images`, `orc load`, `orc build`."""

    async def list_images(
        self, request: control_pb2.ListImagesRequest
    ) -> control_pb2.ListImagesReply:
        """List images, newest first."""
        return await offload(_list, self.ctx.view)

    async def load_image(
        self, request: AsyncIterator[control_pb2.ImageUpload]
    ) -> AsyncIterator[control_pb2.ImageProgress]:
        """Load an image archive on a node."""
        async for progress in self._on_a_node(request, "load"):
            yield progress

    async def build_image(
        self, request: AsyncIterator[control_pb2.ImageUpload]
    ) -> AsyncIterator[control_pb2.ImageProgress]:
        """Build an image on a node from an uploaded context."""
        async for progress in self._on_a_node(request, "build"):
            yield progress

    async def _on_a_node(self, uploads: AsyncIterator[Any], work: str) -> AsyncIterator[Any]:
        """Stream an upload to a node, its output back, and finally the resulting image."""
        uploads = aiter(uploads)
        header = await upload_header(uploads)
        header.more_names[:] = [str(parse_image_name(name)) for name in header.more_names]
        names: tuple[str, ...] | None = (header.name, *header.more_names)
        if work == "load" and not header.name:
            names = None  # the archive has them
        node = choose_node(self.ctx, header.node, header.platform)
        pulls = base_images(header, node) if work == "build" else frozenset()
        header.ClearField("dockerfile_inside")
        order = dispatch_pb2.OpenTunnel(**{work: header})
        async with (
            self.ctx.tunnels.open(
                node.id, node.description.hostname, order, self.ctx.dispatcher.deliver, pulls
            ) as tunnel,
            background(_send(uploads, tunnel)),
        ):
            async for frame in tunnel.frames():
                match frame.WhichOneof("kind"):
                    case "line":
                        yield control_pb2.ImageProgress(line=frame.line)
                    case "result":
                        for each in (frame.result.image, *frame.result.more_images):
                            part = dispatch_pb2.TunnelResult(error=frame.result.error, image=each)
                            image = await register_image(self.ctx, node, part, names)
                            yield control_pb2.ImageProgress(image=to_proto(image))


def _list(view: ClusterView) -> Any:
    images = [
        # Images whose removal is pending are hidden.
        replace(image, nodes=tuple(n for n in image.nodes if n not in image.pending_removal))
        for image in sorted(view.images.values(), key=lambda i: (-i.created_at, i.id))
    ]
    return control_pb2.ListImagesReply(
        images=[to_proto(image) for image in images if image.nodes], hostnames=hostnames(view)
    )


async def _send(uploads: AsyncIterator[Any], tunnel: Tunnel) -> None:
    async for upload in uploads:
        await tunnel.send(dispatch_pb2.Frame(data=upload.data))
    await tunnel.send(dispatch_pb2.Frame(eof=True))
