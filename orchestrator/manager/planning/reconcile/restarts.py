# SPDX-License-Identifier: Apache-2.0
"""Restarts: when a slot is refilled after its task has ended, and whether tasks stay up.

The restart policy governs tasks that ended by themselves, or that were lost with their node.
What the manager itself stopped (an update, a drained node) is replaced whatever the policy.

**Back-off.** The first restart comes `delay` after the end; each further one in a row doubles
it, up to five minutes (or `delay`, if that is longer). With a delay of 0 the second restart
waits one second, so that a crash loop is never a busy loop. A task that ran for ten seconds ends
the row: long enough that restarting at `delay` costs little, and short enough that a service
which works and then fails differs from one that never worked. A COMPLETE that comes sooner counts
as well: a loop of successes is a loop. A task lost with its node, or with its agent, says nothing
about itself: its replacement starts at once, with a row of its own. All of this is read from the
tasks (`attempt`, `not_before`), so that a new leader decides the same.

**Stability.** A task is stable once it is healthy, if its container has a health check, or else
once it has been RUNNING for the update policy's monitor period. A task that ends by itself before
that has crashed. An update that would be rolled back waits for the period in either case, since a
crash within it triggers the rollback. Managers measure how long a task has been up (from
`Task.running_since`); its node measures how long it ran before it ended. So no two clocks are
compared.
"""

from __future__ import annotations

from orchestrator.manager.planning.slots import Slot, Start, ended, is_current
from orchestrator.model.services import Service
from orchestrator.model.specs import FailureAction, RestartCondition, RestartPolicy
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Health, Task

SETTLED = 10.0
"""Seconds of running after which a task ends the row of failures."""

LONGEST_DELAY = 300.0
"""Seconds at which back-off stops growing."""

_LEAST_STEP = 0.5
"""Minimum base of the back-off in seconds."""


def decide_restart(service: Service, slot: Slot, now: float) -> Start | None:
    """How to fill a slot whose newest task has ended by itself or was lost; None: leave it so."""
    policy, task = service.spec.task.restart, slot.newest
    if task.status.state is TaskState.ORPHANED:
        return _after_loss(policy)
    if task.desired_state > TaskState.RUNNING:
        return Start()
    # Its node stopped it while disconnected, or its agent ended during the start.
    if task.status.state is TaskState.SHUTDOWN or task.status.lost:
        return _after_loss(policy)
    if not runs_again(policy, task) or _exhausted(policy, slot):
        return None
    attempt = 1 if _settled(task) else task.attempt + 1
    delay = backoff(policy, attempt)
    message = f"restarting in {delay:g} s (attempt {attempt + 1})" if delay > 0 else ""
    return Start(not_before=now + delay if delay > 0 else 0.0, attempt=attempt, message=message)


def _after_loss(policy: RestartPolicy) -> Start | None:
    """The restart of a task that did not fail itself."""
    return Start() if policy.condition is not RestartCondition.NONE else None


def backoff(policy: RestartPolicy, attempt: int) -> float:
    """Seconds to wait before the restart number `attempt` (from 1) in a row."""
    if attempt <= 1:
        return policy.delay
    base = max(policy.delay, _LEAST_STEP)
    return min(base * 2.0 ** min(attempt - 1, 64), max(LONGEST_DELAY, policy.delay))


def finished(service: Service, slot: Slot) -> bool:
    """Whether the slot is complete: its task COMPLETEd and is not restarted."""
    policy, task = service.spec.task.restart, slot.newest
    return (
        slot.vacant
        and task.status.state is TaskState.COMPLETE
        and task.desired_state <= TaskState.RUNNING
        and (not runs_again(policy, task) or _exhausted(policy, slot))
    )


def given_up(service: Service, slot: Slot) -> bool:
    """Whether the slot's task failed and is not restarted."""
    done = slot.newest.status.state is TaskState.COMPLETE
    return slot.vacant and not done and decide_restart(service, slot, now=0.0) is None


def max_remembered(policy: RestartPolicy) -> int:
    """How many tasks of a slot must be remembered to count restarts."""
    return policy.max_attempts + 1 if policy.max_attempts else 0


def runs_again(policy: RestartPolicy, task: Task) -> bool:
    """Whether the restart policy's condition lets a task that ended by itself start again."""
    match policy.condition:
        case RestartCondition.ANY | RestartCondition.UNLESS_STOPPED:
            return True
        case RestartCondition.ON_FAILURE:
            return task.status.state is not TaskState.COMPLETE
        case RestartCondition.NONE:
            return False


def _exhausted(policy: RestartPolicy, slot: Slot) -> bool:
    """Whether the slot used up its restarts. Counted back from the end of the newest task, so
    that the answer does not change while time passes."""
    if not policy.max_attempts:
        return False
    newest = slot.newest
    since = newest.status.at - policy.window if policy.window else float("-inf")
    restarts = sum(
        task.attempt > 0 and task.created_at >= since and task.spec_version == newest.spec_version
        for task in slot.tasks
        if ended(task)
    )
    return restarts >= policy.max_attempts


def _settled(task: Task) -> bool:
    """Whether it ran long enough to end the row of failures. One that ended as unhealthy did
    not."""
    return run_time(task) >= SETTLED and task.status.health is not Health.UNHEALTHY


def run_time(task: Task) -> float:
    """Seconds that the task ran; 0 if it never did."""
    status = task.status
    if not status.started_at:
        return 0.0
    return (status.finished_at or status.at) - status.started_at


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
    """Whether a task ended by itself before it was stable. A completion that is not
    restarted is no crash, nor is a task lost with its node."""
    status = task.status
    if task.desired_state > TaskState.RUNNING:
        return False
    if status.failed:
        return run_time(task) < monitor or status.health is Health.UNHEALTHY
    if status.state is not TaskState.COMPLETE:
        return False
    return runs_again(service.spec.task.restart, task) and run_time(task) < monitor


def crashes(service: Service, slot: Slot, monitor: float, since: int) -> list[Task]:
    """The tasks of a slot that crashed with the present spec and after a revision of the store,
    oldest first."""
    return [
        task
        for task in slot.tasks
        if task.revision > since and is_current(service, task) and crashed(service, task, monitor)
    ]
