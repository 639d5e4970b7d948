# SPDX-License-Identifier: Apache-2.0
"""Questions to the name server's address, when one container asks without end."""

from __future__ import annotations

import socket

import pytest
from balancekit import UDP, open_socket
from nshosts import within
from webkit import Web

pytestmark = pytest.mark.root

FLOOD = 30_000
RCVBUFFORCE = 33  # socket(7)


@pytest.mark.parametrize("gateway", ["10.128.1.1", "fd00:0:0:1::1"], ids=["ipv4", "ipv6"])
async def test_a_flood_of_queries_does_not_block_other_containers(web: Web, gateway: str) -> None:
    flooder = await web.container(0, "flooder")
    other = await web.container(0, "other")
    kind = socket.AF_INET6 if ":" in gateway else socket.AF_INET
    with (
        within(web.hosts[0].netns, lambda: socket.socket(kind, UDP)) as server,
        open_socket(flooder.netns, UDP, gateway) as flood,
        open_socket(other.netns, UDP, gateway) as asker,
    ):
        server.setsockopt(socket.SOL_SOCKET, RCVBUFFORCE, 4 << 20)  # as the name server has it
        server.bind((gateway, 53))
        server.settimeout(3)
        flood.connect((gateway, 53))
        heard = asked = 0
        for number in range(FLOOD):
            flood.send(b"flood")
            if number % 1000 == 999:
                asked += 1
                asker.sendto(b"question", (gateway, 53))
                while (data := server.recv(100)) == b"flood":
                    heard += 1
                assert data == b"question"
        assert asked == FLOOD // 1000
        assert 1000 < heard < FLOOD / 2
