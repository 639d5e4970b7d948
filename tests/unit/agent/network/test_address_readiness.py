# SPDX-License-Identifier: Apache-2.0
"""An attached container has its addresses: what is sent there at once arrives."""

from __future__ import annotations

import asyncio

import pytest
from forging import ear, say
from netkit import Node

pytestmark = pytest.mark.root


async def test_a_datagram_arrives_at_once(nodes: list[Node]) -> None:
    """The kernel routes an IPv6 address to its container in a worker of its own, some time after
    it took the address."""
    senders = [await node.network.attach("a", f"sender{node.number}") for node in nodes]

    async def attach_and_send(name: str) -> None:
        container = await nodes[0].network.attach("a", name)
        with ear(container.netns) as listener:
            for sender in senders:
                say(sender.netns, container.address6, listener.port, b"at once")
            for _ in senders:
                assert listener.until(b"at once") == []

    for start in range(0, 80, 8):
        names = [f"c{number}" for number in range(start, start + 8)]
        await asyncio.gather(*map(attach_and_send, names))
        await asyncio.gather(*map(nodes[0].network.detach, names))
