"""Whether tasks stay up: the monitor period of a service's update policy.

A task is stable once it is healthy, if its container has a probe, or else once it has been RUNNING
for the monitor period. A task that ends by itself before that has crashed. An update that would be
rolled back waits for the period in either case, since a crash within it is what takes it back.

How long a task has been up is measured by managers: from when one learned that it runs
(`Task.running_since`). How long it ran before it ended is measured by its node. So no two clocks
are compared.
"""

from __future__ import annotations

from orchestrator.manager.planning.restart import ran, runs_again
from orchestrator.manager.planning.slots import Slot, is_current
from orchestrator.model.services import Service
from orchestrator.model.specs import FailureAction
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Health, Task

STABLE = float("-inf")
"""The time of a task that need not stay up any longer."""


def stable_at(service: Service, task: Task, monitor: float, now: float) -> float:
    """When a task that works is stable, if it stays up; in the past if it is."""
    undone = service.update.moving and service.policy.failure_action is FailureAction.ROLLBACK
    if task.status.health is Health.HEALTHY and not undone:
        return STABLE
    at = (task.running_since or task.status.started_at) + monitor
    # A time so far ahead was written before the clock was set back.
    return at if at <= now + 2 * monitor else STABLE


def crashed(service: Service, task: Task, monitor: float) -> bool:
    """Whether a task ended by itself before it was stable. Work that is done, and is not to be
    done again, is no crash; nor is what was lost with its node."""
    status = task.status
    if task.desired_state > TaskState.RUNNING:
        return False
    if status.failed:
        return ran(task) < monitor or status.health is Health.UNHEALTHY
    if status.state is not TaskState.COMPLETE:
        return False
    return runs_again(service.spec.task.restart, task) and ran(task) < monitor


def crashes(service: Service, slot: Slot, monitor: float, since: int) -> list[Task]:
    """The tasks of a slot that crashed with the present spec and after a revision of the store,
    oldest first."""
    return [
        task
        for task in slot.tasks
        if task.revision > since and is_current(service, task) and crashed(service, task, monitor)
    ]
