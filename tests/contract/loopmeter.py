# SPDX-License-Identifier: Apache-2.0
"""How long callbacks hold an event loop, in CPU time of its thread.

CPU time, since on a busy machine a callback may wait for a core for as long as it likes. What runs
in other threads does not count: Python takes the interpreter from them within milliseconds.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


class LoopMeter:
    """The longest callback since the last `reset`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget what was measured."""
        self.longest = 0.0
        """Seconds."""
        self.culprit = ""
        """Which callback that was."""

    def add(self, seconds: float, handle: asyncio.Handle) -> None:
        """Take a measurement."""
        if seconds > self.longest:
            self.longest, self.culprit = seconds, repr(handle)


@contextmanager
def measured() -> Iterator[LoopMeter]:
    """Measure all callbacks of the event loop of this thread while the body runs."""
    meter, thread = LoopMeter(), threading.get_ident()
    run = asyncio.Handle._run

    def timed(handle: Any) -> None:
        if threading.get_ident() != thread:
            run(handle)
            return
        began = time.thread_time()
        run(handle)
        meter.add(time.thread_time() - began, handle)

    with mock.patch.object(asyncio.Handle, "_run", timed):
        yield meter
