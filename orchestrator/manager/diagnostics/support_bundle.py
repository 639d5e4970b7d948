# SPDX-License-Identifier: Apache-2.0
"""Contents of `orc support-bundle`: facts and logs of this manager and of nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from orchestrator.manager.errors import RequestError
from orchestrator.manager.operations.context import ManagerContext, Operations
from orchestrator.manager.operations.node_requests import send_request
from orchestrator.model.nodes import Node
from orchestrator.pb import dispatch_pb2, support_pb2
from orchestrator.supportbundle import hostfacts
from orchestrator.supportbundle.hostfacts import document, packed

NODE_TIMEOUT = 30.0
"""Seconds that a node has to answer."""
_ETCD_LOGS = ("etcd.log", "etcd.err")


class SupportBundleOperations(Operations):
    """`orc support-bundle`."""

    def __init__(self, ctx: ManagerContext, data_dir: Path) -> None:
        """`data_dir` has the logs of the etcd member that this manager runs, if any."""
        super().__init__(ctx)
        self._data = data_dir

    async def collect(
        self, request: support_pb2.CollectRequest
    ) -> AsyncIterator[support_pb2.SupportPart]:
        """Stream facts and logs of this manager and, if requested, of all nodes."""
        size = request.log_bytes or hostfacts.LOG_BYTES
        facts = await asyncio.to_thread(self._own, size)
        yield support_pb2.SupportPart(
            host=f"manager-{self.ctx.identity.address}", facts=packed([*facts, self._state()])
        )
        if not request.nodes:
            return
        order = dispatch_pb2.OpenTunnel(support=support_pb2.SupportOrder(log_bytes=size))
        asked = [self._ask(node, order) for node in self.ctx.view.nodes.values()]
        for answer in asyncio.as_completed(asked):
            yield await answer

    def _own(self, size: int) -> list[hostfacts.Fact]:
        logs = [
            hostfacts.Fact(f"log/{name}", hostfacts.tail(self._data / "etcd" / name, size))
            for name in _ETCD_LOGS
            if (self._data / "etcd" / name).exists()
        ]
        return [*hostfacts.host(), hostfacts.own_log("manager", size), *logs]

    def _state(self) -> hostfacts.Fact:
        ctx = self.ctx
        return document(
            "manager.json",
            {
                "address": ctx.identity.address,
                "leader": ctx.leader(),
                "revision": ctx.cache.revision,
                "objects": {
                    name: len(getattr(ctx.view, name))
                    for name in ("nodes", "services", "tasks", "networks", "images", "volumes")
                },
            },
        )

    async def _ask(self, node: Node, order: Any) -> Any:
        hostname = node.description.hostname
        part = support_pb2.SupportPart(host=hostname)
        if not self.ctx.dispatcher.reachable_nodes([node.id]):
            part.notice = f"node {hostname} is {node.state.name.lower()} and has no session"
            return part
        try:
            async with asyncio.timeout(NODE_TIMEOUT):
                result = (await send_request(self.ctx, node, order))[1]
        except TimeoutError:
            part.notice = f"node {hostname} did not answer within {NODE_TIMEOUT:g} seconds"
        except RequestError as refusal:
            part.notice = f"node {hostname}: {refusal.text}"
        else:
            if result is None or result.error:
                part.notice = f"node {hostname}: {result.error if result else 'it gave up'}"
            else:
                part.facts.CopyFrom(result.support)
        return part
