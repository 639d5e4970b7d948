"""Seeing to it that what was killed is gone: processes go when the kernel gets to it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator

from orchestrator.agent.runtime import spawn
from orchestrator.agent.runtime.base import RuntimeFailure
from orchestrator.agent.runtime.cgroups import Cgroups
from orchestrator.agent.runtime.identity import ProcessIdentity

_ENDING = 5.0
"""Seconds that killed processes get to be gone."""


async def end_monitor(monitor: ProcessIdentity | None, kill: Callable[[], None]) -> None:
    """Let conmon see its container's end, write it down and go; kill it if it does not.

    It may be about to create the container only now, so `kill` is called repeatedly.
    """
    if monitor is None or (pidfd := monitor.open()) is None:
        return
    try:
        for pause in _pauses():
            try:
                async with asyncio.timeout(pause):
                    await spawn.readable(pidfd)
                return
            except TimeoutError:
                kill()
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        await spawn.readable(pidfd)
    finally:
        os.close(pidfd)


async def clear_cgroup(cgroups: Cgroups, container_id: str) -> None:
    """Remove the cgroup; killed processes leave it only when they are gone. Raises
    RuntimeFailure."""
    for pause in _pauses():
        if cgroups.remove(container_id):
            return
        cgroups.kill(container_id)
        await asyncio.sleep(pause)
    raise RuntimeFailure(
        f"processes of container {container_id} cannot be killed; "
        "they may hang on a disk or a network file system"
    )


def _pauses() -> Iterator[float]:
    """Growing pauses in seconds, of `_ENDING` together."""
    left, pause = _ENDING, 0.002
    while left > 0:
        yield pause
        left -= pause
        pause = min(pause * 2, 0.25)
