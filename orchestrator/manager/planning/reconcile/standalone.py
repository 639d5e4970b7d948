# SPDX-License-Identifier: Apache-2.0
"""Standalone containers: tasks without a service, which may run again on their node.

A standalone container stays on its node for life. It is never orphaned when its node is silent (it
waits for the node, with that reason), and never replaced: a restart is the next *run* of the same
task. It is removed only with its node, or by `rm`.

Its restart policy is Docker's: none by default, back-off from a tenth of a second to a minute,
begun anew once a run has lasted ten seconds. A program that cannot be started is not retried.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from orchestrator.manager.planning.reconcile.document_versions import newest_versions
from orchestrator.manager.planning.reconcile.restarts import SETTLED, run_time
from orchestrator.manager.planning.slots import Draft, ended, waits
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.specs import RestartCondition
from orchestrator.model.states import NOT_RUNNABLE, TaskState
from orchestrator.model.tasks import Task

FIRST_DELAY, LONGEST_DELAY = 0.1, 60.0
"""Seconds before the first restart of a row, and at which the doubling stops (Docker's)."""


def reconcile_standalone(view: ClusterView, draft: Draft, ids: Iterable[str]) -> None:
    """Bring these containers one step nearer to their desired state."""
    for id in sorted(ids):
        if (task := draft.tasks.get(id)) is not None:
            _advance(view, draft, task)
            _give_newest(view, draft, id)


def _advance(view: ClusterView, draft: Draft, task: Task) -> None:
    if task.node_id and task.node_id not in view.nodes:
        if ended(task) or waits(task):
            draft.delete(task)
        else:
            draft.orphan(task, "its node was removed from the cluster")
    elif task.desired_state is TaskState.REMOVE:
        if ended(task) or waits(task):
            draft.delete(task)
    elif waits(task):
        if task.desired_state > TaskState.RUNNING:
            draft.stop(task, task.desired_state)
    elif ended(task):
        _after_end(draft, task)


def _give_newest(view: ClusterView, draft: Draft, id: str) -> None:
    """A run begins with the newest versions of its secrets and configs."""
    task = draft.tasks.get(id)
    if task is not None and waits(task):
        documents = newest_versions(view, task.spec.container)
        if documents != task.documents:
            draft.set_documents(task, documents)


def _after_end(draft: Draft, task: Task) -> None:
    if task.run > task.status.run and task.desired_state <= TaskState.RUNNING:
        draft.run_again(task, task.run)
    elif _restarts(task):
        attempt = 1 if run_time(task) >= SETTLED else task.attempt + 1
        delay = backoff(attempt)
        draft.run_again(
            task,
            task.run + 1,
            not_before=draft.now + delay,
            attempt=attempt,
            restarts=task.restarts + 1,
            message=f"restarting in {delay:g} s",
        )
    elif task.auto_remove:
        draft.mark_removed(task)


def after_reboot(task: Task) -> Task:
    """The container as it is once its node has booted anew. What ran is the node's to start again;
    `always` also starts what a user had stopped, which is all that `unless-stopped` does not."""
    stopped = ended(task) and task.desired_state is TaskState.SHUTDOWN
    if not stopped or task.spec.restart.condition is not RestartCondition.ANY:
        return task
    return next_run(task)


def next_run(task: Task) -> Task:
    """The container with a new run, to start at once regardless of how the last one ended."""
    return replace(
        task,
        run=task.status.run + 1,
        desired_state=TaskState.RUNNING,
        not_before=0.0,
        attempt=0,
        restarts=0,
    )


def backoff(attempt: int) -> float:
    """Seconds to wait before the restart number `attempt` (from 1) in a row."""
    return min(FIRST_DELAY * 2.0 ** min(attempt - 1, 64), LONGEST_DELAY)


def _restarts(task: Task) -> bool:
    """Whether its restart policy restarts an ended container."""
    status, policy = task.status, task.spec.restart
    if task.desired_state is not TaskState.RUNNING or status.state is TaskState.REJECTED:
        return False
    if not status.started_at and status.exit_code in NOT_RUNNABLE:
        return False
    match policy.condition:
        case RestartCondition.ANY | RestartCondition.UNLESS_STOPPED:
            return True
        case RestartCondition.ON_FAILURE:
            left = not policy.max_attempts or task.restarts < policy.max_attempts
            return left and status.state is TaskState.FAILED
        case RestartCondition.NONE:
            return False
