"""Packets to VIPs and published ports, between containers and clients on several hosts."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from balancekit import TCP, UDP, Answer, echoes, endpoints, open_socket, serving
from nshosts import NsHost

from orchestrator.agent.network import Attachment, NetworkConfig, NodeNetwork, Peer
from orchestrator.cni.endpoints import Endpoint, Network, Node, Policy, Published, Service, Table

pytestmark = pytest.mark.root

CLUSTER = "10.128.0.0/14"
CLUSTER6 = "fd00:0:0::/48"
VIP, VIP6 = "10.131.255.9", "fd00:0:0:fff::9"
FILTERED = pytest.mark.parametrize(
    "filtered",
    [
        "net.bridge.bridge-nf-call-iptables=1",  # bridged packets pass our rules too
        "net.bridge.bridge-nf-call-iptables=0",
    ],
    ids=["filtered", "plain"],
)
KINDS = pytest.mark.parametrize("kind", [TCP, UDP], ids=["tcp", "udp"])


def subnet(number: int) -> str:
    return f"10.128.{number + 1}.0/24"


def subnet6(number: int) -> str:
    return f"fd00:0:0:{number + 1}::/64"


def address6(host: NsHost) -> str:
    """A host's on the underlay."""
    return f"2001:db8::{host.address.rpartition('.')[2]}"


@dataclass(slots=True)
class Web:
    """Three nodes with a network, and the table that all of them have."""

    router: NsHost
    hosts: list[NsHost]
    nodes: list[NodeNetwork]
    table: Table

    async def container(self, number: int, name: str) -> Attachment:
        return await self.nodes[number].attach("n1", name)

    async def have(self, *services: Service, policies: tuple[Policy, ...] = ()) -> None:
        """Give every node the whole table."""
        self.table = Table(self.table.revision + 1, services=services, policies=policies)
        for number, node in enumerate(self.nodes):
            whole = self._for(number)
            await node.balance(whole, lambda whole=whole: whole)  # type: ignore[misc]

    async def change(self, *services: Service) -> None:
        """Tell every node what differs."""
        base = self.table.revision
        known = {service.key: service for service in self.table.services}
        known.update((service.key, service) for service in services)
        self.table = replace(self.table, revision=base + 1, services=tuple(known.values()))
        for number, node in enumerate(self.nodes):
            whole = self._for(number)
            difference = Table(base + 1, base, services=services)
            await node.balance(difference, lambda whole=whole: whole)  # type: ignore[misc]

    async def settle(self, number: int) -> None:
        """The pass that every node makes every few seconds."""
        await self.nodes[number].apply(self.config(number))
        unchanged = Table(self.table.revision, self.table.revision)
        await self.nodes[number].balance(unchanged, lambda: self._for(number))

    async def leave(self) -> None:
        """Have no network any more on any node."""
        nothing = Table(self.table.revision + 1, networks=(), policies=())
        for node in self.nodes:
            await node.balance(nothing, lambda: nothing)

    def config(self, number: int) -> NetworkConfig:
        return NetworkConfig(
            "n1",
            "default",
            7,
            CLUSTER,
            subnet(number),
            0,
            self.hosts[number].address,
            tuple(Peer(subnet(n), host.address, subnet6(n)) for n, host in enumerate(self.hosts)),
            subnet6(number),
            CLUSTER6,
        )

    def rules(self, number: int) -> str:
        """All of the balance that is in a host's kernel."""
        return self.hosts[number].shell("nft", "-a", "list", "table", "inet", "orc_balance")

    def kill_helpers(self) -> None:
        """On all nodes; the next request finds that out and starts another."""
        for node in self.nodes:
            assert node.helper_pid is not None
            os.kill(node.helper_pid, signal.SIGKILL)

    def _for(self, number: int) -> Table:
        others = [
            Node(IPv4Network(subnet(n)), IPv6Network(subnet6(n)), IPv4Address(host.address))
            for n, host in enumerate(self.hosts)
            if n != number
        ]
        network = Network(
            "n1",
            "orcbr7",
            IPv4Network(CLUSTER),
            "orcvx7",
            IPv6Network(CLUSTER6),
            tuple(others),
        )
        return replace(self.table, networks=(network,))


