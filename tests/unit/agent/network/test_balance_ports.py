# SPDX-License-Identifier: Apache-2.0
"""Packets to published ports, from everywhere, and what policies let through."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import replace

import pytest
from balancekit import TCP, UDP, Answer, endpoints, open_socket, serving
from webkit import FILTERED, KINDS, VIP, Web, address6, named, published, service

from orchestrator.cni.balancing.endpointtable import Policy, Published

pytestmark = pytest.mark.root


# -- published ports -----------------------------------------------------------------------------


@pytest.mark.parametrize("strict", ["0", "1"], ids=["rp_filter off", "rp_filter strict"])
@KINDS
async def test_every_node_serves_the_port_and_keeps_the_client_address(
    web: Web, kind: int, strict: str
) -> None:
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
async def test_a_client_asks_several_nodes_from_one_port(web: Web, kind: int) -> None:
    """To the container these are connections with the same ends, unless a node makes one other."""
    one = await web.container(0, "one")
    await web.have(service(*endpoints([one]), ports=published(kind)))
    with serving({"one": one.netns}, 80, kind) as servers, ExitStack() as stack:
        for host in web.hosts:
            sock = stack.enter_context(open_socket(web.router.netns, kind))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("0.0.0.0", 40001))
            if kind == UDP:  # what is sent goes by the socket that was connected
                sock.connect((host.address, 8080))
            answer = servers.ask_by(sock, host.address, 8080)
            assert answer == Answer("one", web.router.address)


@KINDS
async def test_a_published_port_is_balanced_over_the_nodes(web: Web, kind: int) -> None:
    one = await web.container(0, "one")
    two = await web.container(1, "two")
    await web.have(service(*endpoints([one, two]), ports=published(kind)))
    with serving({"one": one.netns, "two": two.netns}, 80, kind) as servers:
        for host in web.hosts:
            found = servers.spread(web.router.netns, host.address, 8080, 4)
            assert found == {"one": 2, "two": 2}


async def test_a_port_is_unpublished(web: Web) -> None:
    one = await web.container(0, "one")
    await web.have(service(*endpoints([one]), ports=published(TCP)))
    await web.change(service(*endpoints([one])))
    with serving({"one": one.netns}, 80) as servers, pytest.raises(ConnectionRefusedError):
        servers.ask(web.router.netns, web.hosts[1].address, 8080)


async def test_a_published_port_leaves_the_gateway_alone(web: Web) -> None:
    """A service that publishes the name server's port does not block name resolution."""
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


# -- policies ------------------------------------------------------------------------------------


async def test_policies_hold_on_one_host_and_on_two(web: Web) -> None:
    for host in web.hosts:
        host.shell("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0")
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


async def test_a_published_port_is_open_despite_policies(web: Web) -> None:
    for host in web.hosts:
        host.shell("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0")
    db = await web.container(0, "db")
    inside = await web.container(1, "inside")
    serves = replace(named("db", *endpoints([db]), vip=VIP), ports=published(TCP))
    await web.have(serves, policies=(Policy("p1", "n1", False, "db"),))
    with serving({"db": db.netns}, 80) as servers:
        for host in web.hosts:
            assert servers.ask(web.router.netns, host.address, 8080).server == "db"
        with pytest.raises(ConnectionRefusedError):
            servers.ask(inside.netns, VIP, 80)


async def test_only_a_node_with_a_published_task_has_the_rules_of_the_way_back(web: Web) -> None:
    """A routing rule makes each packet that the host forwards slower."""
    far = await web.container(1, "far")
    serves = service(*endpoints([far]), ports=published(TCP))
    await web.have(serves)
    ways = [host.shell("ip", "rule").count("20338") for host in web.hosts]
    assert ways == [0, 1, 0]
    await web.change(replace(serves, ports=()))
    assert "20338" not in web.hosts[1].shell("ip", "rule")
    assert "chain origin" not in web.rules(1)
    await web.change(serves)
    with serving({"far": far.netns}, 80) as servers:
        answer = servers.ask(web.router.netns, web.hosts[0].address, 8080)
    assert answer == Answer("far", web.router.address)
