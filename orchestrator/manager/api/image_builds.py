"""Calls about builds beside the build itself: what they leave on nodes for the next ones."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from orchestrator.manager.api.context import Calls, answering
from orchestrator.manager.api.image_nodes import ask
from orchestrator.manager.lookup import find_node
from orchestrator.manager.refusal import Refusal
from orchestrator.model.dockerfile import bases, platform_arguments
from orchestrator.model.names import parse_image
from orchestrator.model.nodes import Node
from orchestrator.model.platforms import architecture
from orchestrator.pb import dispatch_pb2, images_pb2


class BuildCacheCalls(Calls):
    """`orc builder`."""

    @answering
    async def BuildCaches(self, request: Any, context: Any) -> Any:
        """List, or prune and list, the caches of one node or of all."""
        api = self.api
        nodes = [find_node(api.view, request.node)] if request.node else api.view.nodes.values()
        cache = images_pb2.BuildCacheOrder(prune=request.prune, all=request.all)
        order = dispatch_pb2.OpenTunnel(build_cache=cache)
        reply = images_pb2.BuildCachesReply()

        async def one(node: Node) -> None:
            hostname = node.description.hostname
            if not api.dispatcher.nearest([node.id]):
                reply.notices.append(f"node {hostname} is away")
                return
            try:
                _, result = await ask(api, node, order)
            except Refusal as refused:
                reply.notices.append(f"node {hostname}: {refused.text}")
            else:
                reply.caches[hostname].CopyFrom(result.build_cache)

        await asyncio.gather(*(one(node) for node in nodes))
        return reply


def bases_of(header: Any, node: Node) -> frozenset[str]:
    """Full names of the images that a build starts or copies from, as its Dockerfile says: what
    its node may pull with the cluster's credentials."""
    text = (header.dockerfile_content or header.dockerfile_inside).decode(errors="replace")
    arguments = platform_arguments("linux", architecture(node.description.arch))
    found = set()
    for base in bases(text, header.build_args, arguments, header.target):
        with suppress(ValueError):  # nonsense, of which the node says so
            found.add(str(parse_image(base.name)))
    return frozenset(found)
