# SPDX-License-Identifier: Apache-2.0
"""Requests to a service that no user changes: through its published port on every node, and through
its VIP from inside a container."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

from tests.chaos.history import Request
from tests.chaos.hosts import command
from tests.chaos.users import STEADY, STEADY_PORT, World

EVERY = 0.25
"""Seconds between two requests of one kind."""

TIMEOUT = 3.0
"""Seconds for one request."""


async def through_published_port(world: World) -> None:
    """Ask each node in turn."""
    number = 0
    while True:
        host = world.testbed.node_hosts[number % world.testbed.nodes]
        number += 1
        began = world.recorder.now()
        error = await _get(world.testbed.address(host), STEADY_PORT)
        _record(world, host, began, error)
        await asyncio.sleep(EVERY)


async def _get(address: str, port: int) -> str:
    """Empty, or what went wrong. Any HTTP answer will do."""
    try:
        async with asyncio.timeout(TIMEOUT):
            reader, writer = await asyncio.open_connection(address, port)
            try:
                writer.write(b"GET /absent HTTP/1.0\r\n\r\n")
                line = await reader.readline()
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
    except TimeoutError:
        return f"no answer within {TIMEOUT:g} s"
    except OSError as error:
        return str(error)
    return "" if line.startswith(b"HTTP/") else f"answered {line!r}"


async def through_vip(world: World, vip: str) -> None:
    """Ask from inside containers of the service itself."""
    chance = random.Random(f"{world.seed}/vip")
    while True:
        await asyncio.sleep(4 * EVERY)
        mine = [each for each in world.containers.running() if each.name.startswith(STEADY)]
        if not mine:
            continue
        container = chance.choice(sorted(mine, key=lambda each: each.task))
        began = world.recorder.now()
        ask = ("busybox", "wget", "-q", "-T", "3", "-O", "/dev/null", f"http://{vip}/absent")
        answer = await command(("nsenter", "-t", str(container.pid), "-n", *ask), TIMEOUT + 2.0)
        if container not in world.containers.running():
            continue  # the one that asked has ended
        answered = answer.status == 0 or "404" in answer.err
        error = "" if answered else answer.err.strip() or f"status {answer.status}"
        _record(world, f"VIP on {container.host}", began, error)


def _record(world: World, via: str, began: float, error: str) -> None:
    now = world.recorder.now()
    world.recorder.add(Request(STEADY, via, began, now, not error, error))
