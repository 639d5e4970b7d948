# SPDX-License-Identifier: Apache-2.0
"""Sends a container's lines from its log files to its driver's target, and records how far."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.agent.logs.log_reader import BEGINNING, Line, LogReader, Place
from orchestrator.agent.logs.log_target import PATIENCE, Target, TargetError
from orchestrator.linux.inotify import CREATED, DELETED_ITSELF, MODIFIED, MOVED_TO, Watches
from orchestrator.model.specs import LogConfig


@dataclass(frozen=True, slots=True)
class ShippingState:
    """One record."""

    config: LogConfig
    """With the node's defaults filled in."""
    image_id: str = ""
    place: Place = BEGINNING
    target: Mapping[str, Any] = field(default_factory=dict)
    """See `Target.record`."""


def read_state(path: Path) -> ShippingState | None:
    """The record at `path`; None when there is no usable one. Raises OSError."""
    try:
        found = json.loads(path.read_bytes())
        inode, head, offset, parts = found["place"]
        return ShippingState(
            LogConfig(found["driver"], found["options"]),
            found["image"],
            Place(inode, head, offset, tuple((key, b64decode(part)) for key, part in parts)),
            found["target"],
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return None


def write_state(path: Path, state: ShippingState) -> None:
    """Replace the record. It survives the agent, not a loss of power. Raises OSError."""
    place = state.place
    record = {
        "driver": state.config.driver,
        "options": state.config.options,
        "image": state.image_id,
        "place": [
            place.inode,
            place.head,
            place.offset,
            [(stream, b64encode(part).decode()) for stream, part in place.parts],
        ],
        "target": state.target,
    }
    draft = path.with_name(f".{path.name}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        json.dump(record, file)
    draft.replace(path)


def advanced(state: ShippingState, place: Place, target: Mapping[str, Any]) -> ShippingState:
    """The record at a later position."""
    return replace(state, place=place, target=target)


log = logging.getLogger(__name__)

_EVENTS = MODIFIED | MOVED_TO | CREATED | DELETED_ITSELF
_PACE = 0.05
"""Seconds between two reads of a log that is written continuously."""
_SAVE = 1.0
"""Seconds between two records of the position."""
_RETRY_FIRST, _RETRY_MOST = 0.5, 10.0
"""Seconds between attempts to reach a target. The log is read meanwhile."""
_FAREWELL = 3.0
"""Seconds for the last lines of a removed container."""


@dataclass(slots=True)
class Tally:
    """The numbers of lines of one driver's containers."""

    sent: int = 0
    dropped: int = 0


class Shipper:
    """Ships the lines of one container; `run` until cancelled, `finish` ships the remaining
    ones."""

    def __init__(
        self,
        task_id: str,
        source: LogReader,
        target: Callable[[], Target],
        state: ShippingState,
        path: Path,
        *,
        buffer: int,
        watches: Watches,
        tally: Tally,
        ended: Callable[[], bool],
    ) -> None:
        """`target` makes it, which may fail; `path`: where `state` is recorded; `buffer`: bytes of
        the log that may wait for the target before the oldest lines are dropped; `ended`: whether
        the container writes no more."""
        self._id = task_id
        self._source = source
        self._make = target
        self._target: Target | None = None
        self._state = state
        self._path = path
        self._buffer = buffer
        self._watches = watches
        self._tally = tally
        self._ended = ended
        self._waiting: list[Line] = []
        self._place = state.place
        self._saved = self._dropping = 0.0
        self._dirty = False
        self._dropped = 0
        """Lines dropped since that was last reported."""
        self._failing = ""

    async def run(self) -> None:
        """Send lines as they are written."""
        try:
            retry = _RETRY_FIRST
            while True:
                try:
                    if await self._step():
                        retry = _RETRY_FIRST
                        continue
                except (TargetError, OSError) as error:
                    self._failed(str(error))
                    await self._pause(retry)
                    retry = min(2 * retry, _RETRY_MOST)
                    continue
                await self._idle()
        finally:
            self._save()

    async def finish(self) -> None:
        """Send the remaining lines of an ended container, within a time limit."""
        try:
            async with asyncio.timeout(_FAREWELL):
                while await self._step(last=True):
                    pass
        except (TargetError, OSError) as error:
            self._failing = self._failing or str(error) or "too slow"
        finally:
            self._count_dropped(len(self._waiting) + self._source.skip(0))
            self._report(final=True)

    async def _step(self, *, last: bool = False) -> bool:
        """Send the next lines; return whether there were any. Raises TargetError."""
        if not self._waiting:
            self._waiting = self._source.read()
            if not self._waiting and self._source.pending and (last or self._ended()):
                self._waiting = self._source.flush()
            if not self._waiting:
                self._place = self._source.here
                return False
        if self._target is None:
            self._target = await asyncio.to_thread(self._make)
        taken = await self._target.send(self._waiting)
        if taken:
            self._place = self._waiting[taken - 1].place
            del self._waiting[:taken]
            self._tally.sent += taken
            self._dirty = True
            self._recovered()
        self._bound()
        if asyncio.get_running_loop().time() - self._saved >= _SAVE:
            self._save()
        # Other tasks of the event loop run between two blocks.
        await asyncio.sleep(0)
        return True

    async def _idle(self) -> None:
        """Wait until the log has changed."""
        if self._source.missed:
            self._source.missed = False
            log.warning(
                "log lines missing: files were rotated away unread", extra={"task": self._id}
            )
        try:
            changed = self._watches.once(self._source.places[0].parent, _EVENTS)
        except OSError:
            changed = asyncio.Event()
        # Requested first, so that no later write goes unnoticed.
        self._source.refresh()
        if self._source.fresh:
            return
        due = _SAVE if self._dirty or self._source.pending else None
        try:
            async with asyncio.timeout(due):
                await changed.wait()
        except TimeoutError:
            self._save()
        await asyncio.sleep(_PACE)

    async def _pause(self, seconds: float) -> None:
        """Wait before the next attempt to reach the target; keep the buffer within its limit."""
        while seconds > 0:
            await asyncio.sleep(min(seconds, PATIENCE))
            seconds -= PATIENCE
            self._source.refresh()
            self._bound()

    def _bound(self) -> None:
        """Drop the oldest lines in excess of the buffer."""
        self._source.refresh()
        if not self._source.over(self._buffer):
            return
        self._count_dropped(len(self._waiting) + self._source.skip(self._buffer))
        self._waiting.clear()
        self._place, self._dirty = self._source.here, True

    def _count_dropped(self, lines: int) -> None:
        self._dropped += lines
        self._tally.dropped += lines
        if self._dropped and asyncio.get_running_loop().time() - self._dropping >= _RETRY_MOST:
            self._report()

    def _report(self, *, final: bool = False) -> None:
        if self._dropped:
            self._dropping = asyncio.get_running_loop().time()
            log.warning(
                "log lines dropped: the log target is too slow",
                extra={
                    "task": self._id,
                    "driver": self._state.config.driver,
                    "lines": self._dropped,
                    **({"error": self._failing} if self._failing else {}),
                    **({"removed": True} if final else {}),
                },
            )
            self._dropped = 0

    def _failed(self, reason: str) -> None:
        if self._target is not None:
            self._target.close()
        if reason != self._failing:
            self._failing = reason
            log.warning(
                "log target refuses lines; they are buffered on this node",
                extra={"task": self._id, "driver": self._state.config.driver, "error": reason},
            )

    def _recovered(self) -> None:
        if self._failing:
            self._failing = ""
            log.info(
                "log target takes lines again",
                extra={"task": self._id, "driver": self._state.config.driver},
            )
            self._report()

    def _save(self) -> None:
        self._saved = asyncio.get_running_loop().time()
        if not self._dirty:
            return
        try:
            record = self._target.record() if self._target is not None else self._state.target
            self._state = advanced(self._state, self._place, record)
            write_state(self._path, self._state)
            self._dirty = False
        except OSError as error:
            log.warning(
                "position in a log cannot be recorded; its last lines may be sent again",
                extra={"task": self._id, "error": error.strerror},
            )

    def close(self) -> None:
        """Close its files and its target."""
        self._source.close()
        if self._target is not None:
            self._target.close()
