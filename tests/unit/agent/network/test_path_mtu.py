# SPDX-License-Identifier: Apache-2.0
"""The MTU of paths: found by packets, and what networks make of it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netkit import Node, network, shell
from nshosts import NsHost, socket_in, within

from orchestrator.agent.diagnostics.echo import Echo, VxlanEcho, ladder, path_mtu
from orchestrator.agent.diagnostics.path_mtu import PathMtu, PathMtus, after
from orchestrator.agent.network.network_types import NetworkConfig

ROUNDS = [
    # (found in each round, what is known at last)
    ((), None),
    ((0,), None),
    ((1500,), 1500),
    ((1500, 0, 0), 1500),
    ((1500, 1400), 1500),
    ((1500, 1400, 1400), 1400),
    ((1500, 1400, 1300), 1400),
    ((1500, 1400, 1500, 1400, 1500), 1500),
    ((1400, 1500), 1400),
    ((1400, 1500, 1500), 1500),
    ((1400, 1500, 9000), 1500),
    ((1400, 1500, 1400, 1500, 1400), 1400),
    ((1400, 1500, 1300, 1300), 1300),
    ((1500, 1400, 0, 1400), 1400),
]


@pytest.mark.parametrize(("found", "size"), ROUNDS)
def test_a_path_mtu_changes_when_two_rounds_agree(found: tuple[int, ...], size: int | None) -> None:
    known: PathMtu | None = None
    for each in found:
        known = after(known, each)
    assert (known.size if known else None) == size


@given(st.integers(68, 65000), st.integers(2, 65000))
def test_probed_sizes_are_between_one_that_fits_and_one_that_does_not(fits: int, span: int) -> None:
    sizes = ladder(fits, fits + span)
    assert sizes == sorted(set(sizes))
    assert fits < sizes[0]
    assert sizes[-1] < fits + span
    assert max(b - a for a, b in pairwise([fits, *sizes, fits + span])) <= max(1, span / 8)


@contextmanager
def echo_of(host: NsHost, config: NetworkConfig | None = None) -> Iterator[Echo]:
    """An echo of a host, whose sockets are opened in its namespace; through a network's tunnel."""
    echo = Echo(host.address) if config is None else VxlanEcho(config)
    within(host.netns, echo.__enter__)
    try:
        yield echo
    finally:
        echo.__exit__(None, None, None)


@contextmanager
def narrowed(router: NsHost, port: str, mtu: int) -> Iterator[None]:
    """The switch drops larger packets to a host, without an ICMP error."""
    router.shell("ip", "link", "set", port, "mtu", str(mtu))
    try:
        yield
    finally:
        router.shell("ip", "link", "set", port, "mtu", "1500")


@pytest.mark.root
async def test_a_path_mtu_is_measured_exactly(hosts: list[NsHost]) -> None:
    router, one, two, three = hosts
    with echo_of(one) as echo:
        assert await path_mtu(echo, two.address) == 1500
        for mtu in (1499, 1400, 576):
            with narrowed(router, "h2", mtu):
                assert await path_mtu(echo, two.address) == mtu
                assert await path_mtu(echo, three.address) == 1500
        assert await path_mtu(echo, "192.0.2.99") == 0
        # The MTU of the node's route bounds it: the tunnel follows that, too.
        one.shell("ip", "route", "add", two.address, "dev", "uplink", "mtu", "1450")
        try:
            assert await path_mtu(echo, two.address) == 1450
        finally:
            one.shell("ip", "route", "del", two.address)


@pytest.mark.root
async def test_a_path_mtu_is_measured_through_the_tunnel_if_pings_are_dropped(
    nodes: list[Node], hosts: list[NsHost]
) -> None:
    one, two = nodes
    config = await one.apply("a")
    await two.apply("a")
    two.host.shell(
        "nft",
        "add table inet t; add chain inet t i { type filter hook input priority 0; }; "
        "add rule inet t i iifname uplink meta l4proto icmp drop",
    )
    try:
        with echo_of(one.host) as plain, echo_of(one.host, config) as echo:
            assert await path_mtu(plain, two.host.address) == 0
            assert await path_mtu(echo, two.host.address) == 1500
            for mtu in (1499, 1400, 600):
                with narrowed(hosts[0], "h2", mtu):
                    assert await path_mtu(echo, two.host.address) == mtu
            two.host.shell("nft", "add rule inet t i udp dport 4789 drop")
            assert await path_mtu(echo, two.host.address) == 0
    finally:
        two.host.shell("nft", "delete table inet t")