@pytest.fixture
async def web(hosts: list[NsHost]) -> AsyncIterator[Web]:
    router, *places = hosts
    for host, device in ((router, "under"), *((host, "uplink") for host in places)):
        address = f"{address6(host)}/64"
        host.shell("ip", "addr", "replace", address, "dev", device, "nodad")
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(NodeNetwork(h.state, h.run, command=h.helper))
            for h in places
        ]
        made = Web(router, places, nodes, Table(0))
        for number, node in enumerate(nodes):
            await node.apply(made.config(number))
        yield made
        await made.leave()
        for number, node in enumerate(nodes):
            await node.apply(made.config(number))
            await node.remove("n1")


def service(*ends: Endpoint, ports: tuple[Published, ...] = (), vip: str = VIP) -> Service:
    vips = (IPv4Address(vip), IPv6Address(VIP6)) if vip else (None, None)
    return Service("s1", "n1", *vips, ends, ports)


# -- VIPs ----------------------------------------------------------------------------------------


@KINDS
async def test_a_vip_leads_to_every_endpoint_in_turn(web: Web, kind: int) -> None:
    here = await web.container(0, "here")
    there = await web.container(1, "there")
    beside = await web.container(0, "beside")
    far = await web.container(2, "far")
    await web.have(service(*endpoints([here, there])))
    with serving({"here": here.netns, "there": there.netns}, 80, kind) as servers:
        for client in (beside, far):
            assert servers.spread(client.netns, VIP, 80, 4) == {"here": 2, "there": 2}


@FILTERED
@KINDS
async def test_the_client_is_seen_whoever_serves(web: Web, kind: int, filtered: str) -> None:
    web.hosts[0].shell("sysctl", "-qw", filtered)
    here = await web.container(0, "here")
    there = await web.container(1, "there")
    client = await web.container(0, "client")
    await web.have(service(*endpoints([here, there])))
    with serving({"here": here.netns, "there": there.netns}, 80, kind) as servers:
        seen = {servers.ask(client.netns, VIP, 80) for _ in range(2)}
    assert seen == {Answer("here", client.address), Answer("there", client.address)}


@FILTERED
@KINDS
async def test_a_container_reaches_itself_by_the_vip(web: Web, kind: int, filtered: str) -> None:
    web.hosts[0].shell("sysctl", "-qw", filtered)
    alone = await web.container(0, "alone")
    await web.have(service(*endpoints([alone])))
    with serving({"alone": alone.netns}, 80, kind) as servers:
        assert servers.ask(alone.netns, VIP, 80).server == "alone"


async def test_a_service_without_a_ready_endpoint_refuses_at_once(web: Web) -> None:
    client = await web.container(0, "client")
    drained = await web.container(0, "drained")
    await web.have(service(*endpoints([drained], ready=False)))
    with (
        serving({"drained": drained.netns}, 80),
        open_socket(client.netns, TCP) as sock,
        pytest.raises(ConnectionRefusedError),
    ):
        sock.connect((VIP, 80))
    with open_socket(client.netns, UDP) as sock:
        sock.connect((VIP, 53))
        sock.send(b"question")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(100)


async def test_a_drained_endpoint_keeps_its_connections_and_gets_no_new(web: Web) -> None:
    one = await web.container(0, "one")
    two = await web.container(1, "two")
    client = await web.container(0, "client")
    await web.have(service(*endpoints([one, two])))
    with (
        serving({"one": one.netns, "two": two.netns}, 80) as servers,
        servers.connection(client.netns, VIP, 80) as first,
        servers.connection(client.netns, VIP, 80) as second,
    ):
        assert {first[2].server, second[2].server} == {"one", "two"}
        await web.change(service(*endpoints([one]), *endpoints([two], ready=False)))
        assert servers.spread(client.netns, VIP, 80, 3) == {"one": 3}
        assert echoes(*first[:2])
        assert echoes(*second[:2])


async def test_a_connection_to_an_endpoint_that_is_gone_ends_at_once(web: Web) -> None:
    one = await web.container(0, "one")
    two = await web.container(1, "two")
    client = await web.container(0, "client")
    await web.have(service(*endpoints([two])))
    with (
        serving({"one": one.netns, "two": two.netns}, 80) as servers,
        servers.connection(client.netns, VIP, 80) as (sock, _, answer),
    ):
        assert answer.server == "two"
        await web.change(service(*endpoints([one])))
        sock.sendall(b"ping")
        with pytest.raises(ConnectionResetError):
            sock.recv(100)


