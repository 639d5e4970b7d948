# SPDX-License-Identifier: Apache-2.0
"""What is left of a container that ends in the middle of a conversation."""

from __future__ import annotations

import socket

import pytest
from netkit import Node, shell
from nshosts import wait_for, within

pytestmark = pytest.mark.root


async def test_an_open_connection_does_not_keep_the_veth_pair(nodes: list[Node]) -> None:
    """The kernel would retry to close the connection for a minute, and keep the namespace."""
    node = nodes[0]
    made = await node.network.attach("a", "talker")
    end = made.result["interfaces"][1]["name"]
    with (
        within(node.host.netns, socket.socket) as listener,
        within(made.netns, socket.socket) as talker,
    ):
        listener.bind(("10.1.1.1", 0))
        listener.listen()
        talker.connect(listener.getsockname())
        shell(made.netns, "ip", "link", "set", "eth0", "down")
        talker.send(b"unheard")
    await node.network.detach("talker")
    wait_for(lambda: end not in node.host.shell("ip", "link"))
