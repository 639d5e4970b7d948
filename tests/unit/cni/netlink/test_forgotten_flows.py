# SPDX-License-Identifier: Apache-2.0
"""Connections that are forgotten, while clients open others."""

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
    """New connections to whom is ASKED reach a server."""
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


def test_a_connection_that_took_the_place_of_a_forgotten_one_goes_on(host: NsHost) -> None:
    """A client takes a port again between that the kernel was asked for the connections and that
    it is told which to forget: the new one has the same ends, and leads elsewhere."""
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
        return "nobody"

    taken = []

    def doomed(flow: Flow) -> bool:
        if flow.server != socket.inet_aton(GONE):
            return False
        if not taken:
            conntrack.forget(lambda _: True)
            lead_to(host, NEXT)
            taken.append(reached())
        return True

    lead_to(host, GONE)
    assert reached() == GONE
    within(host.netns, lambda: conntrack.forget(doomed))
    assert taken == [NEXT]
    lead_to(host, LAST)
    assert reached() == NEXT