async def test_a_udp_client_that_never_stops_follows_the_endpoints(web: Web) -> None:
    one = await web.container(0, "one")
    two = await web.container(1, "two")
    client = await web.container(0, "client")
    await web.have()
    with (
        serving({"one": one.netns, "two": two.netns}, 53, UDP) as servers,
        open_socket(client.netns, UDP) as sock,
    ):
        sock.sendto(b"too early", (VIP, 53))
        await web.have(service(*endpoints([one])))
        assert servers.ask_by(sock, VIP, 53).server == "one"
        await web.change(service(*endpoints([one], ready=False), *endpoints([two])))
        assert servers.ask_by(sock, VIP, 53).server == "two"
        await web.change(service(*endpoints([one])))
        assert servers.ask_by(sock, VIP, 53).server == "one"


# -- published ports -----------------------------------------------------------------------------


def published(kind: int) -> tuple[Published, ...]:
    return (Published("tcp" if kind == TCP else "udp", 8080, 80),)


@pytest.mark.parametrize("strict", ["0", "1"], ids=["rp_filter off", "rp_filter strict"])
@KINDS
async def test_every_node_answers_and_the_client_is_seen(web: Web, kind: int, strict: str) -> None:
    for host in web.hosts:
        host.shell("sysctl", "-qw", f"net.ipv4.conf.all.rp_filter={strict}")
    one = await web.container(0, "one")
    await web.have(service(*endpoints([one]), ports=published(kind)))
    with serving({"one": one.netns}, 80, kind) as servers:
        for host in web.hosts:
            answer = servers.ask(web.router.netns, host.address, 8080)
            assert answer == Answer("one", web.router.address)
            other = web.hosts[2] if host is not web.hosts[2] else web.hosts[1]
            answer = servers.ask(other.netns, host.address, 8080)
            assert answer == Answer("one", other.address)
    for host in web.hosts:
        host.shell("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0")


@FILTERED
@KINDS
async def test_a_published_port_from_everywhere(web: Web, kind: int, filtered: str) -> None:
    for host in web.hosts:
        host.shell("sysctl", "-qw", filtered)
    one = await web.container(0, "one")
    beside = await web.container(0, "beside")
    far = await web.container(1, "far")
    await web.have(service(*endpoints([one]), ports=published(kind)))
    with serving({"one": one.netns}, 80, kind) as servers:
        for client in (one.netns, beside.netns, far.netns, *(host.netns for host in web.hosts)):
            for host in web.hosts:
                assert servers.ask(client, host.address, 8080).server == "one"
        for host in web.hosts:
            assert servers.ask(host.netns, "127.0.0.1", 8080).server == "one"
        answer = servers.ask(beside.netns, web.hosts[0].address, 8080)
        assert answer == Answer("one", beside.address)


@KINDS
async def test_a_published_port_is_balanced_over_the_nodes(web: Web, kind: int) -> None:
    one = await web.container(0, "one")
    two = await web.container(1, "two")
    await web.have(service(*endpoints([one, two]), ports=published(kind)))
    with serving({"one": one.netns, "two": two.netns}, 80, kind) as servers:
        for host in web.hosts:
            found = servers.spread(web.router.netns, host.address, 8080, 4)
            assert found == {"one": 2, "two": 2}


async def test_a_port_is_published_no_more(web: Web) -> None:
    one = await web.container(0, "one")
    await web.have(service(*endpoints([one]), ports=published(TCP)))
    await web.change(service(*endpoints([one])))
    with serving({"one": one.netns}, 80) as servers, pytest.raises(ConnectionRefusedError):
        servers.ask(web.router.netns, web.hosts[1].address, 8080)


async def test_a_published_port_leaves_the_gateway_alone(web: Web) -> None:
    """The name server is there: a service that publishes its port takes nobody's names away."""
    one = await web.container(0, "one")
    client = await web.container(0, "client")
    await web.have(service(*endpoints([one]), ports=(Published("udp", 53, 53),)))
    names = {"names": web.hosts[0].netns, "one": one.netns}
    with serving(names, 53, UDP) as servers:
        assert servers.ask(client.netns, client.gateway, 53).server == "names"
        assert servers.ask(client.netns, web.hosts[0].address, 53).server == "one"


