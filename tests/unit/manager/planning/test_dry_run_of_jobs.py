# SPDX-License-Identifier: Apache-2.0
"""Dry runs of jobs: what starts at once, what is queued, what stops."""

from __future__ import annotations

from builders import World, node
from jobworld import JobWorld

from orchestrator.manager.planning.dry_run import Action, Step, simulate
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.reconcile import job_runs
from orchestrator.model.services import JobState


def plan_of(world: World, *changes: Change) -> list[Step]:
    ids = (f"plan{number}" for number in range(10**6))
    return simulate(world.view, changes, world.now, lambda: next(ids))


def test_a_new_job_begins_as_many_as_run_at_a_time() -> None:
    job = JobWorld.of(5, parallelism=2, deadline=10.0).job
    world = World(node("a"), node("b"))
    steps = plan_of(world, Change(None, job))
    assert steps == [
        Step(Action.START, "work", "work.1", "", "a"),
        Step(Action.START, "work", "work.2", "", "b"),
        Step(Action.WAIT, "work", "work.3-5", reason="2 run at a time"),
    ]
    world.put(job)
    world.settle()
    assert world.slots_on() == {"a": [1], "b": [2]}, "it is what then happens"


def test_a_schedule_begins_nothing_by_itself() -> None:
    job = JobWorld.of(schedule="* * * * *").job
    assert plan_of(World(node("a")), Change(None, job)) == []


def test_next_run_and_end_of_a_run() -> None:
    world = JobWorld.of(nodes=(node("a"),))
    world.obey()
    job = world.job
    assert plan_of(world, Change(job, job_runs.stop_runs(job, world.now, "by its user"))) == [
        Step(Action.STOP, "work", "work.1", "a")
    ]
    world.end(1)
    assert world.states == [(1, JobState.COMPLETE)]
    assert plan_of(world, Change(world.job, job_runs.begin_run(world.job, world.now))) == [
        Step(Action.START, "work", "work.1", "", "a")
    ]
