# SPDX-License-Identifier: Apache-2.0
"""State changes of standalone containers that users request. Pure.

A request is written as desired state (`desired_state`, `run`, how to stop); the planner and the
node carry it out. So it survives the client, the manager and the agent. Raises RequestError.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.manager.errors import failed_precondition
from orchestrator.manager.planning.node_load import occupies
from orchestrator.manager.planning.reconcile.standalone import next_run
from orchestrator.manager.planning.scheduling.capacity import fits, reserved
from orchestrator.manager.planning.slots import ended, waits
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.limits import resized
from orchestrator.model.nodes import NodeState
from orchestrator.model.specs import RestartCondition, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task
from orchestrator.model.units import SHARES_PER_CORE, format_memory

NO_GRACE = -1.0
"""`Task.stop_grace` for a stop without a grace period."""


def start(task: Task) -> Task:
    """Run it, for the first time or again after it has ended. No-op if it runs."""
    _check(task)
    if waits(task) or (not ended(task) and task.desired_state < TaskState.RUNNING):
        return replace(task, desired_state=TaskState.RUNNING, not_before=0.0, attempt=0)
    if task.desired_state is TaskState.RUNNING and (not ended(task) or task.run > task.status.run):
        return task
    return next_run(task)


def prepare(task: Task) -> Task:
    """Prepare its next run, which waits for `start`. No-op if it runs."""
    after = start(task)
    return task if after == task else replace(after, desired_state=TaskState.READY)


def stop(task: Task, signal: str, grace: float | None) -> Task:
    """Stop it and keep it stopped. If it does not run, it is not restarted."""
    _check(task)
    if not waits(task) and task.desired_state < TaskState.RUNNING:
        return task
    return replace(
        task,
        run=task.status.run,
        desired_state=TaskState.SHUTDOWN,
        stop_signal=signal,
        stop_grace=_grace(grace),
    )


def restart(task: Task, signal: str, grace: float | None) -> Task:
    """Stop it, if it runs, and run it again, in one atomic change."""
    if waits(task) or ended(task) or task.desired_state < TaskState.RUNNING:
        return start(task)
    _check(task)
    return replace(next_run(task), stop_signal=signal, stop_grace=_grace(grace))


def update(view: ClusterView, task: Task, spec: TaskSpec) -> Task:
    """Set reservation, limits and restart policy of `spec`. A placed container needs room for them
    on its node."""
    if not task.standalone:
        name = task.service_name
        raise failed_precondition(
            f"'{task.name}' is a task of service '{name}'; change all of its tasks, such as by "
            f"'orc service update --limit-memory 256m {name}'"
        )
    _check(task)
    if task.auto_remove and spec.restart.condition is not RestartCondition.NONE:
        raise failed_precondition(
            f"container '{task.name}' is removed when it ends (--rm), so --restart does not apply"
        )
    _check_room(view, task, spec)
    return replace(task, spec=replace(resized(task.spec, spec), restart=spec.restart))


def _check_room(view: ClusterView, task: Task, spec: TaskSpec) -> None:
    node = view.nodes.get(task.node_id)
    if node is None or not occupies(task):
        return
    had, wanted = task.spec.counted, spec.counted
    total = node.description.resources
    used = reserved(view.tasks_of_node(node.id).values())
    for what, before, after, free, most, words in (
        ("CPU", had.shares, wanted.shares, total.shares - used.shares, total.shares, _cores),
        (
            "memory",
            had.memory,
            wanted.memory,
            total.memory - used.memory,
            total.memory,
            format_memory,
        ),
    ):
        if after > before and not fits(free, after - before):
            raise failed_precondition(
                f"node {node.description.hostname} is too full: container '{task.name}' reserves "
                f"{words(before)} of {what} and would reserve {words(after)}, but "
                f"{words(max(free, 0))} of {words(most)} are free"
            )


def _cores(shares: int) -> str:
    return f"{shares / SHARES_PER_CORE:.4g} cores"


def remove(view: ClusterView, task: Task, force: bool, volumes: bool = False) -> Task:
    """Remove it and its files, with `volumes` also its anonymous volumes. A running container must
    be stopped first, or forced."""
    _check(task, going=True)
    if task.desired_state is TaskState.REMOVE:
        return task
    node = view.nodes.get(task.node_id)
    alive = not waits(task) and not ended(task)
    if alive and node is not None and node.state is NodeState.DOWN:
        where = node.description.hostname
        if not force:
            raise failed_precondition(
                f"container '{task.name}' is on node {where}, which is down; start the node, or "
                "forget the container with --force (it ends when its node is back)"
            )
        lost = replace(
            task.status, state=TaskState.ORPHANED, message=f"removed while node {where} was down"
        )
        return replace(task, status=lost, desired_state=TaskState.REMOVE)
    if alive and task.desired_state >= TaskState.RUNNING and not force:
        word = "paused" if task.status.paused else "running"
        raise failed_precondition(
            f"container '{task.name}' is {word}; stop it first ('orc stop {task.name}'), or use "
            "--force"
        )
    return replace(
        task,
        run=task.status.run,
        desired_state=TaskState.REMOVE,
        # With auto-remove, its anonymous volumes are removed, too.
        auto_remove=task.auto_remove or volumes,
        stop_signal="SIGKILL",
        stop_grace=NO_GRACE,
    )


def _grace(seconds: float | None) -> float:
    if seconds is None:
        return 0.0
    return seconds if seconds > 0 else NO_GRACE


def _check(task: Task, going: bool = False) -> None:
    if not task.standalone:
        raise failed_precondition(
            f"'{task.name}' is a task of service '{task.service_name}', which would replace it; "
            f"use 'orc service scale' or 'orc service update --force {task.service_name}'"
        )
    if task.desired_state is TaskState.REMOVE and not going:
        raise failed_precondition(f"container '{task.name}' is being removed")
