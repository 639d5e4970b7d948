# SPDX-License-Identifier: Apache-2.0
"""The ports of a throughput test: open to peers with the token, and only during the test."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orchestrator.agent.diagnostics.throughput import (
    DATAGRAMS,
    TOKEN_BYTES,
    Responder,
    measure_rate,
    send_datagrams,
)

HOST = "127.0.0.1"
TOKEN, OTHER = os.urandom(TOKEN_BYTES), os.urandom(TOKEN_BYTES)


@asynccontextmanager
async def responding() -> AsyncIterator[Responder]:
    async with (
        asyncio.TaskGroup() as group,
        Responder(group, HOST, TOKEN, reserved=False) as responder,
    ):
        yield responder


async def test_datagrams_are_counted_by_sender_and_kind() -> None:
    async with responding() as responder:
        target = HOST, responder.port
        for number in (3, 7):
            await send_datagrams(HOST, target, TOKEN, number)
        await send_datagrams(HOST, target, OTHER, 8)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for junk in (b"", b"x", bytes(200), TOKEN, bytes(4000)):
                stranger.sendto(junk, target)
        # What is sent within a host has arrived; the loop is to see it.
        await asyncio.sleep(0)
        assert responder.received == {3: (DATAGRAMS, DATAGRAMS), 7: (DATAGRAMS, DATAGRAMS)}


async def test_a_stream_is_measured_only_with_the_token() -> None:
    async with responding() as responder:
        target = HOST, responder.port
        assert await measure_rate(HOST, target, TOKEN, 0.1) > 1e6
        assert await measure_rate(HOST, target, OTHER, 0.1) == 0
        # Peers that send nothing, or disconnect, block others only briefly.
        with socket.create_connection(target) as silent:
            silent.sendall(TOKEN[:5])
        assert await measure_rate(HOST, target, TOKEN, 0.1) > 1e6
    assert await measure_rate(HOST, target, TOKEN, 0.1) == 0


async def test_sockets_are_closed_after_the_test() -> None:
    async with asyncio.TaskGroup() as group:
        responder = Responder(group, HOST, TOKEN, reserved=False)
        await responder.__aenter__()
        with socket.create_connection((HOST, responder.port)):
            await asyncio.sleep(0)
            await responder.__aexit__(None, None, None)
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((HOST, responder.port))
