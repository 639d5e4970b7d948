# SPDX-License-Identifier: Apache-2.0
"""The MTU of the paths to the other nodes, found by sending packets (`echo`), not guessed.

Every minute, and at once when a node is new, each path is tried with one packet of the size that
the kernel believes in. What is less than was known counts when it was found twice in a row, and so
does, a minute later, what is more: a path that lost some packets makes no network smaller, and one
that changes to and fro makes none larger. A path that carries nothing keeps what was known of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Set
from dataclasses import dataclass

from orchestrator.agent.diagnostics.echo import Echo, VxlanEcho, path_mtu
from orchestrator.agent.network.network_types import NetworkConfig

log = logging.getLogger(__name__)

PERIOD = 60.0
"""Seconds between two rounds."""
LOOK = 1.0
"""Seconds between two looks whether a node is new."""
AT_ONCE = 16
"""Paths that are measured at the same time."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one path: the bytes that it carries, and what the last round found."""

    size: int
    last: int


def after(known: Known | None, found: int) -> Known | None:
    """What is known of a path after another round, which found that many bytes; 0: no reply."""
    if not found:
        return known
    if known is None:
        return Known(found, found)
    size = known.size
    if max(found, known.last) < size:
        size = max(found, known.last)
    elif min(found, known.last) > size:
        size = min(found, known.last)
    return Known(size, found)


class PathMtus:
    """Measures the paths from this node to its peers for as long as it runs."""

    def __init__(
        self,
        address: str,
        peers: Callable[[], Set[str]],
        plain: Callable[[], NetworkConfig | None],
        changed: Callable[[], None],
    ) -> None:
        """`address` is this node's, `peers` are the others' now, `plain` is a network whose tunnel
        may be used. `changed` is called when `least` has."""
        self._address = address
        self._peers = peers
        self._plain = plain
        self._changed = changed
        self._known: dict[str, Known] = {}
        self._tried: set[str] = set()
        """Peers that were measured in this period."""
        self._failure = ""
        self.least = 0
        """Bytes of the largest packet that gets to each of them in one piece; 0: not known."""

    async def run(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time() + PERIOD
        while True:
            if loop.time() >= due:
                due = loop.time() + PERIOD
                self._tried.clear()
            if fresh := self._peers() - self._tried:
                self._tried |= fresh
                await self._round(fresh)
            self._conclude()
            await asyncio.sleep(LOOK)

    async def _round(self, peers: Collection[str]) -> None:
        turns = asyncio.Semaphore(AT_ONCE)

        async def one(echo: Echo, peer: str) -> None:
            async with turns:
                await self.measure(echo, peer)

        try:
            with Echo(self._address) as echo:
                await asyncio.gather(*(one(echo, peer) for peer in sorted(peers)))
        except OSError as error:
            if str(error) != self._failure:
                log.error("the paths to other nodes cannot be measured: %s", error)
            self._failure = str(error)
        else:
            self._failure = ""

    async def measure(self, echo: Echo, peer: str) -> int:
        """Bytes of the largest packet that gets to a peer in one piece, found now and remembered;
        0: nothing is answered. `echo` is of this node's address."""
        found = 0
        for _ in range(2):
            found = await path_mtu(echo, peer) or await self._through_tunnel(peer)
            known = self._known.get(peer)
            now = after(known, found)
            if now is not None and peer in self._peers():
                self._known[peer] = now
            self._conclude()
            if known is None or not found or found >= known.size:
                break
        return found

    async def _through_tunnel(self, peer: str) -> int:
        """The same for a peer that does not answer pings."""
        config = self._plain()
        if config is None:
            return 0
        with VxlanEcho(config) as echo:
            return await path_mtu(echo, peer) if echo.knows(peer) else 0

    def _conclude(self) -> None:
        peers = self._peers()
        # One that comes back is measured anew.
        self._tried &= peers
        self._known = {peer: known for peer, known in self._known.items() if peer in peers}
        least = min((known.size for known in self._known.values()), default=0)
        if least != self.least:
            log.info("packets of %d bytes get to all other nodes in one piece", least)
            self.least = least
            self._changed()
