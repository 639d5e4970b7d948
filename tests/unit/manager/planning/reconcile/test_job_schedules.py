# SPDX-License-Identifier: Apache-2.0
"""Jobs with a schedule: due, overlapping, missed and suspended runs, across leaders."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobworld import ASSIGNED, COMPLETE, RUNNING, SHUTDOWN, JobWorld

from orchestrator.manager.planning.pipeline import EVERYTHING
from orchestrator.manager.planning.reconcile.spec_history import with_spec
from orchestrator.model.jobs import JobSpec, Missed, Overlap
from orchestrator.model.services import JobState

MINUTE, HOUR = 60.0, 3600.0


def scheduled(schedule: str = "0 * * * *", **fields: Any) -> JobWorld:
    """A job with a schedule, at five minutes past an hour."""
    world = JobWorld.of(schedule=schedule, **fields)
    start = datetime(2026, 1, 1, 12, 5, tzinfo=UTC).timestamp()
    world.now, job = start, world.job
    world.put(replace(job, job=replace(job.job, decided_until=start)))
    world.requeue_at = None
    world.settle()
    return world


def until_due(world: JobWorld) -> None:
    """Time passes until the planner wants to look again."""
    assert world.requeue_at is not None
    world.pass_time(world.requeue_at - world.now)


def test_nothing_runs_before_it_is_due() -> None:
    world = scheduled()
    assert (world.runs, world.tasks()) == ((), [])
    assert world.requeue_at == world.now + 55 * MINUTE
    until_due(world)
    assert world.states == [(1, JobState.RUNNING)]
    assert world.runs[0].due_at == world.now
    world.end(1)
    assert world.states == [(1, JobState.COMPLETE)]
    until_due(world)
    assert world.states == [(2, JobState.RUNNING), (1, JobState.COMPLETE)]
    assert world.newest().job_run == 2


@pytest.mark.parametrize(("back", "wait"), [(0.5 * HOUR, 1.5 * HOUR), (24 * HOUR, HOUR)])
def test_a_clock_that_is_set_back_repeats_no_run_and_stops_no_schedule(
    back: float, wait: float
) -> None:
    world = scheduled()
    until_due(world)
    world.end(1)
    world.now -= back
    world.dirty, world.requeue_at = EVERYTHING, None
    world.settle()
    assert len(world.runs) == 1
    assert world.requeue_at == world.now + wait
    until_due(world)
    assert [number for number, _ in world.states] == [2, 1]


@pytest.mark.parametrize(
    ("overlap", "states", "live"),
    [
        (Overlap.FORBID, [(1, JobState.RUNNING)], {1}),
        (Overlap.ALLOW, [(2, JobState.RUNNING), (1, JobState.RUNNING)], {1, 2}),
        (Overlap.REPLACE, [(2, JobState.RUNNING), (1, JobState.STOPPED)], {1}),
    ],
)
def test_a_run_that_is_due_while_another_is_under_way(
    overlap: Overlap, states: list[tuple[int, JobState]], live: set[int]
) -> None:
    world = scheduled(overlap=overlap)
    until_due(world)
    until_due(world)
    assert world.states == states
    assert {item.job_run for item in world.tasks()} == live
    if overlap is Overlap.FORBID:
        assert world.job.job.skipped == 1
        assert world.job.job.message == (
            "the run due at 2026-01-01 14:00 UTC was skipped: run 1 was still in progress"
        )
    if overlap is Overlap.REPLACE:
        assert world.newest().desired_state is SHUTDOWN
        world.report(world.newest(), SHUTDOWN)
        world.settle()
        assert (world.newest().job_run, world.newest().status.state) == (2, ASSIGNED)


def test_one_of_several_missed_runs_is_made_up_for() -> None:
    world = scheduled(overlap=Overlap.ALLOW)
    world.pass_time(72 * HOUR + 30 * MINUTE)
    assert world.states == [(1, JobState.RUNNING)]
    assert world.runs[0].due_at == datetime(2026, 1, 4, 12, tzinfo=UTC).timestamp()
    assert world.requeue_at == datetime(2026, 1, 4, 13, tzinfo=UTC).timestamp()


def test_runs_missed_are_skipped_on_demand() -> None:
    world = scheduled(missed=Missed.SKIP)
    world.pass_time(72 * HOUR + 30 * MINUTE)
    assert world.runs == ()
    assert world.job.job.message == "the run due at 2026-01-04 12:00 UTC was missed by 35m"
    until_due(world)
    assert world.states == [(1, JobState.RUNNING)], "the next is on time"


def test_one_that_is_a_little_late_is_not_missed() -> None:
    world = scheduled(missed=Missed.SKIP)
    world.pass_time(55 * MINUTE + 59)
    assert world.states == [(1, JobState.RUNNING)]


def test_suspended_and_resumed() -> None:
    world = scheduled()
    world.change(job=JobSpec(schedule="0 * * * *", suspended=True))
    world.pass_time(48 * HOUR)
    assert world.runs == ()
    world.change(job=JobSpec(schedule="0 * * * *"))
    assert world.runs == (), "what was due meanwhile is not made up for"
    until_due(world)
    assert world.states == [(1, JobState.RUNNING)]


def test_another_spec_is_for_the_next_run() -> None:
    world = scheduled()
    until_due(world)
    task = replace(world.job.spec.task, force=1)
    world.change(task=task)
    assert world.states == [(1, JobState.RUNNING)]
    world.end(1, lost=True, state=COMPLETE)
    until_due(world)
    assert [item.spec.force for item in world.tasks()] == [0, 1]


def test_a_retry_is_of_the_spec_that_its_run_began_with() -> None:
    world = scheduled()
    until_due(world)
    before = world.newest()
    world.put(
        with_spec(
            world.job,
            replace(world.job.spec, task=replace(world.job.spec.task, force=1)),
            "",
            world.now,
        )
    )
    world.report(before, RUNNING)
    world.end(1, lost=True, state=type(before.status.state).FAILED)
    assert world.newest().id != before.id
    assert world.newest().spec.force == 0


def test_the_clock_of_the_zone_counts() -> None:
    world = scheduled("30 2 * * *", time_zone="Europe/Vienna")
    assert world.requeue_at == datetime(2026, 1, 2, 1, 30, tzinfo=UTC).timestamp()


@settings(max_examples=60)
@given(
    st.sampled_from(["*/5 * * * *", "0 * * * *", "17 3 * * *"]),
    st.sampled_from(list(Missed)),
    st.lists(st.floats(-120, 20000), max_size=25),
)
def test_no_firing_begins_two_runs_despite_clock_steps(
    schedule: str, missed: Missed, steps: list[float]
) -> None:
    world = scheduled(schedule, missed=missed, overlap=Overlap.ALLOW, history=1000)
    for step in steps:
        world.pass_time(step)
        world.dirty = replace(world.dirty, timer=True, nodes_changed=True)
        world.settle()
        due = [run.due_at for run in world.runs]
        assert due == sorted(set(due), reverse=True)
        assert all(at % 60 == 0 for at in due)
        decided = world.job.job.decided_until
        assert world.requeue_at is not None
        assert decided < world.requeue_at
