# SPDX-License-Identifier: Apache-2.0
"""Tunnel ports are the hosts' own: who else sends there gets into no network."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from forging import ear, packet, say, wire
from netkit import Node, connects, forged, forged_frame, listening
from nshosts import NsHost

from orchestrator.agent.network.network_types import Exposure, Peer
from orchestrator.cni.netlink import namespaces

pytestmark = pytest.mark.root

DEBIANS = Path("/usr/lib/cni/bridge")


@pytest.fixture
def guest(nodes: list[Node]) -> Iterator[NsHost]:
    """A container of another runtime on the first host: Debian's `bridge` plugin, masqueraded."""
    host = nodes[0].host
    made = NsHost(host.run / "guest", "10.88.0.2", host.state, host.run)
    namespaces.ensure(made.netns)
    conf = {
        "cniVersion": "1.0.0",
        "name": "debian",
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(host.state / "host-local"),
            "ranges": [[{"subnet": "10.88.0.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }

    def call(command: str) -> str:
        done = subprocess.run(
            host.command(str(DEBIANS)),
            input=json.dumps(conf),
            text=True,
            check=True,
            capture_output=True,
            env={
                **os.environ,
                "CNI_COMMAND": command,
                "CNI_CONTAINERID": "guest",
                "CNI_NETNS": str(made.netns),
                "CNI_IFNAME": "eth0",
                "CNI_PATH": str(DEBIANS.parent),
            },
        )
        return done.stdout

    address = json.loads(call("ADD"))["ips"][0]["address"]
    try:
        yield replace(made, address=address.partition("/")[0])
    finally:
        call("DEL")
        namespaces.remove(made.netns)
        host.shell("ip", "link", "del", "cni0")


async def test_no_container_on_a_plugin_network_reaches_a_tunnel(
    nodes: list[Node], guest: NsHost
) -> None:
    one, two = nodes
    for node in nodes:
        victim = await node.network.attach("b", f"b{node.number}")
        assert not forged(guest.netns, node, "b", victim.netns, victim.address)
    assert forged(one.host.netns, two, "b", victim.netns, victim.address), "a host would"


async def test_no_container_on_a_plugin_network_can_spoof_a_host(
    nodes: list[Node], guest: NsHost
) -> None:
    """It sends to its own host, with the other host's source address."""
    one, two = nodes
    one.host.shell("sysctl", "-qw", "net.ipv4.conf.cni0.rp_filter=0")
    one.host.shell("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0")
    victim = await one.network.attach("b", "b1")
    mac = one.host.ip("link", "show", "cni0")[0]["address"]
    own = guest.ip("link", "show", "eth0")[0]["address"]
    with ear(victim.netns) as listener:
        for source, data in ((two.host.address, b"as a host"), (guest.address, b"as itself")):
            inner = forged_frame(one, "b", victim.address, listener.port, data)
            udp = struct.pack("!4H", 4444, 4789, 8 + len(inner), 0) + inner
            with wire(guest.netns) as veth:
                veth.send(mac, own, packet(source, one.host.address, 17, udp))
        say(one.host.netns, victim.address, listener.port, b"last")
        assert listener.until(b"last") == []


async def test_an_external_host_on_the_underlay_cannot_use_the_tunnel(
    nodes: list[Node], hosts: list[NsHost]
) -> None:
    one, two = nodes
    victim = await one.network.attach("b", "b1")
    stranger = hosts[3]
    assert not forged(stranger.netns, one, "b", victim.netns, victim.address)
    assert forged(two.host.netns, one, "b", victim.netns, victim.address)
    # It joins the cluster, and leaves it.
    here = (one.host.address, two.host.address)
    await one.network.expose(Exposure(hosts=(*here, stranger.address)))
    assert forged(stranger.netns, one, "b", victim.netns, victim.address)
    await one.network.expose(Exposure(hosts=here))
    assert not forged(stranger.netns, one, "b", victim.netns, victim.address)
    assert forged(two.host.netns, one, "b", victim.netns, victim.address)


async def test_containers_on_plugin_networks_cannot_reach_closed_ports(
    nodes: list[Node], guest: NsHost, hosts: list[NsHost]
) -> None:
    router, (one, two) = hosts[0], nodes
    places = [
        (one.host.netns, "10.88.0.1", 7420),
        (two.host.netns, two.host.address, 7420),
        (router.netns, "198.51.100.1", 80),
    ]
    known = (one.host.address, two.host.address)
    for netns, address, port in places:
        with listening(netns, address, port):
            await one.network.expose(Exposure(known))
            assert connects(guest.netns, address, port)
            closed = Exposure(known, (7420,), ("198.51.100.1",), guests=(guest.address,))
            await one.network.expose(closed)
            assert not connects(guest.netns, address, port)
            assert connects(one.host.netns, address, port)


@pytest.mark.parametrize("port", [51840, 51841])
async def test_no_container_reaches_a_tunnel_port(
    nodes: list[Node], guest: NsHost, port: int
) -> None:
    one, two = nodes
    mine = await one.network.attach("a", "a1")
    with ear(two.host.netns, port) as listener:
        for sender in (guest.netns, mine.netns):
            say(sender, two.host.address, port, b"from a container")
        say(one.host.netns, two.host.address, port, b"from the host")
        assert listener.until(b"from the host") == []


@pytest.mark.parametrize("port", [51840, 51841])
async def test_wireguard_hears_hosts_of_the_cluster_only(
    nodes: list[Node], hosts: list[NsHost], port: int
) -> None:
    """A listener stands for the kernel's WireGuard, which has no such port here."""
    one, two = nodes
    await one.network.remove("b")
    encrypted = Peer("10.2.2.0/24", "fd6f:7263::2", "fd00:2:0:2::/64")
    await one.apply("b", encrypted=True, peers=[encrypted])
    await one.network.expose(Exposure((one.host.address, two.host.address)))
    with ear(one.host.netns, port) as listener:
        say(hosts[3].netns, one.host.address, port, b"from a stranger")
        say(two.host.netns, one.host.address, port, b"from a host")
        assert listener.until(b"from a host") == []
    await one.network.remove("b")
