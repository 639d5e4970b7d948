# SPDX-License-Identifier: Apache-2.0
"""Who asks whom, as the kernel tracks it."""

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
    """A host that tracks connections, counts their bytes, and answers on 8080 who asks for 80."""
    host.shell("ip", "link", "set", "lo", "up")
    host.shell("nft", "-f", "-", stdin=TRACKED)
    assert not within(host.netns, counts_bytes)
    within(host.netns, lambda: count_bytes(True))
    assert within(host.netns, counts_bytes)
    return host


@contextmanager
def said(host: NsHost, address: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection on which the client has said 5,000 bytes: client and server."""
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


def seen(host: NsHost, addresses: Collection[str]) -> list[Connection]:
    packed = {ip_address(address).packed for address in addresses}
    return within(host.netns, lambda: connections(packed))


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_connection_is_known_by_who_answers(tracking: NsHost, address: str) -> None:
    assert seen(tracking, [address]) == []
    with said(tracking, address) as (client, server):
        (found,) = seen(tracking, [address])
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
        (later,) = seen(tracking, [address])
        assert later.id == found.id
        assert later.received - found.received >= 9000
    (over,) = seen(tracking, [address])
    assert (over.id, over.open) == (found.id, False)


def test_what_others_say_is_not_told(tracking: NsHost) -> None:
    with said(tracking, "127.0.0.1"):
        assert seen(tracking, ["10.9.9.9"]) == []
