# SPDX-License-Identifier: Apache-2.0
"""A table of connections that is really full: of flows that the kernel may not give up."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from balancekit import TCP, echoes, endpoints, open_socket, serving
from nshosts import NsHost, within
from webkit import VIP, Web, service

from orchestrator.cni.netlink.conntrack import NETLINK_NETFILTER
from orchestrator.cni.netlink.netlinksocket import attribute

pytestmark = pytest.mark.root

NEW, DELETE = 1 << 8, 1 << 8 | 2  # include/uapi/linux/netfilter/nfnetlink_conntrack.h
ORIGINAL, REPLY, STATUS, TIMEOUT, MARK, MARK_MASK = 1, 2, 3, 7, 8, 21
NESTED, ADDRESSES, PROTOCOL = 0x8000, 1, 2
SEEN_REPLY, ASSURED, CONFIRMED = 1 << 1, 1 << 2, 1 << 3
REQUEST, CREATE, ACKNOWLEDGE = 1, 0x400, 4
OURS = attribute(MARK, struct.pack(">I", 77)) + attribute(MARK_MASK, struct.pack(">I", 0xFFFFFFFF))
BATCH = 400


def message(kind: int, flags: int, body: bytes) -> bytes:
    body = struct.pack("=BBH", socket.AF_INET, 0, 0) + body
    return struct.pack("=IHHII", 16 + len(body), kind, REQUEST | flags, 1, 0) + body


def end(kind: int, source: bytes, target: bytes, ports: bytes) -> bytes:
    addresses = attribute(1, source) + attribute(2, target)
    transport = attribute(1, bytes([socket.IPPROTO_UDP]))
    transport += attribute(2, ports[:2]) + attribute(3, ports[2:])
    inside = attribute(ADDRESSES | NESTED, addresses) + attribute(PROTOCOL | NESTED, transport)
    return attribute(kind | NESTED, inside)


def flow(number: int) -> bytes:
    """The order to track a flow of UDP that was answered, for a minute."""
    ours, theirs = b"\xc6\x12" + struct.pack(">H", number >> 16), b"\xc6\x13\0\1"
    port, service = struct.pack(">H", number & 0xFFFF), b"\0\x07"
    status = struct.pack(">I", SEEN_REPLY | ASSURED | CONFIRMED)
    return message(
        NEW,
        CREATE,
        end(ORIGINAL, ours, theirs, port + service)
        + end(REPLY, theirs, ours, service + port)
        + attribute(STATUS, status)
        + attribute(TIMEOUT, struct.pack(">I", 60))
        + OURS,
    )


@contextmanager
def full(host: NsHost, limit: int) -> Iterator[None]:
    """Fill a host's table; afterwards these flows are gone, and nothing else is."""
    with within(
        host.netns, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    ) as sock:
        try:
            for first in range(0, limit, BATCH):
                sock.send(b"".join(flow(first + number) for number in range(BATCH)))
            yield
        finally:
            sock.send(message(DELETE, ACKNOWLEDGE, OURS))


def refused(client: Path) -> bool:
    """Whether a connection to the service gets no answer."""
    with open_socket(client, TCP) as late:
        late.settimeout(1)
        try:
            late.connect((VIP, 80))
        except TimeoutError:
            return True
    return False


async def test_a_full_connection_table_keeps_connections_refuses_new_ones_and_is_reported(
    web: Web,
) -> None:
    far = await web.container(1, "far")
    client = await web.container(0, "client")
    await web.have(service(*endpoints([far])))
    before = await web.nodes[0].connections()
    with (
        serving({"far": far.netns}, 80) as servers,
        servers.connection(client.netns, VIP, 80) as (sock, server, _),
    ):
        with full(web.hosts[0], before.limit):
            # A flow of before that expires just now leaves room for one more.
            while not refused(client.netns):
                pass
            during = await web.nodes[0].connections()
            assert during.full
            assert during.refused > before.refused
            assert echoes(sock, server)
        after = await web.nodes[0].connections()
        assert not after.full
        assert echoes(sock, server)
        assert servers.ask(client.netns, VIP, 80).server == "far"
