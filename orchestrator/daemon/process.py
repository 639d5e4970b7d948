# SPDX-License-Identifier: Apache-2.0
"""A daemon's process: one coroutine until SIGTERM or SIGINT, and sd_notify(3) for systemd.

Without systemd nothing is sent.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass


def run_until_signalled(work: Coroutine[object, object, None]) -> None:
    """Run `work`; SIGTERM and SIGINT cancel it and count as success."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())


def raise_priority(nice: int) -> None:
    """Raise the CPU priority of this process and its children; no-op without permission. `nice` is
    negative."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, nice)


_MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class Supervisor:
    """The process manager (systemd) that started this process."""

    address: str
    """Path of a datagram socket, or `@` and an abstract name; empty: none."""
    watchdog: float
    """Seconds without a notification after which systemd considers the process hung; 0: never."""

    @classmethod
    def taken(cls) -> Supervisor:
        """The supervisor of the environment, whose variables are removed: an OCI runtime that
        inherited them would pass them on to containers."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        period = os.environ.pop("WATCHDOG_USEC", "")
        pid = os.environ.pop("WATCHDOG_PID", str(os.getpid()))
        ours = period.isdigit() and pid == str(os.getpid())
        return cls(address, int(period) / _MICROSECONDS if ours else 0.0)

    def notify(self, text: str) -> None:
        """Send a notification; errors are ignored."""
        if not self.address:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            with suppress(OSError):
                sender.sendto(text.encode(), address)

    async def attend(self, *, locked: bool = False) -> None:
        """Report that the daemon is ready, then that its event loop runs, until cancelled. A locked
        one counts as ready, so that it is not restarted for being slow."""
        self.notify("READY=1")
        # An empty status clears an earlier one.
        self.notify("STATUS=" + ("locked: run 'orc cluster unlock'" if locked else ""))
        while self.watchdog:
            self.notify("WATCHDOG=1")
            await asyncio.sleep(self.watchdog / 3)
