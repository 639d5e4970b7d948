# SPDX-License-Identifier: Apache-2.0
"""Streams that are opened again at another manager when theirs is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from orchestrator.cli.app.errors import ManagerLost
from orchestrator.cli.rpc.client import RECONNECT_PAUSE, REPEAT_WITHIN, Client

T = TypeVar("T")

GIVE_UP_AFTER = 30.0
"""Seconds without a manager that serves the stream."""


def resumed(client: Client, open_stream: Callable[[], Iterable[T]]) -> Iterator[T]:
    """The messages of a stream until its end. `open_stream` opens it, at first and again after each
    loss of a manager, from where the last message left it.

    Raises ManagerLost if no manager serves it for `GIVE_UP_AFTER`, or the only manager for
    `REPEAT_WITHIN`.
    """
    lost_at: float | None = None
    while True:
        try:
            for message in open_stream():
                lost_at = None
                yield message
            return
        except ManagerLost:
            now = time.monotonic()
            if lost_at is None:
                lost_at = now
            elif now - lost_at > (GIVE_UP_AFTER if client.has_alternatives else REPEAT_WITHIN):
                raise
            else:
                time.sleep(RECONNECT_PAUSE)
