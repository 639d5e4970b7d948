"""The clock by which the silence of nodes is measured: it stands while the manager hears nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

TURN = 0.1
"""Seconds between two turns of the event loop that are looked for."""
LIMIT = 0.2
"""Seconds that pass at most between two of them."""


class ListeningClock:
    """Monotonic seconds, without those in which the event loop was late.

    A loop that is blocked, and a process that gets no processor, reads nothing: what agents have
    sent meanwhile waits in its sockets. Measured by this clock, no node is silent for that.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._turned = now()
        self._passed = self._turned

    def __call__(self) -> float:
        return self._passed + min(self._now() - self._turned, LIMIT)

    def turn(self) -> None:
        """The event loop runs."""
        self._passed = self()
        self._turned = self._now()

    async def run(self) -> None:
        """Watch the event loop, until cancelled."""
        while True:
            await asyncio.sleep(TURN)
            self.turn()
