# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "cni"))

from netkit import Node
from nsfixtures import host, hosts, netns_folder
from nshosts import NsHost
from webkit import web

from orchestrator.agent.network.node_network import NodeNetwork

__all__ = ["host", "hosts", "netns_folder", "nodes", "web"]


@pytest.fixture
async def nodes(hosts: list[NsHost]) -> AsyncIterator[list[Node]]:
    """Two nodes that have both networks."""
    async with AsyncExitStack() as stack:
        made = []
        for number, host in enumerate(hosts[1:3], start=1):
            node = NodeNetwork(host.state, host.run, command=host.helper)
            made.append(Node(host, number, await stack.enter_async_context(node)))
        for node in made:
            node.others = [other for other in made if other is not node]
            for name in "ab":
                await node.apply(name)
        yield made
        for node in made:
            for name in await node.network.networks():
                await node.network.remove(name)
            await node.network.collect([])
