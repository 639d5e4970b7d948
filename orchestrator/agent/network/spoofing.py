# SPDX-License-Identifier: Apache-2.0
"""Spoofed packets of containers: counts those that the kernel dropped, for metrics, and logs them
with a rate limit per container."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.network_types import Forgery, NetworkConfig

log = logging.getLogger(__name__)

READ_PERIOD = 10.0
"""Seconds between two reads of the counters."""
LOG_PERIOD = 600.0
"""Seconds between two log lines about the same container in the same network."""

_Key = tuple[str, str]


class SpoofingMonitor:
    """Reads the counters of packets that source checks have dropped."""

    def __init__(
        self,
        counters: Callable[[], Awaitable[Sequence[Forgery]]],
        networks: Callable[[], Mapping[str, NetworkConfig]],
        clock: Callable[[], float],
    ) -> None:
        """`counters` reads the kernel's counters, `networks` are those of this node by id, `clock`
        is monotonic, in seconds."""
        self._counters = counters
        self._networks = networks
        self._clock = clock
        self._last: dict[_Key, int] | None = None
        """The last counters; None: not read yet."""
        self._unlogged: Counter[_Key] = Counter()
        """Packets that are not logged yet."""
        self._logged: dict[_Key, float] = {}
        """Time of the last log line."""
        self.dropped: Counter[str] = Counter()
        """Packets by network name, since the start of this agent."""

    async def run(self) -> None:
        """Read the counters until cancelled."""
        while True:
            await self.read()
            await asyncio.sleep(READ_PERIOD)

    async def read(self) -> None:
        """Read the counters once. Packets before the first read are not counted."""
        try:
            forgeries = await self._counters()
        except NetworkError:
            return  # the reconciler's pass logs it
        found = {(each.network, each.container): each.packets for each in forgeries}
        before, self._last = self._last, found
        if before is None:
            return
        for key, packets in found.items():
            known = before.get(key, 0)
            # The kernel counts from 0 again after an hour without any.
            if new := packets - known if packets >= known else packets:
                self._unlogged[key] += new
                self.dropped[self._name(key[0])] += new
        self._log()

    def _log(self) -> None:
        now = self._clock()
        self._logged = {key: at for key, at in self._logged.items() if now - at < LOG_PERIOD}
        for key, packets in list(self._unlogged.items()):
            if key in self._logged:
                continue
            network, container = key
            log.warning(
                "packets with forged source addresses dropped",
                extra={"task": container, "network": self._name(network), "packets": packets},
            )
            self._logged[key] = now
            del self._unlogged[key]

    def _name(self, network: str) -> str:
        config = self._networks().get(network)
        return config.name if config is not None else network
