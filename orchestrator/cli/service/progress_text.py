# SPDX-License-Identifier: Apache-2.0
"""Texts about a service's progress and a task's crash."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import ceil
from typing import Any

from orchestrator.cli.output.listings import enum_word
from orchestrator.cli.service.service_rows import has_exit_code, health_text, task_error
from orchestrator.model.convert import from_proto
from orchestrator.model.services import UpdateState
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Health, Task, TaskStatus
from orchestrator.model.units import format_duration


def is_starting(status: TaskStatus) -> bool:
    return status.state <= TaskState.RUNNING and not status.works


def task_text(task: Task, hostnames: Mapping[str, str]) -> str:
    """Such as `running on node2` or `failed on node1: exit status 3`."""
    where = hostnames.get(task.node_id, task.node_id)
    error = task_error(task)
    return (
        enum_word(task.status.state)
        + health_text(task)
        + (f" on {where}" if where else "")
        + (f": {error}" if error else "")
    )


def is_waiting(task: Task) -> bool:
    """Whether a wanted task is pending with a reason."""
    return (
        task.status.state is TaskState.PENDING
        and bool(task.status.message)
        and task.desired_state <= TaskState.RUNNING
    )


def waiting_reasons(tasks: list[Task]) -> Counter[str]:
    """Pending reason → number of tasks."""
    return Counter(task.status.message for task in tasks if is_waiting(task))


def waiting_text(name: str, reason: str, count: int) -> str:
    what = "1 task waits" if count == 1 else f"{count} tasks wait"
    return f"{name}: {what}: {reason}"


def stable_text(seconds: float) -> str:
    """The text of the remaining countdown."""
    return f"verifying for {ceil(seconds)}s that tasks stay up"


def _running(progress: Any) -> int:
    return sum(
        task.status.works and task.desired_state <= TaskState.RUNNING
        for task in map(from_proto, progress.tasks)
    )


def overall(progress: Any) -> str:
    """The progress of a service or job, in one line."""
    running = _running(progress)
    if progress.service.job.runs:
        return f"{progress.completed} of {progress.completions} completed, {running} running"
    text = f"{running} of {progress.desired} running"
    update = progress.service.update
    return f"{text}, {rollback_text(update)}" if _is_rolling_back(update) else text


def _is_rolling_back(update: Any) -> bool:
    return bool(update.state == UpdateState.ROLLING_BACK)


def rollback_text(update: Any) -> str:
    """The reason of a rollback."""
    return f"rolling back: {update.message}"


def reasons(progress: Any) -> str:
    """Why tasks are pending or failed, the most frequent reasons first."""
    tasks = [from_proto(task) for task in progress.tasks]
    wanted = [task for task in tasks if task.desired_state <= TaskState.RUNNING]
    found = Counter(
        f"{enum_word(task.status.state)}: {task_error(task)}" for task in wanted if task_error(task)
    )
    # Earlier failures explain why the current tasks may not run either.
    if not found:
        found = Counter(
            f"failed: {task_error(task)}" for task in tasks if task.status.state is TaskState.FAILED
        )
    return "; ".join(f"{count} {reason}" for reason, count in found.most_common(3))


def crash_text(task: Task, monitor: float) -> str:
    """How a task crashed, such as `web.1 failed within 5s of its start: exit status 1`."""
    status = task.status
    exit_text = f"exit status {status.exit_code}"
    why = task_error(task) or exit_text
    if has_exit_code(task) and exit_text not in why:
        why = f"{why} ({exit_text})"
    if status.state is TaskState.REJECTED:
        return f"{task.name} was rejected: {why}"
    verb = "exited" if status.state is TaskState.COMPLETE else "failed"
    within = f" within {format_duration(monitor)} of its start"
    return f"{task.name} {verb}{'' if status.health is Health.UNHEALTHY else within}: {why}"
