"""Who on this node sends with source addresses of others: what the kernel dropped of it is counted
for metrics, and logged, at most once in a while for each container."""

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
"""Seconds between two lines on the same container in the same network."""

_Key = tuple[str, str]


class SpoofingMonitor:
    """Looks at what source checks have dropped."""

    def __init__(
        self,
        look: Callable[[], Awaitable[Sequence[Forgery]]],
        networks: Callable[[], Mapping[str, NetworkConfig]],
        clock: Callable[[], float],
    ) -> None:
        """`look` tells what was dropped, `networks` are those of this node by id, `clock` is
        monotonic, in seconds."""
        self._look = look
        self._networks = networks
        self._clock = clock
        self._seen: dict[_Key, int] | None = None
        """What the kernel counted when it was last asked; None: this agent has not asked yet."""
        self._unsaid: Counter[_Key] = Counter()
        """Packets that no line of the log has told of."""
        self._said: dict[_Key, float] = {}
        self.dropped: Counter[str] = Counter()
        """Packets by the network's name, since this agent began."""

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_PERIOD)

    async def look(self) -> None:
        """Look once. What was dropped before the first time is not news."""
        try:
            forgeries = await self._look()
        except NetworkError:
            return  # the networks' own pass says so
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
