# SPDX-License-Identifier: Apache-2.0
"""Progress on a terminal: a line per task, redrawn in place. Imported only on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from orchestrator.cli.app.interrupts import deferred
from orchestrator.cli.service.progress_text import (
    overall,
    stable_text,
    task_text,
    waiting_reasons,
    waiting_text,
)
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task

_COLOURS = {TaskState.RUNNING: "green", TaskState.PENDING: "yellow"}


class LiveView:
    """Redraws the service's progress in place; tasks that do not fit the terminal are counted."""

    def __init__(
        self, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._console = console or Console(stderr=True, highlight=False)
        self._head = ""
        self._stable_at = 0.0
        """Time at which all tasks should be stable."""
        self._lines: list[Text] = []
        self._live = Live(
            console=self._console,
            refresh_per_second=12,
            transient=False,
            get_renderable=self._picture,
        )

    def __enter__(self) -> Self:
        with deferred:
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        with deferred:
            self._live.__exit__(*error)

    def show(self, progress: Any, tasks: list[Task], hostnames: Mapping[str, str]) -> None:
        """Redraw the progress of the service."""
        name = progress.service.spec.name
        self._head = f"{name}: {overall(progress)}"
        self._stable_at = self._clock() + progress.stable_in if progress.stable_in else 0.0
        lines = [
            Text(waiting_text(name, reason, count), style="yellow")
            for reason, count in waiting_reasons(tasks).items()
        ]
        wanted = [task for task in tasks if task.desired_state <= TaskState.RUNNING]
        room = max(1, self._console.height - len(lines) - 3)
        if len(wanted) > room:
            # Running tasks are the least interesting.
            wanted.sort(key=lambda task: task.status.state is TaskState.RUNNING)
        shown = sorted(wanted[:room], key=lambda task: (task.slot, task.created_at))
        width = max((len(task.name) for task in shown), default=0)
        for task in shown:
            line = Text(f"{task.name:{width}}  ", no_wrap=True, overflow="ellipsis")
            style = _COLOURS.get(task.status.state, "cyan")
            lines.append(line.append(task_text(task, hostnames), style=style))
        if len(wanted) > room:
            lines.append(Text(f"… and {len(wanted) - room} more"))
        self._lines = lines
        with deferred:
            self._live.refresh()

    def _picture(self) -> Group:
        """The current picture, with the remaining countdown."""
        if not self._head:
            return Group()
        left = self._stable_at - self._clock()
        text = f"{self._head}, {stable_text(left)}" if left > 0 else self._head
        return Group(Text(text, style="bold"), *self._lines)
