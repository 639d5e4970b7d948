# SPDX-License-Identifier: Apache-2.0
"""Path MTUs to the other nodes, measured with packets (`echo`).

Each path is measured every minute, and immediately for a new node, normally with a single packet of
the size that the kernel assumes. A changed value, lower or higher, is adopted when two consecutive
measurements confirm it, so neither packet loss nor a flapping path changes the MTU of networks. A
path without replies keeps its last value.
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
POLL = 1.0
"""Seconds between checks for new nodes."""
CONCURRENCY = 16
"""Paths that are measured concurrently."""


@dataclass(frozen=True, slots=True)
class PathMtu:
    """The adopted MTU of a path, and the last measurement, in bytes."""

    size: int
    last: int


def after(known: PathMtu | None, found: int) -> PathMtu | None:
    """The MTU of a path after a measurement of `found` bytes; 0: no reply."""
    if not found:
        return known
    if known is None:
        return PathMtu(found, found)
    size = known.size
    if max(found, known.last) < size:
        size = max(found, known.last)
    elif min(found, known.last) > size:
        size = min(found, known.last)
    return PathMtu(size, found)


class PathMtus:
    """Measures the paths from this node to its peers periodically."""

    def __init__(
        self,
        address: str,
        peers: Callable[[], Set[str]],
        plain: Callable[[], NetworkConfig | None],
        changed: Callable[[], None],
    ) -> None:
        """`address` is this node's underlay address, `peers` returns the current ones of the other
        nodes, `plain` an unencrypted network whose tunnel can carry probes. `changed` is called
        when `least` changes."""
        self._address = address
        self._peers = peers
        self._plain = plain
        self._changed = changed
        self._known: dict[str, PathMtu] = {}
        self._measured: set[str] = set()
        """Peers measured in this period."""
        self._failure = ""
        self.least = 0
        """The smallest path MTU to a peer in bytes; 0: unknown."""

    async def run(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time() + PERIOD
        while True:
            if loop.time() >= due:
                due = loop.time() + PERIOD
                self._measured.clear()
            if due_peers := self._peers() - self._measured:
                self._measured |= due_peers
                await self._measure_all(due_peers)
            self._update_least()
            await asyncio.sleep(POLL)

    async def _measure_all(self, peers: Collection[str]) -> None:
        turns = asyncio.Semaphore(CONCURRENCY)

        async def one(echo: Echo, peer: str) -> None:
            async with turns:
                await self.measure(echo, peer)

        try:
            with Echo(self._address) as echo:
                await asyncio.gather(*(one(echo, peer) for peer in sorted(peers)))
        except OSError as error:
            if str(error) != self._failure:
                log.error("path MTUs to other nodes cannot be measured: %s", error)
            self._failure = str(error)
        else:
            self._failure = ""

    async def measure(self, echo: Echo, peer: str) -> int:
        """Measure the path MTU to a peer in bytes, and record it; 0: no reply. `echo` sends from
        this node's underlay address."""
        found = 0
        for _ in range(2):
            found = await path_mtu(echo, peer) or await self._through_tunnel(peer)
            known = self._known.get(peer)
            now = after(known, found)
            if now is not None and peer in self._peers():
                self._known[peer] = now
            self._update_least()
            if known is None or not found or found >= known.size:
                break
        return found

    async def _through_tunnel(self, peer: str) -> int:
        """Measure the path MTU by VXLAN, for a peer that does not reply to pings; 0: no reply."""
        config = self._plain()
        if config is None:
            return 0
        with VxlanEcho(config) as echo:
            return await path_mtu(echo, peer) if echo.knows(peer) else 0

    def _update_least(self) -> None:
        peers = self._peers()
        # A peer that returns is measured again.
        self._measured &= peers
        self._known = {peer: known for peer, known in self._known.items() if peer in peers}
        least = min((known.size for known in self._known.values()), default=0)
        if least != self.least:
            log.info("smallest path MTU to another node: %d bytes", least)
            self.least = least
            self._changed()
