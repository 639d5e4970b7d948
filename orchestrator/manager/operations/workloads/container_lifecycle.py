"""What a user's order changes of a standalone container: pure, and refused in the user's words.

An order is written as what is wanted (`desired_state`, `run`, how to stop); the planner and the
node bring it about. So none is lost with the client, the manager or the agent.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.manager.errors import failed_precondition
from orchestrator.manager.planning.reconcile.standalone import next_run
from orchestrator.manager.planning.scheduling.capacity import fits, occupies, reserved
from orchestrator.manager.planning.slots import ended, waits
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.limits import resized
from orchestrator.model.nodes import NodeState
from orchestrator.model.specs import SHARES_PER_CORE, RestartCondition, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task
from orchestrator.model.units import format_memory

NO_GRACE = -1.0
"""`Task.stop_grace` for a stop that begins with SIGKILL or is not to wait."""


def start(task: Task) -> Task:
    """Run it: for the first time, or again once it has ended. One that runs is left as it is."""
    _check(task)
    if waits(task) or (not ended(task) and task.desired_state < TaskState.RUNNING):
        return replace(task, desired_state=TaskState.RUNNING, not_before=0.0, attempt=0)
    if task.desired_state is TaskState.RUNNING and (not ended(task) or task.run > task.status.run):
        return task
    return next_run(task)


def prepare(task: Task) -> Task:
    """Make its next run ready, and let it wait for `start`. One that runs is left as it is."""
    after = start(task)
    return task if after == task else replace(after, desired_state=TaskState.READY)


def stop(task: Task, signal: str, grace: float | None) -> Task:
    """End it and leave it ended. One that does not run is left as it is, but not restarted."""
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
    """End it, if it runs, and run it again; one order, which nothing can cut in two."""
    if waits(task) or ended(task) or task.desired_state < TaskState.RUNNING:
        return start(task)
    _check(task)
    return replace(next_run(task), stop_signal=signal, stop_grace=_grace(grace))


def update(view: ClusterView, task: Task, spec: TaskSpec) -> Task:
    """Give it the reservation, limits and restart policy of `spec`. One that is on a node needs
    room for them there."""
    if not task.standalone:
        name = task.service_name
        raise failed_precondition(
            f"'{task.name}' is a task of service '{name}'; change all of its tasks, such as by "
            f"'orc service update --limit-memory 256m {name}'"
        )
    _check(task)
    if task.auto_remove and spec.restart.condition is not RestartCondition.NONE:
        raise failed_precondition(
            f"container '{task.name}' goes when it has ended (--rm), so it takes no --restart"
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
    """Let it and its files go, and `volumes` those of it without a name. One that runs must be
    stopped first, or forced."""
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
        # A container that goes by itself takes its nameless volumes along.
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
