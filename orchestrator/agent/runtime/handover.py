"""Seeing that a container's process has become the container's own program.

`crun start` returns when the process was told to go on; it has yet to execute the program, which
may fail, and until then it is crun. Nobody tells when that has happened, but the kernel shows it:
executing a program gives a process another address space, whose stack is elsewhere (`/proc/PID/
stat`), and closes the file of the old program (inotify), which is when to look again.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from orchestrator.agent.runtime import spawn
from orchestrator.agent.runtime.identity import ProcessIdentity, stat_fields
from orchestrator.agent.runtime.inotify import CLOSED_UNWRITTEN, Inotify

_STACK = 25
"""Where the address of the stack stands in `/proc/PID/stat` after the name: field 28."""


class Handover:
    """Watches a created container's process; a context manager, entered before it is started."""

    def __init__(self, process: ProcessIdentity) -> None:
        self._process = process
        self._stack = ExitStack()
        self._before = 0
        self._closed: Inotify | None = None
        self._pidfd = -1

    def __enter__(self) -> Self:
        """One that has ended already is seen to have."""
        if (pidfd := self._process.open()) is not None:
            self._stack.callback(os.close, pidfd)
            program = Path(f"/proc/{self._process.pid}/exe")
            with suppress(FileNotFoundError, ProcessLookupError):
                self._closed = self._stack.enter_context(Inotify(program, CLOSED_UNWRITTEN))
                self._before, self._pidfd = self._where(), pidfd
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    async def happened(self) -> bool:
        """Wait for it: whether the program runs. Otherwise the process has ended, be it that the
        program could not be executed or that it was quick."""
        if self._closed is None:
            return False
        while self._process.alive():
            if self._where() not in (self._before, 0):
                return True
            await spawn.readable(self._closed.fd, self._pidfd)
            self._closed.take()
        return False

    def _where(self) -> int:
        """The address of its stack; 0 when it ends or has ended."""
        fields = stat_fields(self._process.pid)
        return int(fields[_STACK]) if fields else 0
