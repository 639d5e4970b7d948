# SPDX-License-Identifier: Apache-2.0
"""A manager's audit trail, written to files by a thread of its own.

Two logs, so that a client whose calls are refused over and over cannot displace the entries of
others: `audit.log` has accepted calls, `refused.log` refused ones. Calls never wait for the disk.
Failed writes are retried until the queue is full; from then on entries are lost, which is counted
(`lost`) and visible in the log, since entries are numbered.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import logging
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path

from orchestrator.manager.audit.audit_files import Journal, Record, RotatedLog

log = logging.getLogger(__name__)

FILE_BYTES, FILES = 10 << 20, 10
"""Size and number of files of each log."""
_MAX_QUEUE = 10_000
"""Longest queue of entries that wait for the disk."""
_BATCH = 500
_BATCH_DELAY = 0.05
"""Seconds that an entry waits for others, since each write syncs the disk."""
_RETRY = 1.0
"""Seconds between attempts to repeat a failed write."""
_MAX_FOLLOWER_QUEUE = 10_000
"""Longest queue of entries for a follower."""

REFUSED = frozenset({"PERMISSION_DENIED", "UNAUTHENTICATED"})
FILTERS = ("user", "role", "method", "kind", "name", "id", "result", "from", "via", "request")


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One call."""

    at: float
    """When it began, in seconds since the epoch."""
    user: str
    role: str
    certificate: str
    via: str
    address: str
    method: str
    kind: str
    name: str
    id: str
    result: str
    seconds: float
    request: str
    manager: str


_FIELDS = tuple(each.name for each in fields(AuditEntry))
_ENCODER = json.JSONEncoder(separators=(",", ":"))


class FollowerLagging(Exception):
    """A follower is too slow, and has missed entries."""


class Follower:
    """Receives new entries."""

    def __init__(self) -> None:
        self._records: deque[Record] = deque()
        self._wake = asyncio.Event()
        self._lost = False

    def push(self, record: Record) -> None:
        """Add an entry."""
        if len(self._records) < _MAX_FOLLOWER_QUEUE:
            self._records.append(record)
        else:
            self._lost = True
        self._wake.set()

    async def next(self) -> list[Record]:
        """Wait for entries, and take them. Raises FollowerLagging."""
        await self._wake.wait()
        self._wake.clear()
        if self._lost:
            raise FollowerLagging
        taken = list(self._records)
        self._records.clear()
        return taken