async def test_a_udp_client_was_there_before_the_port(web: Web) -> None:
    one = await web.container(0, "one")
    await web.have()
    with (
        serving({"one": one.netns}, 80, UDP) as servers,
        open_socket(web.router.netns, UDP) as sock,
    ):
        sock.sendto(b"too early", (web.hosts[1].address, 8080))
        await web.have(service(*endpoints([one]), ports=published(UDP)))
        assert servers.ask_by(sock, web.hosts[1].address, 8080).server == "one"


# -- IPv6 ----------------------------------------------------------------------------------------


@KINDS
async def test_a_vip_in_ipv6(web: Web, kind: int) -> None:
    here = await web.container(0, "here")
    there = await web.container(1, "there")
    client = await web.container(0, "client")
    await web.have(service(*endpoints([here, there])))
    netns = {"here": here.netns, "there": there.netns}
    with serving(netns, 80, kind, "::") as servers:
        seen = {servers.ask(client.netns, VIP6, 80) for _ in range(2)}
        assert seen == {Answer("here", client.address6), Answer("there", client.address6)}
        itself = {servers.ask(there.netns, VIP6, 80).server for _ in range(2)}
        assert itself == {"here", "there"}


@KINDS
async def test_a_published_port_in_ipv6(web: Web, kind: int) -> None:
    one = await web.container(0, "one")
    far = await web.container(1, "far")
    await web.have(service(*endpoints([one]), ports=published(kind)))
    with serving({"one": one.netns}, 80, kind, "::") as servers:
        for host in web.hosts:
            answer = servers.ask(web.router.netns, address6(host), 8080)
            assert answer == Answer("one", address6(web.router))
            assert servers.ask(host.netns, address6(host), 8080).server == "one"
            assert servers.ask(far.netns, address6(host), 8080).server == "one"


async def test_connections_are_counted(web: Web) -> None:
    one = await web.container(0, "one")
    client = await web.container(0, "client")
    await web.have(service(*endpoints([one])))
    with serving({"one": one.netns}, 80) as servers:
        before = await web.nodes[0].connections()
        with servers.connection(client.netns, VIP, 80):
            after = await web.nodes[0].connections()
    assert before.count < after.count < after.limit
    assert not after.full


# -- what goes on meanwhile ----------------------------------------------------------------------


async def test_changes_and_a_new_helper_disturb_no_connection(web: Web) -> None:
    one = await web.container(0, "one")
    two = await web.container(1, "two")
    client = await web.container(0, "client")
    serves = service(*endpoints([one, two]), ports=published(TCP))
    await web.have(serves)
    with (
        serving({"one": one.netns, "two": two.netns}, 80) as servers,
        servers.connection(client.netns, VIP, 80) as inside,
        servers.connection(web.router.netns, web.hosts[2].address, 8080) as outside,
    ):
        for number in range(6):
            if number % 3 == 0:
                web.kill_helpers()
                # Nobody is there, and it goes on.
                assert len(servers.spread(client.netns, VIP, 80, 4)) == 2
            await web.change(replace(serves, endpoints=serves.endpoints[: 1 + number % 2]))
            await web.change(serves)
            assert echoes(*inside[:2])
            assert echoes(*outside[:2])


async def test_the_table_is_replaced_in_one_step(web: Web) -> None:
    """While everything is replaced, again and again, nobody is refused."""
    one = await web.container(1, "one")
    client = await web.container(0, "client")
    await web.have(service(*endpoints([one]), ports=published(TCP)))
    stop = threading.Event()
    with serving({"one": one.netns}, 80) as servers:

        def ask() -> int:
            count = 0
            while not stop.is_set():
                servers.ask(client.netns, VIP, 80)
                servers.ask(web.router.netns, web.hosts[0].address, 8080)
                count += 1
            return count

        asking = asyncio.create_task(asyncio.to_thread(ask))
        for _ in range(3):
            web.kill_helpers()
            await web.change()
        stop.set()
        assert await asking > 0


