"""Seeing monitors end: a pidfd for each, read by the event loop, and no thread or poll."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.agent.runtime.base import Exit
from orchestrator.agent.runtime.identity import ProcessIdentity


@dataclass(slots=True)
class _Watched:
    """A monitor: its pidfd (-1: closed, as it has ended), and what comes of it."""

    pidfd: int
    ended: asyncio.Future[Exit]


class MonitorWatch:
    """The monitors of the containers of one runtime."""

    def __init__(self, decide: Callable[[str], Exit]) -> None:
        """`decide` tells, once a container's monitor is gone, how the container has ended."""
        self._decide = decide
        self._watched: dict[str, _Watched] = {}

    def __contains__(self, container_id: str) -> bool:
        return container_id in self._watched

    def ids(self) -> list[str]:
        """The containers that are watched."""
        return list(self._watched)

    def add(self, container_id: str, monitor: ProcessIdentity) -> None:
        """Watch a monitor, which may have ended already. Raises OSError, and then watches
        nothing."""
        if container_id in self._watched:
            return
        loop = asyncio.get_running_loop()
        watched = _Watched(-1, loop.create_future())
        if (pidfd := monitor.open()) is None:
            watched.ended.set_result(self._decide(container_id))
        else:
            watched.pidfd = pidfd
            loop.add_reader(pidfd, self._ended, container_id)
        self._watched[container_id] = watched

    async def wait(self, container_id: str) -> Exit:
        """Until the container has ended. A cancelled waiter does not disturb the others. Raises
        OSError when it cannot be found out how; then nothing is watched any more."""
        return await asyncio.shield(self._watched[container_id].ended)

    def _ended(self, container_id: str) -> None:
        """A pidfd says that the monitor has ended."""
        try:
            self.settle(container_id)
        except Exception as error:
            watched = self._watched.pop(container_id)
            self._close(watched)
            watched.ended.set_exception(error)
            watched.ended.exception()  # also where nobody waits

    def settle(self, container_id: str) -> None:
        """The monitor has ended: tell those who wait. Nothing if they are told, or none is
        watched."""
        watched = self._watched.get(container_id)
        if watched is None or watched.ended.done():
            return
        ended = self._decide(container_id)
        self._close(watched)
        watched.ended.set_result(ended)

    def forget(self, container_id: str) -> None:
        """Watch no more. Who still waits is cancelled: settle first."""
        if (watched := self._watched.pop(container_id, None)) is not None:
            self._close(watched)
            watched.ended.cancel()

    def close(self) -> None:
        """Forget all."""
        for container_id in self.ids():
            self.forget(container_id)

    def _close(self, watched: _Watched) -> None:
        if watched.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(watched.pidfd)
            os.close(watched.pidfd)
            watched.pidfd = -1
