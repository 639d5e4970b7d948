# SPDX-License-Identifier: Apache-2.0
"""Statuses reach the manager at least once, newest first, never backwards."""

from __future__ import annotations

from orchestrator.agent.tasks.status_reporter import StatusReporter
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Health, TaskStatus

STARTING = TaskStatus(state=TaskState.STARTING)
RUNNING = TaskStatus(state=TaskState.RUNNING)
FAILED = TaskStatus(state=TaskState.FAILED)


class Woken:
    count = 0

    def __call__(self) -> None:
        self.count += 1


def test_a_report_has_the_newest_status_of_each_task() -> None:
    wake = Woken()
    reporter = StatusReporter(wake)
    reporter.put("a", STARTING)
    reporter.put("a", RUNNING)
    reporter.put("b", STARTING)
    assert wake.count == 3
    assert reporter.take() == (1, {"a": RUNNING, "b": STARTING})
    assert reporter.take() is None


def test_a_status_never_goes_backwards_nor_repeats() -> None:
    wake = Woken()
    reporter = StatusReporter(wake)
    reporter.put("a", RUNNING)
    reporter.put("a", STARTING)
    reporter.put("a", RUNNING)
    assert wake.count == 1
    assert reporter.take() == (1, {"a": RUNNING})


def test_unacknowledged_reports_are_sent_again() -> None:
    reporter = StatusReporter(Woken())
    reporter.put("a", RUNNING)
    reporter.take()
    reporter.put("b", RUNNING)
    reporter.take()
    reporter.acknowledge(1)
    assert reporter.unacknowledged == {"b"}
    reporter.retry()
    assert reporter.take() == (3, {"b": RUNNING})
    reporter.acknowledge(3)
    reporter.retry()
    assert reporter.take() is None


def test_an_acknowledgement_of_an_older_report_does_not_cover_a_newer_status() -> None:
    reporter = StatusReporter(Woken())
    reporter.put("a", RUNNING)
    reporter.take()
    reporter.put("a", FAILED)
    reporter.take()
    reporter.acknowledge(1)
    assert reporter.unacknowledged == {"a"}


def test_a_new_session_gets_the_complete_state() -> None:
    reporter = StatusReporter(Woken())
    reporter.put("a", RUNNING)
    reporter.take()
    reporter.acknowledge(1)
    reporter.restart()
    assert reporter.take() == (2, {"a": RUNNING})


def test_a_forgotten_task_is_not_reported() -> None:
    reporter = StatusReporter(Woken())
    reporter.put("a", RUNNING)
    reporter.forget("a")
    reporter.restart()
    assert reporter.take() is None


def test_only_decisive_states_are_urgent() -> None:
    reporter = StatusReporter(Woken())
    assert not reporter.has_unsent
    reporter.put("a", STARTING)
    assert (reporter.has_unsent, reporter.is_urgent) == (True, False)
    reporter.put("b", RUNNING)
    assert reporter.is_urgent
    assert reporter.take() == (1, {"a": STARTING, "b": RUNNING})
    assert (reporter.has_unsent, reporter.is_urgent) == (False, False)


def test_a_clock_that_is_set_back_hides_no_status() -> None:
    reporter = StatusReporter(lambda: None)
    reporter.put("a", TaskStatus(TaskState.RUNNING, at=100.0, health=Health.STARTING))
    reporter.take()
    reporter.put("a", TaskStatus(TaskState.RUNNING, at=95.0, health=Health.HEALTHY))
    taken = reporter.take()
    assert taken is not None
    assert taken[1]["a"].health is Health.HEALTHY
    assert 100.0 < taken[1]["a"].at < 100.001, "newer than the last report"
