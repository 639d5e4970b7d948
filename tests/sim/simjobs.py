# SPDX-License-Identifier: Apache-2.0
"""Invariants of jobs: nothing counted twice, nothing lost, concurrency limits kept."""

from __future__ import annotations

from collections import Counter

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.jobs import Overlap, parse_indexes
from orchestrator.model.services import JobRun, JobState, Service
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.tasks import Task


def check_change(view: ClusterView, change: Change) -> None:
    """A change of a job, or of a task of one, is a step forward. `view` is as before it."""
    before, after = change.before, change.after
    if isinstance(after, Service) and after.spec.mode.is_job:
        _check_runs(view, before if isinstance(before, Service) else None, after)
    elif isinstance(after, Task) and before is None and after.job_run:
        _check_new(view, after)
    elif isinstance(before, Task) and after is None and before.job_run:
        _check_forgotten(view, before)


def _check_runs(view: ClusterView, before: Service | None, after: Service) -> None:
    numbers = [run.number for run in after.job.runs]
    assert numbers == sorted(set(numbers), reverse=True), f"runs are {numbers}"
    old = {run.number: run for run in before.job.runs} if before else {}
    newest = max(old, default=0)
    assert all(run.number in old or run.number > newest for run in after.job.runs)
    due = [run.due_at for run in reversed(after.job.runs) if run.due_at]
    assert due == sorted(set(due)), f"a firing began two runs: {due}"
    complete = {
        (task.job_run, task.slot, task.node_id)
        for task in view.tasks_of_service(after.id).values()
        if task.status.state is TaskState.COMPLETE
    }
    for run in after.job.runs:
        was = old.get(run.number, JobRun(number=run.number))
        had, has = parse_indexes(was.completed), parse_indexes(run.completed)
        assert had <= has, "a completion is counted no more"
        ended = {slot for number, slot, _ in complete if number == run.number}
        assert has - had <= ended, f"{has - had} are counted, and have not completed"
        assert len(has) <= max(after.spec.replicas, len(had), len(ended | had))
        nodes = {node for number, _, node in complete if number == run.number}
        assert set(was.nodes) <= set(run.nodes)
        assert set(run.nodes) - set(was.nodes) <= nodes
        if was.state is not JobState.RUNNING and run.state is not was.state:
            again = was.state is JobState.COMPLETE and after.spec.mode.is_global
            assert again, f"run {run.number} rose from {was.state.name} to {run.state.name}"


def _check_new(view: ClusterView, task: Task) -> None:
    job = view.services[task.service_id]
    run = next((run for run in job.job.runs if run.number == task.job_run), None)
    assert run is not None, f"{task.name} is of run {task.job_run}, which has not begun"
    assert task.slot not in parse_indexes(run.completed), f"{task.name} is done, and begins again"
    assert not task.node_id or task.node_id not in run.nodes, f"{task.name}: its node is done"
    others = view.tasks_of_service(job.id).values()
    same = [each for each in others if (each.job_run, each.slot) == (task.job_run, task.slot)]
    assert all(is_terminal(each.status.state) for each in same), f"{task.name} runs already"
    if job.spec.job.overlap is not Overlap.ALLOW:
        alive = {each.job_run for each in others if not is_terminal(each.status.state)}
        assert not alive - {task.job_run}, f"{task.name} begins beside runs {alive}"


def _check_forgotten(view: ClusterView, task: Task) -> None:
    job = view.services.get(task.service_id)
    if job is None or job.removed or task.status.state is not TaskState.COMPLETE:
        return
    for run in job.job.runs:
        if run.number == task.job_run and run.state is JobState.RUNNING:
            counted = task.slot in parse_indexes(run.completed) or task.node_id in run.nodes
            assert counted, f"{task.name} is forgotten, and was not counted"


def check_jobs(view: ClusterView, now: float, *, settled: bool) -> None:
    """Never more at a time than may be. `settled`: nothing is left to decide now, so that no run is
    later than its deadline."""
    for job in view.services.values():
        most = job.spec.job.parallelism
        if not job.spec.mode.is_job or job.removed:
            continue
        if most:
            alive = Counter(
                task.job_run
                for task in view.tasks_of_service(job.id).values()
                if not is_terminal(task.status.state)
            )
            assert all(count <= most for count in alive.values()), f"{job.spec.name}: {alive}"
        deadline = job.spec.job.deadline
        for run in job.job.runs if settled and deadline else ():
            late = run.state is JobState.RUNNING and run.since + deadline <= now
            assert not late, f"run {run.number} of {job.spec.name} is late"
