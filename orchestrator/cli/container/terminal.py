# SPDX-License-Identifier: Apache-2.0
"""The user's terminal: raw mode that is always restored, size, signals, detach keys.

Imports little, to keep `orc exec` fast.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

DETACH_KEYS = "ctrl-p,ctrl-q"
"""As in Docker."""


def _known(*names: str) -> tuple[signal.Signals, ...]:
    """Those of these signals that this system has."""
    return tuple(signal.Signals[name] for name in names if name in signal.Signals.__members__)


FORWARDED_SIGNALS = _known("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
"""Signals that are forwarded to an attached process."""


def parse_keys(text: str) -> bytes:
    """Parse a comma-separated key sequence such as `ctrl-p,ctrl-q` into bytes; empty: no sequence.

    Raises ValueError for an unknown key.
    """
    keys = bytearray()
    for word in text.split(",") if text else ():
        name = word.strip().lower()
        if name.startswith("ctrl-") and len(name) == 6 and 0x40 <= ord(name[5].upper()) < 0x60:
            keys.append(ord(name[5].upper()) & 0x1F)
        elif len(word) == 1 and word.isascii():
            keys.append(ord(word))
        else:
            raise ValueError(
                f"{word!r} is not a key; write letters or ctrl-LETTER separated by commas, "
                f"such as {DETACH_KEYS}"
            )
    return bytes(keys)


class DetachKeys:
    """Detects the key sequence in typed bytes; a partial match is held back until decided."""

    def __init__(self, sequence: bytes) -> None:
        self._sequence = sequence
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """The bytes to forward, and whether the sequence is complete; bytes after it are
        dropped."""
        sequence = self._sequence
        if not sequence:
            return data, False
        typed = self._held + data
        at = typed.find(sequence)
        if at >= 0:
            self._held = b""
            return typed[:at], True
        # Hold back the longest end that may become the sequence.
        held = next((n for n in range(len(sequence) - 1, 0, -1) if typed.endswith(sequence[:n])), 0)
        cut = len(typed) - held
        self._held = typed[cut:]
        return typed[:cut], False


@contextmanager
def raw_mode(descriptor: int) -> Iterator[None]:
    """Raw mode for the duration of the block.

    The terminal is restored on every exit: SIGTERM, SIGHUP and SIGQUIT without another handler
    become SystemExit with the status that shells use. Where there is no termios
    (Windows), input arrives line by line.
    """
    try:
        import termios
        import tty
    except ImportError:
        yield
        return
    before = termios.tcgetattr(descriptor)
    taken = {
        number: signal.signal(number, _leave)
        for number in _known("SIGTERM", "SIGHUP", "SIGQUIT")
        if signal.getsignal(number) is signal.SIG_DFL
    }
    try:
        tty.setraw(descriptor, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
        for number, handler in taken.items():
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextmanager
def handle_signals(handler: Callable[[int], None], *numbers: int) -> Iterator[None]:
    """Call `handler` with the number of each signal of these, for the duration of the block."""
    before = {
        number: signal.signal(number, lambda number, frame: handler(number)) for number in numbers
    }
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


RESIZE_SIGNAL = _known("SIGWINCH")
"""The signal of a changed terminal size, on systems that have it."""


def size(descriptor: int) -> tuple[int, int] | None:
    """Rows and columns of a terminal; None if it is not a terminal."""
    try:
        found = os.get_terminal_size(descriptor)
    except OSError:
        return None
    return found.lines, found.columns


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it, also if another process has made the descriptor non-blocking.

    Raises OSError; BrokenPipeError if the reader is gone.
    """
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
