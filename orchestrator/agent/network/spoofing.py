# SPDX-License-Identifier: Apache-2.0
"""Spoofed packets of containers: those that the kernel dropped are counted for metrics, and logged
with a rate limit per container."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.network_types import Forgery, NetworkConfig

log = logging.getLogger(__name__)

LOOK_PERIOD = 10.0
QUIET = 600.0
"""Seconds between two log lines about the same container in the same network."""

_Key = tuple[str, str]


class SpoofingMonitor:
    """Reads the counters of packets that source checks have dropped."""

    def __init__(
        self,
        look: Callable[[], Awaitable[Sequence[Forgery]]],
        networks: Callable[[], Mapping[str, NetworkConfig]],
        clock: Callable[[], float],
    ) -> None:
        """`look` returns the counters, `networks` are those of this node by id, `clock` is
        monotonic, in seconds."""
        self._look = look
        self._networks = networks
        self._clock = clock
        self._seen: dict[_Key, int] | None = None
        """The last counters; None: not read yet."""
        self._unsaid: Counter[_Key] = Counter()
        """Packets that are not logged yet."""
        self._said: dict[_Key, float] = {}
        self.dropped: Counter[str] = Counter()
        """Packets by network name, since the start of this agent."""

    async def run(self) -> None:
        """Read the counters until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_PERIOD)

    async def look(self) -> None:
        """Read the counters once. Packets before the first time are not counted."""
        try:
            forgeries = await self._look()
        except NetworkError:
            return  # the reconciler's pass logs it
        found = {(each.network, each.container): each.packets for each in forgeries}
        before, self._seen = self._seen, found
        if before is None:
            return
        for key, packets in found.items():
            known = before.get(key, 0)
            # The kernel counts from 0 again after an hour without any.
            if new := packets - known if packets >= known else packets:
                self._unsaid[key] += new
                self.dropped[self._name(key[0])] += new
        self._say()

    def _say(self) -> None:
        now = self._clock()
        self._said = {key: at for key, at in self._said.items() if now - at < QUIET}
        for key, packets in list(self._unsaid.items()):
            if key in self._said:
                continue
            network, container = key
            log.warning(
                "packets with forged source addresses dropped",
                extra={"task": container, "network": self._name(network), "packets": packets},
            )
            self._said[key] = now
            del self._unsaid[key]

    def _name(self, network: str) -> str:
        config = self._networks().get(network)
        return config.name if config is not None else network
