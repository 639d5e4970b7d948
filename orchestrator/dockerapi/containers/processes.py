# SPDX-License-Identifier: Apache-2.0
"""What a gateway remembers of processes that it serves: execs, sessions, sizes of terminals."""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from orchestrator.dockerapi.http.errors import conflict

_MOST_EXECS = 1000
"""Execs whose end is remembered."""
_MOST_SIZES = 1000
"""Created containers whose terminal's first size is remembered."""


class Terminal(Protocol):
    """A session whose process may have a terminal."""

    def resize(self, rows: int, columns: int) -> None:
        """Give it this size."""


@dataclass(slots=True)
class Exec:
    """A process that was started by exec."""

    running: bool = True
    exit_code: int | None = None


class Execs:
    """The newest execs that this gateway started, by their ids."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_id: OrderedDict[str, Exec] = OrderedDict()

    def start(self, id: str) -> Exec:
        """Record a start. Raises ApiError for one that was started before."""
        with self._lock:
            if id in self._by_id:
                raise conflict(f"Error: Exec command {id[:64]} has already run")
            found = self._by_id[id] = Exec()
            while len(self._by_id) > _MOST_EXECS:
                self._by_id.popitem(last=False)
            return found

    def get(self, id: str) -> Exec | None:
        """None: not started here."""
        with self._lock:
            return self._by_id.get(id)


class FirstSizes:
    """The sizes that terminals of the newest containers created here have at their start, by the
    container's id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_id: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def add(self, id: str, rows: int, columns: int) -> None:
        """The size that its creator has."""
        with self._lock:
            self._by_id[id] = (rows, columns)
            while len(self._by_id) > _MOST_SIZES:
                self._by_id.popitem(last=False)

    def take(self, id: str) -> tuple[int, int] | None:
        """(rows, columns), for the first client that attaches; None: its creator has no terminal,
        or another client has attached."""
        with self._lock:
            return self._by_id.pop(id, None)


class Sessions:
    """The sessions of this gateway by Docker's id of their container or exec, for their
    terminals' sizes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_id: dict[str, set[Terminal]] = {}

    def add(self, id: str, session: Terminal) -> None:
        """A session that is served now."""
        with self._lock:
            self._by_id.setdefault(id, set()).add(session)

    def remove(self, id: str, session: Terminal) -> None:
        """It has ended."""
        with self._lock:
            rest = self._by_id.get(id, set())
            rest.discard(session)
            if not rest:
                self._by_id.pop(id, None)

    def resize(self, id: str, rows: int, columns: int) -> bool:
        """Resize the terminals; whether there are any."""
        with self._lock:
            found = list(self._by_id.get(id, ()))
        for session in found:
            with suppress(OSError):
                session.resize(rows, columns)
        return bool(found)
