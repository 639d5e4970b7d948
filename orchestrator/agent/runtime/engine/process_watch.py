# SPDX-License-Identifier: Apache-2.0
"""Observing a container's processes: the start of its program, the end of its monitor, termination.

A monitor's end is detected by a pidfd in the event loop, without a thread or polling.

`crun start` returns after it has signalled the container's process, which is still crun and has yet
to execute the program. That may fail. Success is visible in the kernel: executing a program gives a
process a new address space, with the stack at another address (`/proc/PID/stat`), and closes the
file of the old program, which inotify reports; then the address is compared again.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from orchestrator.agent.runtime.interface import Exit, RuntimeFailure
from orchestrator.agent.runtime.resources.cgroups import Cgroups
from orchestrator.linux import spawn
from orchestrator.linux.inotify import CLOSED_UNWRITTEN, Inotify
from orchestrator.linux.processes import ProcessIdentity, stat_fields


@dataclass(slots=True)
class _Watched:
    """A monitor: its pidfd (-1: closed, since it has ended), and its container's exit."""

    pidfd: int
    ended: asyncio.Future[Exit]


class MonitorWatch:
    """Watches the monitors of one runtime's containers."""

    def __init__(self, determine_exit: Callable[[str], Exit]) -> None:
        """`determine_exit` returns a container's exit once its monitor has ended."""
        self._determine_exit = determine_exit
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
            watched.ended.set_result(self._determine_exit(container_id))
        else:
            watched.pidfd = pidfd
            loop.add_reader(pidfd, self._ended, container_id)
        self._watched[container_id] = watched

    async def wait(self, container_id: str) -> Exit:
        """Wait until the container has ended. Cancelling one waiter does not affect others. Raises
        OSError when its exit cannot be determined; then it is not watched any more."""
        return await asyncio.shield(self._watched[container_id].ended)

    def _ended(self, container_id: str) -> None:
        """The pidfd is readable: the monitor has ended."""
        try:
            self.resolve(container_id)
        except Exception as error:
            watched = self._watched.pop(container_id)
            self._close(watched)
            watched.ended.set_exception(error)
            watched.ended.exception()  # retrieved, also without a waiter

    def resolve(self, container_id: str) -> None:
        """Resolve the waiters of a container whose monitor has ended. No-op if that is done, or the
        container is not watched."""
        watched = self._watched.get(container_id)
        if watched is None or watched.ended.done():
            return
        ended = self._determine_exit(container_id)
        self._close(watched)
        watched.ended.set_result(ended)

    def forget(self, container_id: str) -> None:
        """Stop watching. Remaining waiters are cancelled: call `resolve` first."""
        if (watched := self._watched.pop(container_id, None)) is not None:
            self._close(watched)
            watched.ended.cancel()

    def close(self) -> None:
        """Stop watching all."""
        for container_id in self.ids():
            self.forget(container_id)

    def _close(self, watched: _Watched) -> None:
        if watched.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(watched.pidfd)
            os.close(watched.pidfd)
            watched.pidfd = -1


_STACK = 25
"""Index of the stack's address in `/proc/PID/stat` after the name: field 28."""


class ProgramStart:
    """Watches a created container's process; a context manager, entered before it is started."""

    def __init__(self, process: ProcessIdentity) -> None:
        self._process = process
        self._stack = ExitStack()
        self._before = 0
        self._closed: Inotify | None = None
        self._pidfd = -1

    def __enter__(self) -> Self:
        """A process that has already ended is handled."""
        if (pidfd := self._process.open()) is not None:
            self._stack.callback(os.close, pidfd)
            program = Path(f"/proc/{self._process.pid}/exe")
            with suppress(FileNotFoundError, ProcessLookupError):
                self._closed = self._stack.enter_context(Inotify(program, CLOSED_UNWRITTEN))
                self._before, self._pidfd = self._stack_address(), pidfd
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    async def wait(self) -> bool:
        """Wait until the program runs (True) or the process has ended (False), because the program
        could not be executed or was quick."""
        if self._closed is None:
            return False
        while self._process.alive():
            if self._stack_address() not in (self._before, 0):
                return True
            await spawn.readable(self._closed.fd, self._pidfd)
            self._closed.take()
        return False

    def _stack_address(self) -> int:
        """The address of the process's stack; 0 when it is ending or has ended."""
        fields = stat_fields(self._process.pid)
        return int(fields[_STACK]) if fields else 0


_KILL_TIMEOUT = 5.0
"""Seconds until killed processes must have ended."""


async def end_monitor(monitor: ProcessIdentity | None, kill: Callable[[], None]) -> None:
    """Let conmon record its container's exit and end; kill it if it does not.

    It may be about to create the container, so `kill` is called repeatedly.
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
    """Remove the cgroup, once its killed processes have ended. Raises RuntimeFailure."""
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
    """Growing pauses in seconds, `_KILL_TIMEOUT` in total."""
    left, pause = _KILL_TIMEOUT, 0.002
    while left > 0:
        yield pause
        left -= pause
        pause = min(pause * 2, 0.25)
