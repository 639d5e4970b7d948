"""Calls about images: they live on nodes, so each goes through a tunnel to one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from orchestrator.daemon.background import background
from orchestrator.manager.api.context import Calls, answering, hostnames
from orchestrator.manager.api.image_builds import bases_of
from orchestrator.manager.api.image_nodes import choose_node, parsed, settled
from orchestrator.manager.offload import offload
from orchestrator.manager.planning.views import ClusterView
from orchestrator.manager.refusal import invalid
from orchestrator.manager.tunnels import Tunnel
from orchestrator.model.convert import to_proto
from orchestrator.pb import control_pb2, dispatch_pb2


class ImageCalls(Calls):
    """`orc images`, `orc load`, `orc build`."""

    @answering
    async def ListImages(self, request: Any, context: Any) -> Any:
        return await offload(_list, self.api.view)

    @answering
    async def LoadImage(self, request: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for progress in self._on_a_node(request, "load"):
            yield progress

    @answering
    async def BuildImage(self, request: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for progress in self._on_a_node(request, "build"):
            yield progress

    async def _on_a_node(self, uploads: AsyncIterator[Any], work: str) -> AsyncIterator[Any]:
        """Stream an upload to a node, its lines back, and at last the image that came of it."""
        uploads = aiter(uploads)
        first = await anext(uploads, None)
        if first is None or first.WhichOneof("part") != "header":
            raise invalid("an upload begins with its header")
        header = first.header
        if header.name:
            header.name = str(parsed(header.name))
        header.more_names[:] = [str(parsed(name)) for name in header.more_names]
        names: tuple[str, ...] | None = (header.name, *header.more_names)
        if work == "load" and not header.name:
            names = None  # the archive has them
        node = choose_node(self.api, header.node, header.platform)
        pulls = bases_of(header, node) if work == "build" else frozenset()
        header.ClearField("dockerfile_inside")
        order = dispatch_pb2.OpenTunnel(**{work: header})
        async with (
            self.api.tunnels.open(
                node.id, node.description.hostname, order, self.api.dispatcher.deliver, pulls
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
                            image = await settled(self.api, node, part, names)
                            yield control_pb2.ImageProgress(image=to_proto(image))


def _list(view: ClusterView) -> Any:
    images = [
        # What is only yet to be removed is no longer there for a user.
        replace(image, nodes=tuple(n for n in image.nodes if n not in image.condemned))
        for image in sorted(view.images.values(), key=lambda i: (-i.created_at, i.id))
    ]
    return control_pb2.ListImagesReply(
        images=[to_proto(image) for image in images if image.nodes], hostnames=hostnames(view)
    )


async def _send(uploads: AsyncIterator[Any], tunnel: Tunnel) -> None:
    async for upload in uploads:
        await tunnel.send(dispatch_pb2.Frame(data=upload.data))
    await tunnel.send(dispatch_pb2.Frame(eof=True))
