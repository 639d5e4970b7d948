# SPDX-License-Identifier: Apache-2.0
"""A stream of a manager that goes on at another one when its own is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol

from orchestrator.cli.app.errors import ManagerLost
from orchestrator.cli.rpc.client import RECONNECT_PAUSE
from orchestrator.dockerapi.gateway import Gateway, Streamed

_RESUME_WITHIN = 60.0
"""Seconds in which a manager must answer after the loss of one."""


class Resumption(Protocol):
    """What was received of a stream, and the request for the rest."""

    @property
    def request(self) -> Any:
        """The request for what was not received yet."""

    def opened(self, call: Any) -> None:
        """The stream begins."""

    def take(self, message: Any) -> None:
        """A message was received; it may be reduced by what is known."""

    def lost(self) -> None:
        """The stream broke: another one begins."""


class ResumedStream:
    """The messages of a streaming call; other threads may cancel it. Iterate it once."""

    def __init__(self, gateway: Gateway, method: str, resumption: Resumption) -> None:
        self._gateway = gateway
        self._method = method
        self._resumption = resumption
        self._lock = threading.Lock()
        self._calls: Streamed | None = None
        self._cancelled = False
        self._begun = False
        """Whether a manager has taken the call."""

    def cancel(self) -> None:
        """End it, from any thread: the iteration ends without an error."""
        with self._lock:
            self._cancelled, calls = True, self._calls
        if calls is not None:
            calls.cancel()

    def __iter__(self) -> Iterator[Any]:
        lost_at: float | None = None
        while (calls := self._opened()) is not None:
            try:
                for message in calls:
                    lost_at = None
                    self._resumption.take(message)
                    yield message
                return
            except ManagerLost:
                if not self._begun:
                    raise
                now = time.monotonic()
                if lost_at is not None:
                    if now - lost_at > _RESUME_WITHIN:
                        raise
                    time.sleep(RECONNECT_PAUSE)
                else:
                    lost_at = now
            self._resumption.lost()

    def _opened(self) -> Streamed | None:
        """A stream for what was not received yet; None once cancelled."""
        with self._lock:
            if self._cancelled:
                return None
            self._calls = self._gateway.stream(self._method, self._resumption.request, self._begin)
            return self._calls

    def _begin(self, call: Any) -> None:
        self._begun = True
        self._resumption.opened(call)
