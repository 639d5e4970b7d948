"""Calls about builds beside the build itself: what they leave on nodes for the next ones."""

from __future__ import annotations

import asyncio
from typing import Any

from orchestrator.manager.api.context import Calls, answering
from orchestrator.manager.api.image_nodes import ask
from orchestrator.manager.lookup import find_node
from orchestrator.manager.refusal import Refusal
from orchestrator.model.nodes import Node
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
