# SPDX-License-Identifier: Apache-2.0
"""Counters of tasks, read from their nodes over tunnels, for autoscaling."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from orchestrator.manager.dispatch.tunnels import Tunnels
from orchestrator.manager.errors import RequestError
from orchestrator.manager.planning.autoscaling import Reading
from orchestrator.manager.store.cache import Cache
from orchestrator.pb import dispatch_pb2, interact_pb2

log = logging.getLogger(__name__)

TIMEOUT = 5.0
"""Seconds in which a node must answer."""


class TaskReadings:
    """Reads the counters of tasks from any node, whichever manager has its session."""

    def __init__(
        self, cache: Cache, tunnels: Tunnels, deliver: Callable[[str, Any], Awaitable[None]]
    ) -> None:
        """`deliver` sends a message in a node's session."""
        self._cache = cache
        self._tunnels = tunnels
        self._deliver = deliver

    async def read(self, node_id: str, task_ids: Sequence[str]) -> Mapping[str, Reading]:
        """The counters of tasks on a node, by task id; empty if the node does not answer in
        time."""
        node = self._cache.view.nodes.get(node_id)
        name = node.description.hostname if node is not None else node_id
        order = dispatch_pb2.OpenTunnel(stats=interact_pb2.StatsRequest(containers=task_ids))
        try:
            async with (
                asyncio.timeout(TIMEOUT),
                self._tunnels.open(node_id, name, order, self._deliver) as tunnel,
            ):
                async for frame in tunnel.frames():
                    if frame.WhichOneof("kind") == "stats":
                        return {
                            each.task_id: Reading(each.at, each.cpu / 1e9, each.memory)
                            for each in frame.stats.containers
                        }
        except (RequestError, TimeoutError) as error:
            log.info("cannot measure tasks", extra={"node": name, "error": error})
        return {}
