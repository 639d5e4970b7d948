# SPDX-License-Identifier: Apache-2.0
"""Connections that are deleted while clients open others."""

from __future__ import annotations

import socket

import pytest
from nshosts import NsHost, socket_in, within

from orchestrator.cni.netlink import conntrack
from orchestrator.cni.netlink.conntrack import Flow

pytestmark = pytest.mark.root

ASKED = ("192.0.2.200", 53)
GONE, NEXT, LAST = "192.0.2.1", "192.0.2.2", "192.0.2.3"


def lead_to(host: NsHost, server: str) -> None:
    """Lead new connections to ASKED to a server."""
    host.shell(
        "nft", "-f", "-",
        stdin=f"""
            table ip choice
            delete table ip choice
            table ip choice {{
                chain output {{
                    type nat hook output priority -100;
                    ip daddr {ASKED[0]} dnat to {server}
                }}
            }}
        """,
    )  # fmt: skip


def test_a_connection_that_replaced_a_deleted_one_continues(host: NsHost) -> None:
    """A client reuses a port between the dump of the connections and the deletion: the new one has
    the same original tuple, and another server."""
    servers = {address: socket_in(host.netns, socket.SOCK_DGRAM) for address in (GONE, NEXT, LAST)}
    host.shell("ip", "link", "set", "lo", "up")
    for address, server in servers.items():
        host.shell("ip", "addr", "add", f"{address}/32", "dev", "lo")
        server.bind((address, ASKED[1]))
    client = socket_in(host.netns, socket.SOCK_DGRAM)

    def reached() -> str:
        client.sendto(b"question", ASKED)
        for address, server in servers.items():
            server.setblocking(False)
            try:
                server.recv(100)
            except BlockingIOError:
                continue
            return address
        return "none"

    taken = []

    def stale(flow: Flow) -> bool:
        if flow.server != socket.inet_aton(GONE):
            return False
        if not taken:
            conntrack.delete(lambda _: True)
            lead_to(host, NEXT)
            taken.append(reached())
        return True

    lead_to(host, GONE)
    assert reached() == GONE
    within(host.netns, lambda: conntrack.delete(stale))
    assert taken == [NEXT]
    lead_to(host, LAST)
    assert reached() == NEXT
