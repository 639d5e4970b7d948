# SPDX-License-Identifier: Apache-2.0
"""The network of builds in real kernels: a way out by the node, and nothing that stays."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
from nodekit import node
from nshosts import NsHost, reach

from orchestrator.agent.builds.sandbox import HOST, NONE, Sandboxes
from orchestrator.agent.network.build_network import BUILD_NETWORK, BuildNetwork
from orchestrator.agent.network.node_network import NodeNetwork

pytestmark = pytest.mark.root


@pytest.fixture
async def network(hosts: list[NsHost]) -> AsyncIterator[NodeNetwork]:
    async with node(hosts[1]) as network:
        yield network
        await network.remove(BUILD_NETWORK)
        await network.collect([])


def builds(host: NsHost, network: NodeNetwork) -> BuildNetwork:
    return BuildNetwork(network, host.run / "netns", host.address, taken=list)


def host_veths(host: NsHost) -> list[str]:
    """The veth devices of builds on a host."""
    names = (link["ifname"] for link in host.ip("link", "show", "type", "veth"))
    return [name for name in names if name != "uplink"]


async def until_no_cables(host: NsHost) -> None:
    """The kernel removes them with their namespaces, some time after the last reference."""
    async with asyncio.timeout(60):
        while host_veths(host):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def links(netns: int) -> set[str]:
    """The interfaces of a network namespace."""
    found = os.popen(f"nsenter --net=/proc/{os.getpid()}/fd/{netns} ip -o link").read()
    return {line.split()[1].partition("@")[0].rstrip(":") for line in found.splitlines()}


async def test_builds_reach_other_hosts_as_their_node(
    hosts: list[NsHost], network: NodeNetwork
) -> None:
    own = builds(hosts[1], network)
    async with (
        Sandboxes(own) as sandboxes,
        sandboxes.sandbox("") as one,
        sandboxes.sandbox("") as two,
    ):
        assert one.netns is not None
        assert two.netns is not None
        for sandbox in (one, two):
            assert links(sandbox.netns or 0) == {"lo", "eth0"}
            way = f"/proc/self/fd/{sandbox.netns}"
            assert reach(hosts[2].netns, way, hosts[2].address, 8080) == hosts[1].address
        assert len(own.attached) == 2
        assert len(host_veths(hosts[1])) == 2
    assert own.attached == frozenset()
    await until_no_cables(hosts[1])
    assert list((hosts[1].run / "netns").iterdir()) == []


async def test_the_other_networks_of_a_build(hosts: list[NsHost], network: NodeNetwork) -> None:
    async with Sandboxes(builds(hosts[1], network)) as sandboxes:
        async with sandboxes.sandbox(NONE) as offline:
            assert offline.netns is not None
            assert links(offline.netns) == {"lo"}
        async with sandboxes.sandbox(HOST) as shared:
            assert shared.netns is None
    assert host_veths(hosts[1]) == []


async def test_leftovers_of_a_killed_agent_are_removed(
    hosts: list[NsHost], network: NodeNetwork
) -> None:
    async with Sandboxes() as sandboxes, sandboxes.sandbox(NONE) as sandbox:
        assert sandbox.netns is not None
        await builds(hosts[1], network).attach("build-left", sandbox.netns)
    assert len(host_veths(hosts[1])) == 1
    async with node(hosts[1]) as later:
        own = builds(hosts[1], later)
        await later.collect(own.attached)
        await until_no_cables(hosts[1])
        assert list((hosts[1].run / "netns").iterdir()) == []
        async with Sandboxes(own) as sandboxes, sandboxes.sandbox("") as sandbox:
            way = f"/proc/self/fd/{sandbox.netns}"
            assert reach(hosts[2].netns, way, hosts[2].address, 8080) == hosts[1].address
