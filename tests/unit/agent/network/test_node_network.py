# SPDX-License-Identifier: Apache-2.0
"""Nodes made of namespaces, and the packets between their containers."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from nodekit import NET, config, host_veths, node, published, subnet
from nshosts import NsHost, reach, socket_in, wait_for

from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.network_types import Peer, PortMapping
from orchestrator.agent.network.node_network import NodeNetwork
from orchestrator.cni.errors import Code
from orchestrator.cni.netlink import namespaces

pytestmark = pytest.mark.root


IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2


BEYOND = "198.51.100.1"


class Cluster:
    """Three nodes that know each other; `router` is outside of the cluster."""

    def __init__(self, hosts: list[NsHost], networks: list[NodeNetwork]) -> None:
        self.router, *self.hosts = hosts
        self.networks = networks
        self.peers = tuple(Peer(subnet(n), host.address) for n, host in enumerate(self.hosts))

    async def apply(self, number: int, peers: tuple[Peer, ...] | None = None) -> None:
        wanted = config(self.hosts[number], number, self.peers if peers is None else peers)
        await self.networks[number].apply(wanted)


@pytest.fixture
async def cluster(hosts: list[NsHost]) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        networks = [await stack.enter_async_context(node(host)) for host in hosts[1:]]
        made = Cluster(hosts, networks)
        for number in range(3):
            await made.apply(number)
        yield made
        for number in range(3):
            await made.apply(number)
            await networks[number].remove(NET)


@pytest.fixture
async def single(host: NsHost) -> AsyncIterator[NodeNetwork]:
    async with node(host) as network:
        await network.apply(config(host, 0))
        yield network


async def test_containers_and_hosts_reach_each_other(cluster: Cluster) -> None:
    one, two, three = cluster.hosts
    a = await cluster.networks[0].attach(NET, "a")
    b = await cluster.networks[1].attach(NET, "b")
    c = await cluster.networks[1].attach(NET, "c")
    assert (a.address, b.address, c.address) == ("10.128.0.2", "10.128.1.2", "10.128.1.3")
    assert reach(b.netns, a.netns, b.address, 80) == a.address, "over VXLAN, the source is kept"
    assert reach(a.netns, b.netns, a.address, 80) == b.address
    assert reach(c.netns, b.netns, c.address, 80) == b.address, "over the bridge"
    assert reach(a.netns, one.netns, a.address, 80) == "10.128.0.1", "from its own host"
    assert reach(b.netns, one.netns, b.address, 80) == "10.128.0.1", "from another host"
    assert reach(a.netns, three.netns, a.address, 80) == "10.128.2.1"
    assert reach(two.netns, b.netns, two.address, 80) == b.address, "a container reaches its host"


async def test_packets_that_leave_the_network_are_masqueraded(cluster: Cluster) -> None:
    a = await cluster.networks[0].attach(NET, "a")
    assert reach(cluster.router.netns, a.netns, BEYOND, 80) == cluster.hosts[0].address
    assert reach(cluster.hosts[1].netns, a.netns, cluster.hosts[1].address, 80) == (
        cluster.hosts[0].address
    )


async def test_the_mtu_fits_the_tunnel(cluster: Cluster) -> None:
    a = await cluster.networks[0].attach(NET, "a")
    b = await cluster.networks[1].attach(NET, "b")
    with (
        socket_in(b.netns, socket.SOCK_DGRAM) as receiver,
        socket_in(a.netns, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("0.0.0.0", 9))
        sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        sender.sendto(b"x" * (1450 - 28), (b.address, 9))
        assert len(receiver.recv(2000)) == 1450 - 28, "a full packet, not to be fragmented"
        with pytest.raises(OSError, match="Message too long") as caught:
            sender.sendto(b"x" * (1450 - 27), (b.address, 9))
        assert caught.value.errno == errno.EMSGSIZE


async def test_the_first_packet_to_the_first_container_arrives(host: NsHost) -> None:
    async with node(host) as network:
        for turn in range(10):
            await network.apply(config(host, 0))
            a = await network.attach(NET, f"a{turn}")
            with (
                socket_in(a.netns, socket.SOCK_DGRAM) as receiver,
                socket_in(host.netns, socket.SOCK_DGRAM) as sender,
            ):
                receiver.bind(("0.0.0.0", 9))
                sender.sendto(b"x", (a.address, 9))
                assert receiver.recv(1) == b"x", turn
            await network.collect([])
            await network.remove(NET)


@pytest.mark.parametrize(
    "setting",
    [
        "net.bridge.bridge-nf-call-iptables=1",  # bridged packets pass our rules too
        "net.bridge.bridge-nf-call-iptables=0",
        "net.ipv4.conf.all.rp_filter=1",
    ],
)
async def test_published_ports(
    cluster: Cluster, setting: str, request: pytest.FixtureRequest
) -> None:
    one, two, _ = cluster.hosts
    name = setting.partition("=")[0]
    before = one.shell("sysctl", "-n", name).strip()
    one.shell("sysctl", "-qw", setting)
    request.addfinalizer(lambda: one.shell("sysctl", "-qw", f"{name}={before}"))
    ports = published(PortMapping(8080, 80), PortMapping(8081, 81, host_ip="127.0.0.1"))
    a = await cluster.networks[0].attach(NET, "a", ports)
    neighbour = await cluster.networks[0].attach(NET, "neighbour")
    b = await cluster.networks[1].attach(NET, "b")
    for who, client in {
        "another host": two.netns,
        "outside": cluster.router.netns,
        "the host itself": one.netns,
        "a container of another host": b.netns,
        "a neighbour": neighbour.netns,
        "the container itself": a.netns,
    }.items():
        assert reach(a.netns, client, one.address, 8080, 80), who
    assert reach(a.netns, two.netns, one.address, 8080, 80) == two.address, "the client is seen"
    assert reach(a.netns, one.netns, "127.0.0.1", 8080, 80)
    assert reach(a.netns, one.netns, "127.0.0.1", 8081, 81)
    with pytest.raises(ConnectionRefusedError):
        reach(a.netns, two.netns, one.address, 8081, 81)
    await cluster.networks[0].detach("a")
    with pytest.raises(ConnectionRefusedError):
        reach(neighbour.netns, two.netns, one.address, 8080, 80)


async def test_udp_ports(cluster: Cluster) -> None:
    one, two, _ = cluster.hosts
    a = await cluster.networks[0].attach(NET, "a", published(PortMapping(5300, 53, "udp")))
    with (
        socket_in(a.netns, socket.SOCK_DGRAM) as server,
        socket_in(two.netns, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("0.0.0.0", 53))
        client.sendto(b"question", (one.address, 5300))
        data, peer = server.recvfrom(100)
        assert (data, peer[0]) == (b"question", two.address)
        server.sendto(b"answer", peer)
        assert client.recvfrom(100) == (b"answer", (one.address, 5300))


async def test_a_udp_client_that_never_stops_follows_the_port(cluster: Cluster) -> None:
    one, two, _ = cluster.hosts
    network = cluster.networks[0]
    with socket_in(two.netns, socket.SOCK_DGRAM) as client:
        client.sendto(b"too early", (one.address, 5300))
        for name in ("first", "second"):
            serving = await network.attach(NET, name, published(PortMapping(5300, 53, "udp")))
            with socket_in(serving.netns, socket.SOCK_DGRAM) as server:
                server.bind(("0.0.0.0", 53))
                client.sendto(name.encode(), (one.address, 5300))
                assert server.recv(100) == name.encode()
            await network.detach(name)


async def test_attach_again_is_the_same(single: NodeNetwork, host: NsHost) -> None:
    first = await single.attach(NET, "a", published(PortMapping(80, 80)))
    assert namespaces.exists(first.netns)
    assert await single.attach(NET, "a", published(PortMapping(80, 80))) == first
    assert len(host_veths(host)) == 1
    await single.check(NET, "a")
    moved = await single.attach(NET, "a", published(PortMapping(81, 80)))
    assert moved.address == first.address
    listed = host.shell("nft", "list", "map", "inet", "orc", "published")
    assert "tcp . 81" in listed
    assert "tcp . 80 :" not in listed


async def test_attach_after_half_a_detach(single: NodeNetwork, host: NsHost) -> None:
    a = await single.attach(NET, "a")
    (end,) = host_veths(host)
    host.shell("bridge", "link", "set", "dev", end, "state", "0", "learning", "off")
    NsHost(Path(a.netns), "", host.state, host.run).shell("ip", "addr", "flush", "dev", "eth0")
    assert await single.attach(NET, "a") == a
    assert reach(a.netns, host.netns, a.address, 80) == "10.128.0.1"


async def test_detach_releases_everything(single: NodeNetwork, host: NsHost) -> None:
    a = await single.attach(NET, "a", published(PortMapping(80, 80)))
    await single.detach("a")
    assert not namespaces.exists(a.netns)
    wait_for(lambda: not host_veths(host))
    assert "tcp . 80" not in host.shell("nft", "list", "map", "inet", "orc", "published")
    await single.detach("a")
    await single.detach("never-was")
    with pytest.raises(NetworkError, match="container a has no address"):
        await single.check(NET, "a")


async def test_a_stray_process_cannot_use_the_address(single: NodeNetwork, host: NsHost) -> None:
    a = await single.attach(NET, "a")
    with socket_in(a.netns) as stray:  # holds the namespace
        stray.bind((a.address, 80))
        stray.listen()
        await single.detach("a")
        with socket_in(host.netns) as client:
            client.settimeout(0.2)
            with pytest.raises((TimeoutError, OSError)):
                client.connect((a.address, 80))
        await single.collect([])
        assert host_veths(host) == []


async def test_a_stopped_container_is_connected_again(single: NodeNetwork, host: NsHost) -> None:
    for _ in range(3):
        a = await single.attach(NET, "a")
        await single.detach("a")
    a = await single.attach(NET, "a")
    assert a.address == "10.128.0.5"
    assert reach(a.netns, host.netns, a.address, 80) == "10.128.0.1"


async def test_an_address_is_usable_the_moment_it_is_reused(host: NsHost) -> None:
    small = replace(config(host, 0), subnet="10.128.0.0/29")
    async with node(host) as network:
        await network.apply(small)
        for number in range(4):
            await network.attach(NET, f"c{number}")
        for number in range(5):
            last = await network.attach(NET, f"last{number}")
            assert last.address == "10.128.0.6"
            assert reach(last.netns, host.netns, last.address, 80) == "10.128.0.1"
            if number == 4:
                with pytest.raises(NetworkError, match="all 5 addresses"):
                    await network.attach(NET, "one-too-many")
            await network.detach(f"last{number}")


async def test_a_port_in_use(single: NodeNetwork, host: NsHost) -> None:
    await single.attach(NET, "a", published(PortMapping(80, 80)))
    with pytest.raises(NetworkError, match=r"port 80/tcp .* by container a") as caught:
        await single.attach(NET, "b", published(PortMapping(80, 8080)))
    assert caught.value.code == Code.PORT_IN_USE
    assert not (host.run / "netns" / "b").exists(), "rolled back"
    assert len(host_veths(host)) == 1
    with pytest.raises(NetworkError, match="protocol 'icmp'"):
        await single.attach(NET, "b", published(PortMapping(81, 81, "icmp")))


async def test_collect(single: NodeNetwork, host: NsHost) -> None:
    keep = await single.attach(NET, "keep", published(PortMapping(80, 80)))
    gone = await single.attach(NET, "gone", published(PortMapping(81, 80)))
    host.shell("ip", "link", "add", "orcvstray", "type", "veth")
    host.shell("ip", "link", "set", "orcvstray", "master", "orcbr7")
    await single.collect(["keep"])
    assert not namespaces.exists(gone.netns)
    assert len(host_veths(host)) == 1
    listed = host.shell("nft", "list", "map", "inet", "orc", "published")
    assert "tcp . 80" in listed
    assert "tcp . 81" not in listed
    assert reach(keep.netns, host.netns, keep.address, 80)


async def test_collecting_many(single: NodeNetwork, host: NsHost) -> None:
    for number in range(30):
        await single.attach(NET, f"c{number}", published(PortMapping(1000 + number, 80)))
    host.shell("ip", "link", "set", host_veths(host)[0], "nomaster")
    await single.collect(["c7"])
    assert len(host_veths(host)) == 1
    await single.check(NET, "c7")
    await single.collect([])
    assert host_veths(host) == []
    assert host.shell("nft", "list", "map", "inet", "orc", "published").count("tcp . ") == 0


async def test_after_a_reboot_leases_are_collected(single: NodeNetwork, host: NsHost) -> None:
    a = await single.attach(NET, "a")
    # A reboot empties the run folder and the kernel, and keeps the state folder.
    host.shell("ip", "link", "del", "orcbr7")
    namespaces.remove(Path(a.netns))
    await single.apply(config(host, 0))
    await single.collect([])
    await single.attach(NET, "b")
    with pytest.raises(NetworkError):
        await single.check(NET, "a")


async def test_leases_are_collected_before_any_network_is_there(
    single: NodeNetwork, host: NsHost
) -> None:
    await single.attach(NET, "a", published(PortMapping(80, 80)))
    host.shell("nft", "delete", "table", "inet", "orc")
    await single.collect([])
    assert await single.interfaces("a") == {}


async def test_manually_removed_state_is_restored(cluster: Cluster) -> None:
    one = cluster.hosts[0]
    a = await cluster.networks[0].attach(NET, "a", published(PortMapping(8080, 80)))
    b = await cluster.networks[1].attach(NET, "b")
    for damage in (
        ["ip", "route", "del", subnet(1)],
        ["ip", "neigh", "del", "10.128.1.0", "dev", "orcvx7"],
        ["bridge", "fdb", "del", "02:76:0a:80:01:00", "dev", "orcvx7"],
        ["ip", "neigh", "replace", "10.128.1.0", "lladdr", "02:00:00:00:00:01", "dev", "orcvx7"],
        ["ip", "link", "set", "orcvx7", "down"],
        ["ip", "link", "del", "orcvx7"],
        ["nft", "delete", "table", "inet", "orc"],
        ["ip", "addr", "flush", "dev", "orcbr7"],
        ["sysctl", "-qw", "net.ipv4.ip_forward=0"],
    ):
        one.shell(*damage)
        await cluster.apply(0)
        assert reach(b.netns, a.netns, b.address, 80) == a.address, damage
        assert reach(a.netns, cluster.hosts[1].netns, one.address, 8080, 80), damage


async def test_peers_come_and_go(cluster: Cluster) -> None:
    one = cluster.hosts[0]

    def entries() -> tuple[int, int, int]:
        routes = [r for r in one.ip("route", "show", "dev", "orcvx7") if "gateway" in r]
        neighbours = one.ip("neigh", "show", "dev", "orcvx7")
        forwards = one.shell("bridge", "fdb", "show", "dev", "orcvx7").splitlines()
        return len(routes), len(neighbours), len([line for line in forwards if " dst " in line])

    assert entries() == (2, 2, 2)
    one.shell("bridge", "fdb", "append", "00:00:00:00:00:00", "dst", "192.0.2.99", "dev", "orcvx7")
    one.shell("ip", "route", "add", "10.131.0.0/24", "dev", "orcvx7")
    await cluster.apply(0, cluster.peers[:2])
    assert entries() == (1, 1, 1)
    await cluster.apply(0, ())
    assert entries() == (0, 0, 0)
    many = tuple(
        Peer(f"10.{129 + n // 250}.{n % 250}.0/24", str(IPv4Address("192.0.2.0") + n % 250))
        for n in range(500)
    )
    await cluster.apply(0, many)
    assert entries() == (500, 500, 500)


async def test_a_moved_peer_is_followed(cluster: Cluster) -> None:
    a = await cluster.networks[0].attach(NET, "a")
    two, three = cluster.hosts[1:]
    await cluster.networks[2].remove(NET)
    moved = (cluster.peers[0], Peer(subnet(1), three.address))
    await cluster.networks[1].remove(NET)
    await cluster.networks[2].apply(config(three, 1, moved))
    b = await cluster.networks[2].attach(NET, "b")
    await cluster.apply(0, moved)
    assert b.address == "10.128.1.2"
    assert reach(b.netns, a.netns, b.address, 80) == a.address
    assert not [link for link in two.ip("link") if link["ifname"].startswith("orc")]


async def test_a_different_device_is_recreated(cluster: Cluster) -> None:
    one = cluster.hosts[0]
    one.shell("ip", "link", "del", "orcvx7")
    one.shell(
        "ip", "link", "add", "orcvx7", "type", "vxlan", "id", "8", "dstport", "4789",
        "local", one.address,
    )  # fmt: skip
    await cluster.apply(0)
    (link,) = one.ip("link", "show", "orcvx7")
    data = link["linkinfo"]["info_data"]
    assert (data["id"], data["port"], data["learning"]) == (7, 4789, False)
    assert (link["mtu"], link["address"]) == (1450, "02:76:0a:80:00:00")


async def test_a_missing_bridge_is_restored_by_attach(single: NodeNetwork, host: NsHost) -> None:
    host.shell("ip", "link", "del", "orcbr7")
    a = await single.attach(NET, "a")
    assert reach(a.netns, host.netns, a.address, 80) == "10.128.0.1"


async def test_foreign_rules_are_untouched(single: NodeNetwork, host: NsHost) -> None:
    foreign = "table ip foreign {\n\tchain c {\n\t\ttcp dport 1 accept\n\t}\n}\n"
    host.shell("nft", "-f", "-", stdin=foreign)
    await single.attach(NET, "a", published(PortMapping(80, 80)))
    await single.apply(config(host, 0))
    await single.collect([])
    assert host.shell("nft", "list", "table", "ip", "foreign") == foreign
    await single.remove(NET)
    assert host.shell("nft", "list", "ruleset") == foreign
    assert [link["ifname"] for link in host.ip("link")] == ["lo", "uplink"]
