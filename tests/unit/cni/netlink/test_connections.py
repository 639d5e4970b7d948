# SPDX-License-Identifier: Apache-2.0
"""Connections, as the kernel tracks them."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest
from nshosts import NsHost, within

from orchestrator.cni.netlink.conntrack import Connection, connections, count_bytes, counts_bytes

pytestmark = pytest.mark.root

TRACKED = """
table inet seen {
    chain asked { type nat hook output priority -100; tcp dport 80 redirect to :8080; }
}
"""


@pytest.fixture
def tracking(host: NsHost) -> NsHost:
    """A host that tracks connections, counts their bytes, and redirects port 80 to 8080."""
    host.shell("ip", "link", "set", "lo", "up")
    host.shell("nft", "-f", "-", stdin=TRACKED)
    assert not within(host.netns, counts_bytes)
    within(host.netns, lambda: count_bytes(True))
    assert within(host.netns, counts_bytes)
    return host


@contextmanager
def connection(host: NsHost, address: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection on which the client has sent 5,000 bytes: client and server."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener, client = within(host.netns, lambda: (socket.socket(family), socket.socket(family)))
    with listener, client:
        for each in (listener, client):
            each.settimeout(3.0)
        listener.bind((address, 8080))
        listener.listen()
        client.connect((address, 80))
        server, _ = listener.accept()
        with server:
            client.sendall(b"x" * 5000)
            left = 5000
            while left:
                left -= len(server.recv(left))
            yield client, server


def found_connections(host: NsHost, addresses: Collection[str]) -> list[Connection]:
    packed = {ip_address(address).packed for address in addresses}
    return within(host.netns, lambda: connections(packed))


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_connection_has_the_server_that_replies(tracking: NsHost, address: str) -> None:
    assert found_connections(tracking, [address]) == []
    with connection(tracking, address) as (client, server):
        (found,) = found_connections(tracking, [address])
        packed = ip_address(address).packed
        assert (found.client, found.server, found.port) == (packed, packed, 8080)
        assert found.protocol == socket.IPPROTO_TCP
        assert found.open
        assert 5000 < found.sent < 7000
        assert 0 < found.received < 2000
        server.sendall(b"y" * 9000)
        left = 9000
        while left:
            left -= len(client.recv(left))
        (later,) = found_connections(tracking, [address])
        assert later.id == found.id
        assert later.received - found.received >= 9000
    (over,) = found_connections(tracking, [address])
    assert (over.id, over.open) == (found.id, False)


def test_connections_of_other_addresses_are_left_out(tracking: NsHost) -> None:
    with connection(tracking, "127.0.0.1"):
        assert found_connections(tracking, ["10.9.9.9"]) == []
