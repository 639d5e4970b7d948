# SPDX-License-Identifier: Apache-2.0
"""The trace of a task, and the spans that a manager records for it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.manager.telemetry.task_traces import (
    LASTS,
    TaskSpans,
    trace_context_of,
    with_trace_contexts,
)
from orchestrator.model.services import JobRun, JobStatus, Service
from orchestrator.model.specs import ServiceSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Health, Task, TaskStatus
from orchestrator.tracing.spans import OFF

S = TaskState
CALL = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
WEB = Service(id="s1", updated_at=100.0, spec=ServiceSpec(name="web"), trace=CALL)
NEW = Task(id="t9", service_id="s1", service_name="web", slot=2, spec_version=1, created_at=101.0)
BATCH = replace(
    WEB, updated_at=0.0, job=JobStatus(runs=(JobRun(2, started_at=100.0), JobRun(1, due_at=90.0)))
)


def made(service: Service, new: Task, *others: Task, now: float = 101.0) -> str:
    view = ClusterView.of([service, *others, new])
    (change,) = with_trace_contexts(view, {"t9": Change(None, new)}, now)
    assert isinstance(change.after, Task)
    assert replace(change.after, trace="") == new
    return change.after.trace


@pytest.mark.parametrize(
    ("service", "new", "others", "now", "trace"),
    [
        (WEB, NEW, [], 101.0, CALL),
        (replace(WEB, trace=""), NEW, [], 101.0, ""),
        # An update's task replaces one of another spec; one beside it has nothing to do with it.
        (WEB, NEW, [replace(NEW, id="t1", spec_version=0)], 101.0, CALL),
        (WEB, NEW, [replace(NEW, id="t1", slot=1)], 101.0, CALL),
        # It replaces one that failed.
        (WEB, NEW, [replace(NEW, id="t1")], 101.0, ""),
        # A node came long after.
        (WEB, NEW, [], 101.0 + LASTS, ""),
        # A run of a job that a user began, and one that the clock did.
        (BATCH, replace(NEW, job_run=2), [replace(NEW, id="t1", job_run=1)], 101.0, CALL),
        (BATCH, replace(NEW, job_run=1), [], 101.0, ""),
        (BATCH, replace(NEW, job_run=7), [], 101.0, ""),
    ],
)
def test_a_task_is_in_the_trace_of_the_call_that_requested_it(
    service: Service, new: Task, others: list[Task], now: float, trace: str
) -> None:
    assert made(service, new, *others, now=now) == trace


def test_only_new_tasks_of_services_get_a_trace_context() -> None:
    box = Task(id="c1", container_name="box", trace="its own")
    changes = [
        Change(None, box),
        Change(NEW, replace(NEW, node_id="n1")),
        Change(NEW, None),
        Change(None, replace(WEB, id="s2")),
    ]
    given = {str(number): change for number, change in enumerate(changes)}
    assert with_trace_contexts(ClusterView.of([WEB, NEW]), given, 101.0) == changes


@dataclass
class Recorder:
    """A tracer that remembers: (name, start, end, parent, context, error)."""

    on: bool = True
    spans: list[tuple[str, float, float, str, str, str]] = field(default_factory=list)

    def span(
        self, name: str, parent: str | None = None, /, *, kind: str = "", **attributes: Any
    ) -> AbstractContextManager[str]:
        return nullcontext("")

    def record(
        self,
        name: str,
        start: float,
        end: float,
        parent: str,
        /,
        *,
        context: str = "",
        error: str = "",
        **attributes: Any,
    ) -> None:
        self.spans.append((name, start, end, parent, context, error))

    def derived(self, parent: str, key: str) -> str:
        return f"{parent}/{key}"

    def close(self) -> None:
        pass


def told(*statuses: TaskStatus, leads: bool = True, **fields: Any) -> list[Any]:
    """The spans of a task that has these statuses one after the other."""
    recorder = Recorder()
    spans = TaskSpans(Cache(MemoryKv(lambda: 0.0)), recorder, lambda: leads, lambda: 102.0)
    before: Task | None = None
    for status in statuses:
        node = "n1" if status.state >= S.ASSIGNED else ""
        after = replace(NEW, trace=CALL, node_id=node, status=status, **fields)
        spans.take([Change(before, after)])
        before = after
    return recorder.spans


PENDING, ASSIGNED = TaskStatus(S.PENDING, at=101.0), TaskStatus(S.ASSIGNED, at=101.5)
RUNNING = TaskStatus(S.RUNNING, at=103.0)
PLACE = f"{CALL}/t9"
SCHEDULED = ("schedule", 101.0, 102.0, PLACE, "", "")


def ends(at: float, error: str = "") -> tuple[str, float, float, str, str, str]:
    return ("task", 101.0, at, CALL, PLACE, error)


@pytest.mark.parametrize(
    ("statuses", "spans"),
    [
        ([PENDING], []),
        ([PENDING, ASSIGNED], [SCHEDULED]),
        ([ASSIGNED, TaskStatus(S.PREPARING, at=102.0), RUNNING], [SCHEDULED, ends(103.0)]),
        ([ASSIGNED, RUNNING, TaskStatus(S.FAILED, at=104.0)], [SCHEDULED, ends(103.0)]),
        # It works when its first probe says so.
        (
            [
                ASSIGNED,
                replace(RUNNING, health=Health.STARTING),
                replace(RUNNING, health=Health.HEALTHY, at=105.0),
                replace(RUNNING, health=Health.UNHEALTHY, at=106.0),
                replace(RUNNING, health=Health.HEALTHY, at=107.0),
            ],
            [SCHEDULED, ends(105.0)],
        ),
        (
            [
                replace(RUNNING, health=Health.STARTING),
                replace(RUNNING, health=Health.UNHEALTHY, at=106.0, health_output="refused"),
            ],
            [SCHEDULED, ends(106.0, "refused")],
        ),
        (
            [ASSIGNED, TaskStatus(S.REJECTED, at=104.0, message="no such image")],
            [SCHEDULED, ends(104.0, "no such image")],
        ),
        (
            [ASSIGNED, TaskStatus(S.FAILED, 104.0, exit_code=3)],
            [SCHEDULED, ends(104.0, "exit status 3")],
        ),
        ([ASSIGNED, TaskStatus(S.COMPLETE, at=104.0)], [SCHEDULED, ends(104.0)]),
    ],
)
def test_the_spans_of_a_task(statuses: list[TaskStatus], spans: list[Any]) -> None:
    assert told(*statuses) == spans


def test_only_the_leader_records_spans() -> None:
    assert told(ASSIGNED, RUNNING, leads=False) == []


def test_a_restart_delay_is_not_waiting_for_a_node() -> None:
    first, _ = told(PENDING, ASSIGNED, RUNNING, not_before=101.8)
    assert first == ("schedule", 101.8, 102.0, PLACE, "", "")


@pytest.mark.parametrize(
    ("task", "place"),
    [
        (replace(NEW, trace=CALL), PLACE),
        (NEW, "/t9"),
        (Task(id="c1", run=1, trace=CALL), f"{CALL}/c1"),
        # Begun again by a user: what is done stands below that call. By its policy: nowhere.
        (Task(id="c1", run=3, trace=CALL), CALL),
        (Task(id="c1", run=4, restarts=1, trace=CALL), ""),
    ],
)
def test_trace_context_of_a_task(task: Task, place: str) -> None:
    assert trace_context_of(Recorder(), task) == place
    assert trace_context_of(OFF, task) == ""
    assert told(RUNNING, run=2) == []
