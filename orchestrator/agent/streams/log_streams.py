# SPDX-License-Identifier: Apache-2.0
"""Sends logs of tasks to a manager, many lines per frame."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.runtime.io import logfiles
from orchestrator.agent.runtime.io.logfiles import LogRecord
from orchestrator.agent.tasks.runner import TaskRunner
from orchestrator.model.formats import log_options
from orchestrator.model.formats.log_options import NONE
from orchestrator.model.specs import LogConfig
from orchestrator.pb import control_pb2, dispatch_pb2

_LONGEST_LINE = 1 << 16
"""Maximum bytes of a log line that is joined from its parts."""


class LogStreams:
    """Serves requests for the logs of this node's tasks."""

    def __init__(
        self,
        runners: Mapping[str, TaskRunner],
        places: Callable[[str], tuple[Path, ...]],
        clock: Callable[[], float] = time.time,
        *,
        config: Callable[[str], LogConfig] = lambda task_id: LogConfig(),
    ) -> None:
        """`places` returns the paths of a task's newest log file, before and after the removal of
        its container; `config` the logging driver that its container was created with."""
        self._runners = runners
        self._places = places
        self._config = config
        self._clock = clock

    async def send(
        self, call: Any, opened: dispatch_pb2.OpenTunnel, _: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        """Send the requested lines. Raises RuntimeFailure."""
        order = opened.logs
        runner = self._runners.get(order.task_id)
        if runner is None:
            raise RuntimeFailure(f"this node has no task {order.task_id}")
        if order.follow:
            await runner.begun.wait()
        if self._config(order.task_id).driver == NONE:
            raise RuntimeFailure(log_options.unreadable(runner.task.name))
        left = order.until - self._clock() if order.until else None
        # Lines up to a future time have to be waited for; past ones can be counted.
        follow = order.follow and (left is None or left > 0)
        last = order.tail if order.tail >= 0 and left is not None and not follow else None
        lines = _Lines(order.until or None)
        kept: deque[LogRecord] = deque(maxlen=last)
        records = logfiles.read(
            *self._places(order.task_id),
            tail=order.tail if order.tail >= 0 and last is None else None,
            since=order.since or None,
            follow=follow,
            ended=runner.ended,
        )
        try:
            async with asyncio.timeout(left if follow else None) as scope, aclosing(records):
                async for some in records:
                    whole = lines.join(some)
                    if last is not None:
                        kept.extend(whole)
                    elif whole:
                        await call.write(_frame(whole))
                    if lines.over:
                        break
        except TimeoutError:
            if not scope.expired():
                raise
        if kept:
            await call.write(_frame(kept))
        return dispatch_pb2.TunnelResult()


class _Lines:
    """Joins lines that were written in parts."""

    def __init__(self, until: float | None) -> None:
        self._until = until
        self._parts: dict[str, bytes] = {}
        self.over = False
        """Whether the end of the requested time is reached."""

    def join(self, records: Iterable[LogRecord]) -> list[LogRecord]:
        """The lines completed by these records."""
        whole: list[LogRecord] = []
        for record in records:
            if self._until is not None and record.time > self._until:
                self.over = True
                break
            if record.partial or record.stream in self._parts:
                line = self._parts.pop(record.stream, b"") + record.line
                if record.partial and len(line) < _LONGEST_LINE:
                    self._parts[record.stream] = line
                    continue
                record = LogRecord(record.stream, record.time, line)
            whole.append(record)
        return whole


def _frame(records: Iterable[LogRecord]) -> dispatch_pb2.Frame:
    batch = control_pb2.LogBatch(
        records=[
            control_pb2.LogRecord(
                stderr=record.stream == "stderr",
                at=record.time,
                line=record.line,
                notice=record.stream == logfiles.NOTICE,
            )
            for record in records
        ]
    )
    return dispatch_pb2.Frame(log=batch)
