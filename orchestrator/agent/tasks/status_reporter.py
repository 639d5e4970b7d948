# SPDX-License-Identifier: Apache-2.0
"""Reports task statuses to the manager: the newest of each task, until it is acknowledged.

A start passes six states in about 20 ms. The reporter keeps one status per task, so a report holds
the newest at the moment the session sends it: no queue, and no older state behind a newer one.
Transient states may be delayed (`is_urgent`), and are skipped when a later one follows in time:
each reported state is a transaction of the store.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from orchestrator.model.states import TaskState
from orchestrator.model.tasks import TaskStatus

TRANSIENT = frozenset({TaskState.ACCEPTED, TaskState.PREPARING, TaskState.STARTING})
"""States that no decision depends on."""


class StatusReporter:
    """Statuses that the manager has not acknowledged. `wake` is called when one is to be sent."""

    def __init__(
        self, wake: Callable[[], None], changed: Callable[[str], None] = lambda task_id: None
    ) -> None:
        """`changed` is called with each task whose status has changed."""
        self._wake = wake
        self.changed = changed
        self._newest: dict[str, TaskStatus] = {}
        self._unsent: set[str] = set()
        self._sent: dict[str, int] = {}
        """Task → sequence of the last report with it, until that is acknowledged."""
        self._sequence = 0

    def put(self, task_id: str, status: TaskStatus) -> None:
        """Report `status`, unless a later state of this task is known: the pair of run and state
        only grows. So does the time within a state, even if the clock steps back: by it a manager
        orders reports that overtake each other."""
        known = self._newest.get(task_id)
        if known is not None:
            if known == status or (known.run, known.state) > (status.run, status.state):
                return
            same = (known.run, known.state) == (status.run, status.state)
            if same and status.at <= known.at:
                status = replace(status, at=math.nextafter(known.at, math.inf))
        self._newest[task_id] = status
        self._unsent.add(task_id)
        self.changed(task_id)
        self._wake()

    def forget(self, task_id: str) -> None:
        """Drop a task that is no longer assigned."""
        self._newest.pop(task_id, None)
        self._unsent.discard(task_id)
        self._sent.pop(task_id, None)
        self.changed(task_id)

    def restart(self) -> None:
        """Send everything again, in a new session."""
        self._unsent = set(self._newest)
        self._sent.clear()
        if self._unsent:
            self._wake()

    def retry(self) -> None:
        """Send again what is not acknowledged."""
        if self._sent:
            self._unsent.update(self._sent)
            self._wake()

    def take(self) -> tuple[int, Mapping[str, TaskStatus]] | None:
        """The next report: its sequence and statuses by task id; None: there is nothing to send."""
        if not self._unsent:
            return None
        self._sequence += 1
        report = {task_id: self._newest[task_id] for task_id in sorted(self._unsent)}
        self._sent.update(dict.fromkeys(report, self._sequence))
        self._unsent.clear()
        return self._sequence, report

    @property
    def is_urgent(self) -> bool:
        """Whether a status must be sent immediately."""
        return any(self._newest[task_id].state not in TRANSIENT for task_id in self._unsent)

    @property
    def has_unsent(self) -> bool:
        """Whether a status is to be sent."""
        return bool(self._unsent)

    def acknowledge(self, sequence: int) -> None:
        """The manager has stored every report up to `sequence`."""
        self._sent = {task: sent for task, sent in self._sent.items() if sent > sequence}

    @property
    def unacknowledged(self) -> frozenset[str]:
        """Ids of tasks whose newest status the manager has not confirmed."""
        return frozenset(self._unsent | self._sent.keys())
