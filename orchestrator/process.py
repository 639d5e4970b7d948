"""A daemon's outermost frame: one coroutine, ended by SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from contextlib import suppress


def run_until_signalled(work: Coroutine[object, object, None]) -> None:
    """Run `work`; SIGTERM and SIGINT cancel it and count as a clean end."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())


def take_precedence(nice: int) -> None:
    """Have this process, and what it starts, run before others of its control group where all
    processors are in use; as it is where that is not permitted. `nice` is negative."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, nice)