class AuditTrail:
    """Records and returns entries. `record` is for the event loop's thread."""

    def __init__(
        self,
        folder: Path,
        *,
        journal: Journal | None = None,
        file_bytes: int = FILE_BYTES,
        files: int = FILES,
        waiting: int = _MAX_QUEUE,
    ) -> None:
        self._folder = folder
        self._logs = {
            name: RotatedLog(folder, name, file_bytes, files) for name in ("audit", "refused")
        }
        self._journal = journal or Journal()
        self._pending: list[tuple[str, str]] = []
        """Lines, each with its log, that are handed to the thread at the next turn of the loop:
        waking it for each would cost more than everything else."""
        self._timer: asyncio.TimerHandle | None = None
        self._queue: queue.SimpleQueue[list[tuple[str, str]] | threading.Event]
        self._queue = queue.SimpleQueue()
        self._handed = self._settled = 0
        """Number of lines handed to the thread, and of those it has finished."""
        self._failing = False
        """Whether writing to the disk fails."""
        self._most = waiting
        self._followers: set[Follower] = set()
        self._thread = threading.Thread(target=self._write_all, name="audit", daemon=True)
        self._closing = threading.Event()
        self.lost: Callable[[int], None] = lambda count: None
        """Called with the number of lost entries, in any thread."""
        self.recorded: Callable[[], None] = lambda: None
        """Called for each entry."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Write while the body runs, and the rest at its end."""
        for each in self._logs.values():
            try:
                each.open()
            except OSError as error:
                log.error("the audit trail cannot be read", extra={"error": error})
        self._thread.start()
        try:
            yield
        finally:
            self._hand_over()
            self._closing.set()
            self._queue.put(threading.Event())
            self._thread.join()
            self._journal.close()

    def record(self, entry: AuditEntry) -> None:
        """Record an entry asynchronously."""
        name = "refused" if entry.result in REFUSED else "audit"
        rotated = self._logs[name]
        rotated.sequence += 1
        record: Record = {"seq": rotated.sequence}
        record |= {field: getattr(entry, field) for field in _FIELDS}
        self.recorded()
        if len(self._pending) + self._handed - self._settled >= self._most:
            self.lost(1)
        else:
            self._pending.append((name, _ENCODER.encode(record)))
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(_BATCH_DELAY, self._hand_over)
        for follower in self._followers:
            follower.push({**record, "log": name})

    def _hand_over(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pending:
            self._handed += len(self._pending)
            self._queue.put(self._pending)
            self._pending = []

    @contextmanager
    def follow(self) -> Iterator[Follower]:
        """A follower of the entries from now on."""
        follower = Follower()
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)

    async def written(self) -> None:
        """Wait until the entries so far are in the files, or writing them has failed."""
        self._hand_over()
        done = threading.Event()
        self._queue.put(done)

        def wait() -> None:
            while not (done.wait(_BATCH_DELAY) or self._failing):
                pass

        await asyncio.to_thread(wait)

    @property
    def marks(self) -> dict[str, int]:
        """Log → number of its newest entry."""
        return {name: each.sequence for name, each in self._logs.items()}

    async def entries(self, wanted: EntryFilter, tail: int = 0) -> AsyncIterator[list[Record]]:
        """The entries in the files, oldest first; with `tail` only that many of the newest."""
        if tail:
            yield await asyncio.to_thread(self._newest, wanted, tail)
            return
        found = self._in_order(wanted)
        while chunk := await asyncio.to_thread(lambda: list(islice(found, _BATCH))):
            yield chunk

    def _newest(self, wanted: EntryFilter, tail: int) -> list[Record]:
        both = (_named(name, each.backwards()) for name, each in self._logs.items())
        found = filter(wanted.holds, heapq.merge(*both, key=_end_time, reverse=True))
        return list(islice(found, tail))[::-1]

    def _in_order(self, wanted: EntryFilter) -> Iterator[Record]:
        both = (
            _with_gaps(_named(name, each.forwards(wanted.since)))
            for name, each in self._logs.items()
        )
        return filter(wanted.holds, heapq.merge(*both, key=_end_time))

    def _write_all(self) -> None:
        while True:
            item = self._queue.get()
            if isinstance(item, threading.Event):
                item.set()
                if self._closing.is_set() and self._queue.empty():
                    return
                continue
            for name in self._logs:
                lines = [line for log_name, line in item if log_name == name]
                for line in lines:
                    self._journal.send(line, f"orc-{name}")
                if lines:
                    self._write(name, lines)
            self._settled += len(item)

    def _write(self, name: str, lines: list[str]) -> None:
        """Write lines, retrying on errors."""
        while True:
            try:
                self._logs[name].append(lines)
            except OSError as error:
                if not self._failing:
                    log.error(
                        "the audit trail cannot be written; entries are kept in memory",
                        extra={"folder": self._folder, "error": error},
                    )
                self._failing = True
                if self._closing.wait(_RETRY):
                    self.lost(len(lines))
                    return
            else:
                self._failing = False
                return


def _named(name: str, records: Iterable[Record]) -> Iterator[Record]:
    for record in records:
        yield {**record, "log": name}


def _with_gaps(records: Iterable[Record]) -> Iterator[Record]:
    """The entries of one log, each with the number of missing entries before it."""
    last = 0
    for record in records:
        missing = record["seq"] - last - 1 if last else 0
        last = record["seq"]
        yield {**record, "missing": missing} if missing > 0 else record


def _end_time(record: Record) -> float:
    """The order of entries: they are recorded when their calls end."""
    return float(record["at"] + record["seconds"])


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """A filter of entries."""

    since: float = 0.0
    until: float = 0.0
    """0: unlimited."""
    filters: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Key → values, which are alternatives."""
    marks: Mapping[str, int] = field(default_factory=dict)
    """Log → number of the newest entry to include; all if missing."""

    def holds(self, record: Record) -> bool:
        """Whether an entry matches."""
        if record["at"] < self.since or (self.until and record["at"] > self.until):
            return False
        if record["seq"] > self.marks.get(record["log"], record["seq"]):
            return False
        return all(
            any(_holds(record, key, value) for value in values)
            for key, values in self.filters.items()
        )


def _holds(record: Record, key: str, value: str) -> bool:
    text = str(record.get("address" if key == "from" else key, ""))
    match key:
        case "from":
            return value in (text, text.rpartition(":")[0].strip("[]"))
        case "id" | "request":
            return text.startswith(value)
        case "method":
            return value in (text, text.partition(".")[2])
        case "result" | "role" | "kind" | "via":
            return text.lower() == value.lower()
        case _:
            return text == value
