# SPDX-License-Identifier: Apache-2.0
"""Trace spans of tasks: from the call that requested a task, over its node, until it runs.

Planning knows nothing of traces. New tasks get their trace context before they are committed
(`with_trace_contexts`), and spans are recorded from the changes as they come back (`TaskSpans`).
The id of a task's own span is derived from the task's id, so all managers agree on it without
communication, and a new leader ends spans that another one began.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.model.services import Service
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.tasks import Health, Task, TaskStatus
from orchestrator.tracing.spans import Tracer

LASTS = 3600.0
"""Seconds during which new tasks count as caused by a call."""

_GOOD_ENDS = (TaskState.COMPLETE, TaskState.SHUTDOWN)


def with_trace_contexts(
    view: ClusterView, changes: Mapping[str, Change], now: float
) -> list[Change]:
    """The changes, with new tasks in the trace of the call that requested them. `view` has the new
    tasks. A task that replaces another one of the same request gets none: a failure caused it."""
    found: list[Change] = []
    filled: dict[str, Counter[_Part]] = {}
    for change in changes.values():
        task = change.after
        if change.before is None and isinstance(task, Task):
            service = view.services.get(task.service_id)
            if service is not None and service.trace and _by_call(service, task, now):
                if service.id not in filled:
                    tasks = view.tasks_of_service(service.id).values()
                    filled[service.id] = Counter(map(_part, tasks))
                if filled[service.id][_part(task)] == 1:
                    change = Change(None, replace(task, trace=service.trace))
        found.append(change)
    return found


_Part = tuple[int, int, int]


def _part(task: Task) -> _Part:
    """The part of the request that a task fulfils; a second task for it is a replacement."""
    return task.slot, task.spec_version, task.job_run


def _by_call(service: Service, task: Task, now: float) -> bool:
    """Whether a call caused the task, rather than a schedule or a new node."""
    since = service.updated_at
    if task.job_run:
        run = next((run for run in service.job.runs if run.number == task.job_run), None)
        if run is None or run.due_at:
            return False
        since = run.started_at
    return now - since <= LASTS


def trace_context_of(tracer: Tracer, task: Task) -> str:
    """The trace context for starting a task: its own span; for a restarted container the call that
    requested it. Empty if none."""
    if not tracer.on:
        return ""
    if task.run <= 1:
        return tracer.derived(task.trace, task.id)
    return "" if task.restarts else task.trace


class TaskSpans:
    """Records spans from changes of the store, while this manager leads."""

    def __init__(
        self,
        cache: Cache,
        tracer: Tracer,
        leads: Callable[[], bool],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._cache = cache
        self._tracer = tracer
        self._leads = leads
        self._now = now

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Record while the body runs."""
        if not self._tracer.on:
            yield
            return
        async with self._cache.subscribe() as feed:
            feed.on_change = lambda: self.take(feed.take())
            yield

    def take(self, changes: Iterable[Change]) -> None:
        """Process changes."""
        for change in changes:
            if isinstance(change.after, Task) and self._leads():
                before = change.before if isinstance(change.before, Task) else None
                self._task(before, change.after)

    def _task(self, before: Task | None, after: Task) -> None:
        was = before.status if before is not None else TaskStatus()
        if (
            after.run > 1
            or _settled(was)
            or was.state is after.status.state is not TaskState.RUNNING
        ):
            return
        place, wished = (
            trace_context_of(self._tracer, after),
            max(after.created_at, after.not_before),
        )
        node = self._cache.view.nodes.get(after.node_id)
        about = {
            "task": after.id,
            "name": after.name,
            "service": after.service_name,
            "node": node.description.hostname if node else "",
        }
        if was.state < TaskState.ASSIGNED <= after.status.state and after.node_id:
            self._tracer.record(
                "schedule", wished, self._now(), place, **about, waited_for=was.message
            )
        if _settled(after.status):
            self._tracer.record(
                "task",
                wished,
                after.status.at,
                after.trace,
                context=place,
                error=_error(after.status),
                **about,
                image=after.spec.container.image,
            )


def _settled(status: TaskStatus) -> bool:
    """Whether the outcome of its start is known."""
    if status.state is TaskState.RUNNING:
        return status.health is not Health.STARTING
    return is_terminal(status.state)


def _error(status: TaskStatus) -> str:
    if status.state is TaskState.RUNNING:
        return status.health_output or "unhealthy" if status.health is Health.UNHEALTHY else ""
    if status.state in _GOOD_ENDS:
        return ""
    return status.message or f"exit status {status.exit_code}"
