# SPDX-License-Identifier: Apache-2.0
"""Connections between services, collected from nodes while a web page shows them.

A node knows connections by address; the manager knows whose addresses these are. A connection
between nodes is known to both, and counted at its client; one from outside at its server. A node's
own traffic with its containers, such as probes and DNS answers, is left out.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.manager.errors import RequestError
from orchestrator.manager.event_loop import offload
from orchestrator.manager.operations.context import ManagerContext
from orchestrator.manager.operations.node_requests import stream_replies
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import Node, NodeState
from orchestrator.model.states import is_terminal
from orchestrator.model.tasks import Task
from orchestrator.pb import dispatch_pb2, flows_pb2

PERIOD = 2.0
"""Seconds between two graphs, and between two samples on a node."""
MOST_EDGES = 300
"""Edges of a graph at most: those with the most bytes."""
OUTSIDE = ""
"""Peers that are no tasks of the cluster."""

_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}


@dataclass(slots=True)
class _Edge:
    open: int = 0
    begun: float = 0.0
    sent: float = 0.0
    received: float = 0.0
    ends: set[tuple[bytes, bytes]] = field(default_factory=set)


class Traffic:
    """The traffic data for one browser."""

    def __init__(self, ctx: ManagerContext) -> None:
        self._ctx = ctx
        self._reports: dict[str, flows_pb2.NodeFlows] = {}
        self._following: set[str] = set()

    async def collect(self) -> None:
        """Collect from all nodes, including later ones, until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                for node in self._ctx.view.nodes.values():
                    ready = node.state is NodeState.READY
                    if ready and node.id not in self._following and self._connected(node):
                        self._following.add(node.id)
                        group.create_task(self._follow(node))
                await asyncio.sleep(PERIOD)

    async def graphs(self) -> AsyncIterator[dict[str, Any]]:
        """Graphs every few seconds; more often until all nodes have answered."""
        while True:
            yield await offload(traffic_graph, self._ctx.view, dict(self._reports))
            complete = self._reports and all(told.seconds for told in self._reports.values())
            await asyncio.sleep(PERIOD if complete else PERIOD / 4)

    def _connected(self, node: Node) -> bool:
        return self._ctx.dispatcher.connected(node.id)

    async def _follow(self, node: Node) -> None:
        order = dispatch_pb2.OpenTunnel(flows=flows_pb2.FlowsOrder(period=PERIOD))
        try:
            async for frame in stream_replies(self._ctx, node, order):
                if frame.WhichOneof("kind") == "flows":
                    self._reports[node.id] = frame.flows
        except RequestError:
            pass  # unavailable or too old: the graph says how many nodes report
        finally:
            self._reports.pop(node.id, None)
            self._following.discard(node.id)


def traffic_graph(view: ClusterView, told: Mapping[str, flows_pb2.NodeFlows]) -> dict[str, Any]:
    """Merge the reports of nodes (by id) into a graph by service; pure.

    An edge connects the ids of services, of standalone tasks, or `OUTSIDE`; `begun`, `sent` and
    `received` are per second, the latter two in bytes.
    """
    owners = _owners(view)
    own = [
        ipaddress.ip_network(subnet)
        for network in view.networks.values()
        for subnet in (network.subnet, network.subnet6)
        if subnet
    ]
    edges: dict[tuple[str, str, int, int], _Edge] = {}
    for node_id, flows in told.items():
        for flow in flows.flows:
            client = _owner(owners, flow.client, node_id)
            server = _owner(owners, flow.server, node_id)
            here = client if client is not None else server
            if here is None or here.node_id != node_id:
                continue
            if any(_within(end, own) for end, task in _ends(flow, client, server) if task is None):
                continue
            key = (_group(client), _group(server), flow.port, flow.protocol)
            edge = edges.setdefault(key, _Edge())
            edge.open += flow.open
            edge.ends.add((flow.client, flow.server))
            if flows.seconds:
                edge.begun += flow.begun / flows.seconds
                edge.sent += flow.sent / flows.seconds
                edge.received += flow.received / flows.seconds
    ordered = sorted(
        edges.items(), key=lambda one: (-one[1].sent - one[1].received, -one[1].open, one[0])
    )
    ready = sum(node.state is NodeState.READY for node in view.nodes.values())
    return {
        "nodes": ready,
        "telling": sum(bool(flows.seconds) for flows in told.values()),
        "left_out": max(len(ordered) - MOST_EDGES, 0) + sum(f.left_out for f in told.values()),
        "edges": [
            {
                "from": source,
                "to": target,
                "port": port,
                "protocol": _PROTOCOLS.get(protocol, str(protocol)),
                "open": edge.open,
                "pairs": len(edge.ends),
                "begun": round(edge.begun, 2),
                "sent": round(edge.sent),
                "received": round(edge.received),
            }
            for (source, target, port, protocol), edge in ordered[:MOST_EDGES]
        ],
    }


def _owners(view: ClusterView) -> dict[bytes, list[Task]]:
    """Packed address → its owners; addresses of node-local networks have several."""
    found: dict[bytes, list[Task]] = {}
    for task in view.tasks.values():
        if is_terminal(task.status.state):
            continue
        for address in (*task.status.addresses.values(), *task.status.addresses6.values()):
            found.setdefault(ipaddress.ip_address(address).packed, []).append(task)
    return found


def _owner(owners: Mapping[bytes, list[Task]], address: bytes, node_id: str) -> Task | None:
    tasks = owners.get(address, [])
    return next((task for task in tasks if task.node_id == node_id), tasks[0] if tasks else None)


def _ends(
    flow: Any, client: Task | None, server: Task | None
) -> Iterator[tuple[bytes, Task | None]]:
    yield flow.client, client
    yield flow.server, server


def _within(
    address: bytes, networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]
) -> bool:
    parsed = ipaddress.ip_address(address)
    return any(parsed in network for network in networks)


def _group(task: Task | None) -> str:
    return OUTSIDE if task is None else task.service_id or task.id
