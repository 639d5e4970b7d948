# SPDX-License-Identifier: Apache-2.0
"""A user at a terminal: drives a command over a pseudo-terminal, as a terminal emulator would."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from devcluster import ORC, PATIENCE


class Terminal:
    """A terminal with one command in it."""

    def __init__(self, pid: int, fd: int) -> None:
        self.pid = pid
        self.fd = fd
        self.seen = b""
        self._looked = 0
        self._status: int | None = None

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.fd, keys)

    def resize(self, rows: int, columns: int) -> None:
        """Drag the window's corner."""
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def expect(self, text: bytes, within: float = PATIENCE) -> None:
        """Wait until this is shown, after what was last expected."""
        deadline = time.monotonic() + within
        while (at := self.seen.find(text, self._looked)) < 0:
            assert self._more(deadline), f"no {text!r} in {self.seen[self._looked :]!r}"
        self._looked = at + len(text)

    def finish(self, within: float = PATIENCE) -> int:
        """Wait until the command has ended: its exit status."""
        deadline = time.monotonic() + within
        while self._more(deadline):
            pass
        if self._status is None:
            _, status = os.waitpid(self.pid, 0)
            self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def signal(self, number: int) -> None:
        """Send a signal to the command."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL to the command: no way to say good-bye."""
        os.kill(self.pid, signal.SIGKILL)
        self.finish()

    def modes(self) -> list[object]:
        """How the terminal is set."""
        return termios.tcgetattr(self.fd)

    def _more(self, deadline: float) -> bool:
        ready, _, _ = select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"nothing more came after {self.seen[self._looked :]!r}"
        try:
            data = os.read(self.fd, 1 << 16)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False
        self.seen += data
        return bool(data)


@contextmanager
def at_terminal(
    env: Mapping[str, str],
    *arguments: str,
    rows: int = 40,
    columns: int = 123,
    program: str = ORC,
) -> Iterator[Terminal]:
    """Run `orc`, or another program, at a terminal; it is killed at the end if it runs on."""
    pid, fd = pty.fork()
    if pid == 0:
        # As in a new terminal, though the tests may run under nohup.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        os.execve(program, [program, *arguments], dict(env))
    terminal = Terminal(pid, fd)
    try:
        yield terminal
    finally:
        if terminal._status is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(fd)
