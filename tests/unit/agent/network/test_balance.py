"""Packets to VIPs and published ports, between containers and clients on several hosts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from balancekit import TCP, UDP, Answer, echoes, endpoints, open_socket, serving
from nshosts import NsHost

from orchestrator.agent.network import Attachment, NetworkConfig, NodeNetwork, Peer
from orchestrator.cni.endpoints import Endpoint, Network, Node, Published, Service, Table

pytestmark = pytest.mark.root

CLUSTER = "10.128.0.0/14"
VIP = "10.131.255.9"
KINDS = pytest.mark.parametrize("kind", [TCP, UDP], ids=["tcp", "udp"])


def subnet(number: int) -> str:
    return f"10.128.{number + 1}.0/24"


@dataclass(slots=True)
class Web:
    """Three nodes with a network, and the table that all of them have."""

    router: NsHost
    hosts: list[NsHost]
    nodes: list[NodeNetwork]
    table: Table

    async def container(self, number: int, name: str) -> Attachment:
        return await self.nodes[number].attach(name)

    async def have(self, *services: Service) -> None:
        """Give every node the whole table."""
        self.table = replace(self.table, revision=self.table.revision + 1, services=services)
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
            difference = Table(base + 1, base, services=self._seen_from(number, services))
            await node.balance(difference, lambda whole=whole: whole)  # type: ignore[misc]

    def _for(self, number: int) -> Table:
        others = [Node(IPv4Network(subnet(n))) for n in range(len(self.hosts)) if n != number]
        network = Network("n1", "orcbr7", IPv4Network(CLUSTER), "orcvx7", nodes=tuple(others))
        return replace(
            self.table,
            services=self._seen_from(number, self.table.services),
            networks=(network,),
            policies=(),
        )

    @staticmethod
    def _seen_from(number: int, services: tuple[Service, ...]) -> tuple[Service, ...]:
        """As the node's own table has them: its endpoints are local."""
        home = IPv4Network(subnet(number))
        return tuple(
            replace(
                one,
                endpoints=tuple(replace(end, local=end.address in home) for end in one.endpoints),
            )
            for one in services
        )


@pytest.fixture
async def web(hosts: list[NsHost]) -> AsyncIterator[Web]:
    router, *nodes = hosts
    peers = tuple(Peer(subnet(number), host.address) for number, host in enumerate(nodes))
    async with AsyncExitStack() as stack:
        networks = []
        for number, host in enumerate(nodes):
            node = NodeNetwork(host.state, host.run, command=host.helper)
            network = await stack.enter_async_context(node)
            await network.apply(
                NetworkConfig("n1", "default", 7, CLUSTER, subnet(number), 0, host.address, peers)
            )
            networks.append(network)
        yield Web(router, nodes, networks, Table(0))
        for network in networks:
            await network.balance(Table(1 << 40, networks=(), policies=()), lambda: Table(1 << 40))
            await network.remove()


def service(*ends: Endpoint, ports: tuple[Published, ...] = (), vip: str = VIP) -> Service:
    return Service("s1", "n1", IPv4Address(vip) if vip else None, None, ends, ports)


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


@KINDS
async def test_the_client_is_seen_whoever_serves(web: Web, kind: int) -> None:
    here = await web.container(0, "here")
    there = await web.container(1, "there")
    client = await web.container(0, "client")
    await web.have(service(*endpoints([here, there])))
    with serving({"here": here.netns, "there": there.netns}, 80, kind) as servers:
        seen = {servers.ask(client.netns, VIP, 80) for _ in range(2)}
    assert seen == {Answer("here", client.address), Answer("there", client.address)}


@KINDS
async def test_a_container_reaches_itself_by_the_vip(web: Web, kind: int) -> None:
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


async def test_a_udp_client_that_never_stops_follows_the_endpoints(web: Web) -> None:
    one = await web.container(0, "one")
    two = await web.container(1, "two")
    client = await web.container(0, "client")
    await web.have(service(*endpoints([one])))
    with (
        serving({"one": one.netns, "two": two.netns}, 53, UDP) as servers,
        open_socket(client.netns, UDP) as sock,
    ):
        assert servers.ask_by(sock, VIP, 53).server == "one"
        await web.change(service(*endpoints([one], ready=False), *endpoints([two])))
        assert servers.ask_by(sock, VIP, 53).server == "two"
        await web.change(service(*endpoints([one])))
        assert servers.ask_by(sock, VIP, 53).server == "one"


# -- published ports -----------------------------------------------------------------------------


@KINDS
async def test_every_node_answers_and_the_client_is_seen(web: Web, kind: int) -> None:
    one = await web.container(0, "one")
    protocol = "tcp" if kind == TCP else "udp"
    await web.have(service(*endpoints([one]), ports=(Published(protocol, 8080, 80),)))
    with serving({"one": one.netns}, 80, kind) as servers:
        for host in web.hosts:
            answer = servers.ask(web.router.netns, host.address, 8080)
            assert answer == Answer("one", web.router.address)
