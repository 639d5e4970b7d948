# SPDX-License-Identifier: Apache-2.0
"""The endpoint table as sent to the kernel's load balancer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from orchestrator.agent.network.endpoint_table import Change
from orchestrator.agent.network.load_balancer import KernelLoadBalancer
from orchestrator.agent.network.node_network import Connections
from orchestrator.cni.balancing.endpointtable import Policy, Published, Table
from orchestrator.pb import dispatch_pb2, types_pb2

UDP, HOST = types_pb2.PROTOCOL_UDP, types_pb2.PUBLISH_MODE_HOST


class Kernel:
    """Records the tables, and reports a scripted number of connections."""

    def __init__(self) -> None:
        self.table = Table(0)
        self.tracked = Connections(0, 0, 0)

    async def balance(self, change: Table, whole: Callable[[], Table]) -> None:
        self.table = change

    async def connections(self) -> Connections:
        return self.tracked


def whole() -> Change:
    raise AssertionError("it was sent the whole table on request")


def network(**more: object) -> dispatch_pb2.AssignedNetwork:
    return dispatch_pb2.AssignedNetwork(
        id="n1",
        vni=7,
        cluster_cidr="10.128.0.0/14",
        **more,  # type: ignore[arg-type]
    )


async def told(change: Change) -> Table:
    kernel = Kernel()
    await KernelLoadBalancer(kernel).follow(change, whole)
    return kernel.table


async def test_ports_that_every_node_leads_to_are_published_in_one_network() -> None:
    ports = [
        types_pb2.PortSpec(published=8080, target=80),
        types_pb2.PortSpec(published=53, target=5353, protocol=UDP),
        types_pb2.PortSpec(published=9090, target=90, mode=HOST),
    ]
    entries = tuple(
        dispatch_pb2.ServiceEndpoints(id="s1", network_id=id, ports=ports, publishes=here)
        for id, here in (("n1", True), ("n2", False))
    )
    first, second = (await told(Change(1, None, entries, networks=()))).services
    assert first.ports == (Published("tcp", 8080, 80), Published("udp", 53, 5353))
    assert second.ports == ()


async def test_networks_bring_their_policies_and_fixed_addresses_of_both_families() -> None:
    policy = types_pb2.NetworkPolicy(
        id="p1", destination="db", sources=["web"], ports=[types_pb2.PolicyPort(port=5432)]
    )
    peer = dispatch_pb2.NetworkPeer(
        subnet="10.128.3.0/24", address="192.0.2.3", addresses=["10.128.0.9", "fd00::9"]
    )
    networks = (
        network(policies=[policy], peers=[peer]),
        dispatch_pb2.AssignedNetwork(id="own", driver="bridge", cluster_cidr="10.1.0.0/16"),
    )
    table = await told(Change(1, None, (), networks=networks))
    assert table.policies == (Policy("p1", "n1", False, "db", ("web",), (("tcp", 5432),)),)
    assert table.networks is not None
    (only,) = table.networks
    assert (only.bridge, only.device) == ("orcbr7", "orcvx7")
    (node,) = only.nodes
    assert node.address == IPv4Address("192.0.2.3")
    assert [str(address) for address in node.addresses] == ["10.128.0.9", "fd00::9"]
    assert (await told(Change(2, 1, ()))).policies is None, "they are as they were"


async def test_a_full_connection_table_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    kernel = Kernel()
    balance = KernelLoadBalancer(kernel)
    for tracked, trouble in (
        (Connections(10, 1000, 5), False),  # what was refused before is history
        (Connections(1000, 1000, 5), True),
        (Connections(999, 1000, 9), True),
        (Connections(500, 1000, 12), True),  # room now, but not all the time
        (Connections(20, 1000, 12), False),
        (Connections(18, 1000, 14), False),  # no want of room: two packets that raced each other
        (Connections(21, 1000, 14), False),
    ):
        kernel.tracked = tracked
        await balance.follow(Change(3, 3, ()), whole)
        assert ("tracks 1000 connections of at most 1000" in balance.trouble) is trouble
    assert [record.message for record in caplog.records] == [
        "the kernel tracks 1000 connections of at most 1000 and refuses new ones: raise "
        "net.netfilter.nf_conntrack_max, or stop the program that opens them",
        "the kernel accepts new connections again",
    ]
