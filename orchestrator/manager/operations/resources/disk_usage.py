# SPDX-License-Identifier: Apache-2.0
"""Disk usage of nodes."""

from __future__ import annotations

import asyncio
from typing import Any

from orchestrator.manager.errors import RequestError
from orchestrator.manager.operations.context import Operations
from orchestrator.manager.operations.node_requests import send_request
from orchestrator.model.nodes import Node, NodeState
from orchestrator.pb import dispatch_pb2, system_pb2

COUNT_TIMEOUT = 20.0
"""Seconds that a node has to measure its disk usage."""


class DiskUsageOperations(Operations):
    """Operations of `orc system df`, `orc ps -s`."""

    async def disk_usage(self, request: system_pb2.DiskUsageRequest) -> system_pb2.DiskUsageReply:
        """Report disk usage of images, containers, volumes and build caches on each node."""
        order = dispatch_pb2.OpenTunnel(
            disk_usage=system_pb2.DiskUsageOrder(containers_only=request.containers_only)
        )
        nodes = self._nodes()
        results = await asyncio.gather(*(self._ask(node, order) for node in nodes))
        reply = system_pb2.DiskUsageReply()
        for node, result in zip(nodes, results, strict=True):
            if isinstance(result, str):
                row = reply.nodes.add(notice=result)
            else:
                row = reply.nodes.add()
                row.CopyFrom(result.disk_usage)
            row.node, row.node_id = node.description.hostname, node.id
        return reply

    def _nodes(self) -> list[Node]:
        return sorted(self.ctx.view.nodes.values(), key=lambda node: node.description.hostname)

    async def _ask(self, node: Node, order: Any) -> Any:
        """A node's TunnelResult, or a line that says why there is none."""
        hostname = node.description.hostname
        if node.state is not NodeState.READY:
            return f"node {hostname} is {node.state.name.lower()}; its disk usage is not shown"
        try:
            async with asyncio.timeout(COUNT_TIMEOUT):
                return (await send_request(self.ctx, node, order))[1]
        except TimeoutError:
            return f"node {hostname} did not answer within {COUNT_TIMEOUT:g} seconds"
        except RequestError as refusal:
            return f"node {hostname}: {refusal.text}"
