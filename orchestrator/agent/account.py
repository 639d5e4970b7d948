"""What is known of one task: its status, which is written down and then told to a manager.

What a task only passes through on its way to RUNNING is told and not written down: a crash may
forget it. What it has become is on the disk before anybody hears of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from orchestrator.agent.reporter import Reporter
from orchestrator.agent.statedb import StateDb
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.tasks import TaskStatus

log = logging.getLogger(__name__)


class Account:
    """One task's status; `begun` and `ended` are of its newest run."""

    def __init__(
        self,
        task_id: str,
        status: TaskStatus,
        clock: Callable[[], float],
        boot_id: str,
        db: StateDb,
        reporter: Reporter,
    ) -> None:
        """`status` is what is known so far; it is told at once."""
        self._id = task_id
        self._status = status
        self._clock = clock
        self._boot_id = boot_id
        self._db = db
        self._reporter = reporter
        self.begun = asyncio.Event()
        """Set once it runs or has ended."""
        self.ended = asyncio.Event()
        """Set once it has ended."""
        self._mark()
        self.tell()

    @property
    def status(self) -> TaskStatus:
        """The newest."""
        return self._status

    def tell(self) -> None:
        """Report the status as it is."""
        self._reporter.put(self._id, self._status)

    def advance(self, state: TaskState) -> None:
        """Report a step forward on the way to RUNNING. Nothing is lost if it is forgotten."""
        if self._status.state < state:
            self._status = replace(self._status, state=state, at=self._clock())
            self.tell()

    def say(self, message: str) -> None:
        """Report what it waits for; empty: nothing any more."""
        self._status = replace(self._status, message=message, at=self._clock())
        self.tell()

    def record(self, status: TaskStatus, *, durably: bool = False) -> None:
        """Write a status down, then report it; of a last one only `tell` speaks, when all is
        released. One that the disk refuses is reported all the same and written down later;
        `durably`, it raises CannotRecord, and the status is as it was."""
        self._db.put_status(self._id, status, self._boot_id, defer=not durably)
        self._status = status
        self._mark()
        if is_terminal(status.state):
            log.info(
                "%s: %s",
                status.state.name.lower(),
                status.message or f"exit status {status.exit_code}",
                extra={"task": self._id},
            )
        else:
            self._db.after(self.tell)

    async def wait_writable(self) -> None:
        """Until something can be written down again, and report meanwhile what it waits for."""
        trouble = self._db.trouble
        if trouble:
            self.say(f"waits: {trouble}")
        await self._db.writable()
        if trouble:
            self.say("")

    def record_released(self) -> None:
        """Write down that it holds nothing any more, then report its end."""
        self._db.put_released(self._id)
        self._db.after(self.tell)

    def renew(self, run: int) -> None:
        """Begin anew, with the run of this number. Who waits for the end of the run before has
        it."""
        self._status = TaskStatus(state=TaskState.ACCEPTED, at=self._clock(), run=run)
        self._db.put_renewed(self._id, self._status, self._boot_id)
        self.begun, self.ended = asyncio.Event(), asyncio.Event()
        self._db.after(self.tell)

    def _mark(self) -> None:
        if self._status.state >= TaskState.RUNNING:
            self.begun.set()
        if is_terminal(self._status.state):
            self.ended.set()
