# SPDX-License-Identifier: Apache-2.0
"""Packets to VIPs between containers on several hosts, while the table changes and is repaired."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import pytest
from balancekit import TCP, UDP, Answer, echoes, endpoints, open_socket, serving
from netkit import reaches
from webkit import FILTERED, KINDS, VIP, VIP6, Web, published, service

pytestmark = pytest.mark.root


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
async def test_the_client_address_is_kept_on_every_node(web: Web, kind: int, filtered: str) -> None:
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


@FILTERED
async def test_a_service_without_a_ready_endpoint_refuses_at_once(web: Web, filtered: str) -> None:
    web.hosts[0].shell("sysctl", "-qw", filtered)
    client = await web.container(0, "client")
    drained = await web.container(0, "drained")
    # The kernel must not have spent on redirects what it may tell a host of errors.
    assert reaches(client.netns, drained.netns, drained.address)
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


async def test_a_connection_to_a_removed_endpoint_is_reset(web: Web) -> None:
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
                # There is no endpoint, and the client continues.
                assert len(servers.spread(client.netns, VIP, 80, 4)) == 2
            await web.change(replace(serves, endpoints=serves.endpoints[: 1 + number % 2]))
            await web.change(serves)
            assert echoes(*inside[:2])
            assert echoes(*outside[:2])


@pytest.mark.parametrize("anew", [False, True], ids=["changed", "replaced"])
async def test_a_vip_that_is_used_too_early_works_soon(web: Web, anew: bool) -> None:
    """Where names were quicker than rules, or rules were away: the client's next try is led on."""
    one = await web.container(1, "one")
    client = await web.container(0, "client")
    await web.have()
    if anew:
        web.kill_helpers()
    with serving({"one": one.netns}, 80) as servers, open_socket(client.netns, TCP) as sock:
        sock.settimeout(60)  # its kernel tries again after 1, 3, 7, … seconds
        asking = asyncio.create_task(asyncio.to_thread(servers.ask_by, sock, VIP, 80))
        while VIP not in web.hosts[0].shell("cat", "/proc/net/nf_conntrack"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await web.have(service(*endpoints([one])))
        assert (await asking).server == "one"


async def test_the_table_is_replaced_in_one_step(web: Web) -> None:
    """While all endpoints are replaced repeatedly, no connection is refused."""
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
async def test_a_pass_repairs_manual_changes(web: Web, damage: str) -> None:
    far = await web.container(1, "far")
    client = await web.container(0, "client")
    waiting = endpoints([client], ready=False)
    await web.have(service(*endpoints([far]), *waiting, ports=published(TCP)))
    with serving({"far": far.netns}, 80) as servers:
        for number in (0, 1):
            web.hosts[number].shell(*damage.split())
            await web.settle(number)
        assert servers.ask(client.netns, VIP, 80).server == "far"
        answer = servers.ask(web.router.netns, web.hosts[0].address, 8080)
        assert answer == Answer("far", web.router.address)


async def test_a_pass_changes_nothing_without_drift(web: Web) -> None:
    far = await web.container(1, "far")
    await web.have(service(*endpoints([far]), ports=published(TCP)))
    with serving({"far": far.netns}, 80) as servers:
        servers.ask(web.router.netns, web.hosts[0].address, 8080)
        before = web.rules(0)
        assert "numgen" in before
        await web.settle(0)
        assert web.rules(0) == before, "not recreated, or the kernel would count from 0 again"


async def test_removing_a_network_leaves_no_state(web: Web) -> None:
    far = await web.container(1, "far")
    await web.have(service(*endpoints([far]), ports=published(TCP)))
    await web.leave()
    for host in web.hosts:
        assert "orc_balance" not in host.shell("nft", "list", "ruleset")
        assert "20338" not in host.shell("ip", "rule")
        assert "20338" not in host.shell("ip", "-6", "rule")