@pytest.mark.root
async def test_the_smallest_path_mtu_is_reported(hosts: list[NsHost]) -> None:
    router, one, two, three = hosts
    peers = {two.address, three.address}
    told: list[int] = []
    paths = PathMtus(one.address, lambda: peers, lambda: None, lambda: told.append(paths.least))
    with echo_of(one) as echo:
        await paths.measure(echo, two.address)
        with narrowed(router, "h3", 1400):
            # Less counts at once: it is measured again.
            await paths.measure(echo, three.address)
            await paths.measure(echo, two.address)
        await paths.measure(echo, three.address)
        assert told == [1500, 1400]
        await paths.measure(echo, three.address)
        assert told == [1500, 1400, 1500]
        with narrowed(router, "h3", 1400):
            await paths.measure(echo, three.address)
        peers.remove(three.address)
        await paths.measure(echo, two.address)
    assert told == [1500, 1400, 1500, 1400, 1500]


@pytest.mark.root
async def test_a_new_node_is_measured_immediately_and_a_removed_one_forgotten() -> None:
    peers: set[str] = set()
    told: asyncio.Queue[int] = asyncio.Queue()
    paths = PathMtus("127.0.0.1", lambda: peers, lambda: None, lambda: told.put_nowait(paths.least))
    running = asyncio.create_task(paths.run())
    try:
        peers.add("127.0.0.1")
        async with asyncio.timeout(60):
            assert await told.get() == 65535  # what IPv4 can say
            peers.clear()
            assert await told.get() == 0
            peers.add("127.0.0.2")
            assert await told.get() == 65535
    finally:
        running.cancel()


def mtus(host: NsHost, *names: str) -> list[int]:
    return [link["mtu"] for name in names for link in host.ip("link", "show", name)]


@pytest.mark.root
async def test_a_network_follows_the_path_mtu_while_its_containers_continue(
    nodes: list[Node], hosts: list[NsHost]
) -> None:
    one, two = nodes
    config = await one.apply("a")
    await two.apply("a")
    old = await one.network.attach("a", "old")
    other = await two.network.attach("a", "other")
    with narrowed(hosts[0], "h2", 1400), narrowed(hosts[0], "h1", 1400):
        for node in nodes:
            await node.apply("a", path_mtu=1400)
        assert mtus(one.host, "orcbr1", "orcvx1") == [1350, 1350]
        new = await one.network.attach("a", "new")
        assert "mtu 1350" in shell(new.netns, "ip", "link", "show", "eth0")
        # One that runs keeps its interface, and its packets get there: TCP's and fragments.
        assert "mtu 1450" in shell(old.netns, "ip", "link", "show", "eth0")
        assert await asyncio.to_thread(sent, old.netns, other.netns, other.address) == 300_000
        assert await asyncio.to_thread(sent, other.netns, old.netns, old.address) == 300_000
        assert datagram(old.netns, other.netns, other.address, 1400) == 1400
    # The user's MTU takes precedence.
    await one.network.apply(replace(config, mtu=1440, path_mtu=1400))
    assert mtus(one.host, "orcbr1", "orcvx1") == [1440, 1440]
    # Nothing is known (any more), or more than the interface takes.
    for path in (0, 9000):
        await one.apply("a", path_mtu=path)
        assert mtus(one.host, "orcbr1", "orcvx1") == [1450, 1450]
    # IPv6 is not possible below its least.
    await one.apply("a", path_mtu=1290)
    assert mtus(one.host, "orcbr1", "orcvx1") == [1280, 1280]
    await one.network.apply(replace(network(one.host, one.number, "a"), subnet6="", path_mtu=1290))
    assert mtus(one.host, "orcbr1", "orcvx1") == [1240, 1240]


def sent(client: str, server: str, address: str, size: int = 300_000) -> int:
    """How many of so many bytes arrive over TCP in a few seconds."""
    with socket_in(server) as listener, socket_in(client) as dialler:
        listener.bind(("", 7))
        listener.listen()
        dialler.connect((address, 7))
        accepted, _ = listener.accept()
        accepted.settimeout(5)

        def send() -> None:
            dialler.sendall(bytes(size))
            dialler.shutdown(socket.SHUT_WR)

        sender = Thread(target=send)
        sender.start()
        arrived = 0
        with accepted:
            while data := accepted.recv(1 << 16):
                arrived += len(data)
        sender.join()
        return arrived


def datagram(client: str, server: str, address: str, size: int) -> int:
    """How many bytes of a datagram arrive that may be fragmented."""
    with (
        socket_in(server, socket.SOCK_DGRAM) as receiver,
        socket_in(client, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("", 7))
        sender.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT
        sender.sendto(bytes(size), (address, 7))
        return len(receiver.recv(4000))


@pytest.mark.root
async def test_a_reply_in_time_counts_even_if_the_process_is_delayed() -> None:
    with Echo("127.0.0.1") as echo:
        # The kernel begins to note when packets come a moment after it was asked to.
        await echo.series("127.0.0.1", 5, 0.02)
        asked = asyncio.create_task(echo.ask("127.0.0.1", patience=0.1))
        await asyncio.sleep(0)
        time.sleep(0.2)  # noqa: ASYNC251 - the process is busy with something else
        found = await asked
    assert found is not None
    assert found < 0.1
