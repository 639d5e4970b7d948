# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C in code that must not stop halfway.

Python raises KeyboardInterrupt between any two instructions of the main thread, also inside
`Condition.wait`: the lock may then not be held where it is released, and RuntimeError takes the
place of KeyboardInterrupt (the documentation of `signal` warns of both). A `deferred` section ends
first.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

_main = threading.main_thread().ident
_depth = 0
"""Sections that the main thread is in."""
_pressed = False
"""Whether Ctrl-C was pressed since the outermost section began."""
_wake: Callable[[], None] | None = None
"""Ends the wait that the main thread is in."""


def install() -> None:
    """Make sections work; until then they defer nothing. Called by the main thread."""
    signal.signal(signal.SIGINT, _interrupt)


def uninstall() -> None:
    """Undo `install`, for asyncio: a loop cancels its main task on Ctrl-C only if the handler of
    SIGINT is Python's own."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(*_: Any) -> None:
    global _pressed
    if not _depth:
        raise KeyboardInterrupt
    _pressed = True
    if _wake is not None:
        _wake()


class _Deferred:
    """See `deferred`."""

    def __enter__(self) -> None:
        global _depth
        if threading.get_ident() == _main:
            _depth += 1

    def __exit__(self, *_: object) -> None:
        global _depth
        if threading.get_ident() == _main:
            _depth -= 1
            if not _depth:
                _raise_if_pressed()


deferred = _Deferred()
"""A section, as a context manager; sections nest. Ctrl-C inside it raises KeyboardInterrupt at its
end. It is a no-op in other threads than the main thread, where signals are never handled."""


def wait(condition: threading.Condition, timeout: float | None, wake: Callable[[], None]) -> None:
    """Wait for the condition, whose lock is held, for at most `timeout` seconds. In a section,
    Ctrl-C ends the wait and raises KeyboardInterrupt, with the lock held.

    `wake` makes another thread notify the condition once it can acquire the lock. It is called by
    the signal's handler, so it must not acquire a lock itself.
    """
    global _wake
    if threading.get_ident() != _main or not _depth:
        condition.wait(timeout)
        return
    _wake = wake
    try:
        if not _pressed:
            condition.wait(timeout)
    finally:
        _wake = None
    _raise_if_pressed()


def _raise_if_pressed() -> None:
    global _pressed
    if _pressed:
        _pressed = False
        raise KeyboardInterrupt