# -- other hands ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        "nft delete table inet orc_balance",
        "nft delete table netdev orc_balance",
        "nft flush chain inet orc_balance prerouting",
        "nft flush map inet orc_balance ports",
        "nft flush ruleset",
        "ip rule del priority 20338",
        "ip route flush table all proto static",
        "ip link del orcvx7",
    ],
)
async def test_a_pass_mends_what_a_hand_has_broken(web: Web, damage: str) -> None:
    far = await web.container(1, "far")
    client = await web.container(0, "client")
    await web.have(service(*endpoints([far]), ports=published(TCP)))
    with serving({"far": far.netns}, 80) as servers:
        for number in (0, 1):
            web.hosts[number].shell(*damage.split())
            await web.settle(number)
        assert servers.ask(client.netns, VIP, 80).server == "far"
        answer = servers.ask(web.router.netns, web.hosts[0].address, 8080)
        assert answer == Answer("far", web.router.address)


async def test_a_pass_changes_nothing_that_is_as_it_should_be(web: Web) -> None:
    far = await web.container(1, "far")
    await web.have(service(*endpoints([far]), ports=published(TCP)))
    with serving({"far": far.netns}, 80) as servers:
        servers.ask(web.router.netns, web.hosts[0].address, 8080)
        before = web.rules(0)
        assert "numgen" in before
        await web.settle(0)
        assert web.rules(0) == before, "not made anew, or the kernel would count from 0 again"


async def test_the_last_word_of_a_network_leaves_nothing(web: Web) -> None:
    far = await web.container(1, "far")
    await web.have(service(*endpoints([far]), ports=published(TCP)))
    await web.leave()
    for host in web.hosts:
        assert "orc_balance" not in host.shell("nft", "list", "ruleset")
        assert "20338" not in host.shell("ip", "rule")
        assert "20338" not in host.shell("ip", "-6", "rule")


# -- policies ------------------------------------------------------------------------------------


async def test_policies_hold_on_one_host_and_on_two(web: Web) -> None:
    db = await web.container(0, "db")
    front = await web.container(0, "front")
    far = await web.container(1, "far")
    stranger = await web.container(0, "stranger")
    stranger_far = await web.container(2, "stranger-far")
    services = (
        named("db", *endpoints([db]), vip=VIP),
        named("front", *endpoints([front, far])),
    )
    deny = Policy("p1", "n1", False, "db")
    allow = Policy("p2", "n1", True, "db", ("front",), (("tcp", 80),))
    await web.have(*services)
    with serving({"db": db.netns}, 80) as servers, serving({"db": db.netns}, 81) as others:
        for client in (front, far, stranger, stranger_far):
            assert servers.ask(client.netns, VIP, 80).server == "db"
        with servers.connection(stranger.netns, VIP, 80) as (sock, _, _):
            await web.have(*services, policies=(deny, allow))
            sock.sendall(b"a connection that is denied ends")
            with pytest.raises(ConnectionResetError):
                sock.recv(100)
        for client in (front, far):
            assert servers.ask(client.netns, VIP, 80) == Answer("db", client.address)
            with pytest.raises(ConnectionRefusedError):
                others.ask(client.netns, db.address, 81)
        for client in (stranger, stranger_far):
            for address in (VIP, db.address):
                with pytest.raises(ConnectionRefusedError):
                    servers.ask(client.netns, address, 80)
        # One that joins is allowed at once, and one that left is not any more.
        await web.change(named("front", *endpoints([front, stranger])))
        assert servers.ask(stranger.netns, VIP, 80).server == "db"
        with pytest.raises(ConnectionRefusedError):
            servers.ask(far.netns, VIP, 80)
        await web.have(*services)
        assert servers.ask(stranger_far.netns, VIP, 80).server == "db"


async def test_a_published_port_is_for_all_whatever_is_denied_inside(web: Web) -> None:
    db = await web.container(0, "db")
    inside = await web.container(1, "inside")
    serves = replace(named("db", *endpoints([db]), vip=VIP), ports=published(TCP))
    await web.have(serves, policies=(Policy("p1", "n1", False, "db"),))
    with serving({"db": db.netns}, 80) as servers:
        for host in web.hosts:
            assert servers.ask(web.router.netns, host.address, 8080).server == "db"
        with pytest.raises(ConnectionRefusedError):
            servers.ask(inside.netns, VIP, 80)


def named(name: str, *ends: Endpoint, vip: str = "") -> Service:
    return Service(name, "n1", IPv4Address(vip) if vip else None, endpoints=ends, name=name)
