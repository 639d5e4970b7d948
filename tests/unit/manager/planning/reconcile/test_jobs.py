# SPDX-License-Identifier: Apache-2.0
"""Jobs: completions counted once, parallelism, retries, deadlines, one task on each node."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import node, task_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from jobworld import (
    ASSIGNED,
    COMPLETE,
    FAILED,
    ORPHANED,
    PENDING,
    RUNNING,
    SHUTDOWN,
    JobWorld,
)

from orchestrator.manager.planning.reconcile import job_runs, jobs
from orchestrator.manager.planning.reconcile.convergence import Progress, progress
from orchestrator.model.jobs import JobSpec, Overlap, format_indexes, parse_indexes
from orchestrator.model.nodes import Availability, NodeState
from orchestrator.model.services import JobState
from orchestrator.model.states import TaskState, is_terminal


def test_indexes_follow_one_another_as_far_as_parallelism_allows() -> None:
    world = JobWorld.of(5, parallelism=2)
    assert world.live() == [1, 2]
    assert progress(world.view, "work-id") == Progress(2, 0, False, completed=0, completions=5)
    world.end(2)
    assert (world.live(), world.done) == ([1, 3], {2})
    for index in (1, 3, 4, 5):
        world.end(index)
    assert world.states == [(1, JobState.COMPLETE)]
    assert world.runs[0].completed == "1-5"
    assert progress(world.view, "work-id") == Progress(0, 0, True, completed=5, completions=5)
    world.pass_time(1000)
    assert len(world.tasks(COMPLETE)) == 5, "its tasks stay, and nothing begins anew"


def test_without_parallelism_all_run_at_once() -> None:
    assert JobWorld.of(4).live() == [1, 2, 3, 4]


def test_a_completion_counts_once_however_far_writes_came() -> None:
    world = JobWorld.of(3, parallelism=1)
    world.report(world.newest(1), RUNNING)
    world.report(world.newest(1), COMPLETE)
    (plan,) = world.plan()
    assert [type(change.subject).__name__ for change in plan.changes] == ["Task", "Service"]
    # A leader that dies between the two writes leaves the first; the next one counts again.
    world = JobWorld.of(3, parallelism=1)
    world.report(world.newest(1), RUNNING)
    world.report(world.newest(1), COMPLETE)
    world.write(plan.changes[0])
    world.settle()
    assert (world.done, world.live()) == ({1}, [2])


def test_a_failed_index_is_tried_again_with_back_off_and_then_fails_the_job() -> None:
    world = JobWorld.of(2, retries=2, delay=5.0)
    world.end(1, FAILED, exit_code=3)
    waiting = world.newest(1)
    assert (waiting.status.state, waiting.not_before) == (PENDING, world.now + 5)
    assert waiting.status.message == "retrying in 5 s (retry 1 of 2)"
    world.pass_time(5.0)
    assert world.newest(1).status.state is ASSIGNED
    world.end(1, FAILED, exit_code=3)
    assert world.newest(1).status.message == "retrying in 10 s (retry 2 of 2)"
    world.pass_time(10.0)
    world.end(1, FAILED, exit_code=3)
    run = world.runs[0]
    assert (run.state, run.message) == (JobState.FAILED, "work.1 failed 3 times: exit status 3")
    assert world.newest(2).desired_state is SHUTDOWN, "the others are stopped"
    world.report(world.newest(2), SHUTDOWN)
    world.settle()
    assert progress(world.view, "work-id").converged


def test_a_long_run_before_a_failure_is_a_failure_all_the_same() -> None:
    world = JobWorld.of(retries=1)
    for _ in range(2):
        world.report(world.newest(), RUNNING)
        world.now += 3600
        world.end(1, FAILED, exit_code=1)
    assert world.runs[0].state is JobState.FAILED


@pytest.mark.parametrize("state", [FAILED, TaskState.REJECTED])
def test_no_retries(state: TaskState) -> None:
    world = JobWorld.of(retries=0)
    if state is FAILED:
        world.end(1, FAILED, message="no such program")
    else:
        world.report(world.newest(), state, message="no such program")
        world.settle()
    assert world.runs[0].message == "work.1 failed: no such program"


def test_a_failed_node_is_no_failure_of_the_job() -> None:
    world = JobWorld.of(retries=0)
    lost = world.newest()
    world.put(node(lost.node_id, state=NodeState.DOWN))
    world.settle()
    assert [item.status.state for item in world.tasks()] == [ORPHANED, ASSIGNED]
    assert world.newest().node_id != lost.node_id
    world.end(1)
    assert world.runs[0].state is JobState.COMPLETE


def test_a_restarted_node_is_no_failure_of_the_job() -> None:
    world = JobWorld.of(retries=0)
    world.end(1, FAILED, exit_code=255, lost=True)
    assert world.states == [(1, JobState.RUNNING)]
    assert world.newest().status.state is ASSIGNED


def test_losses_keep_the_count_of_failures() -> None:
    world = JobWorld.of(retries=1)
    world.end(1, FAILED)
    world.end(1, FAILED, lost=True)
    world.end(1, FAILED)
    assert world.runs[0].state is JobState.FAILED


def test_a_drained_node_hands_its_index_on() -> None:
    world = JobWorld.of(retries=0)
    first = world.newest()
    world.put(node(first.node_id, availability=Availability.DRAIN))
    world.settle()
    assert world.newest().desired_state is SHUTDOWN
    world.report(first, SHUTDOWN)
    world.settle()
    assert (world.newest().status.state, world.newest().attempt) == (ASSIGNED, 0)
    assert world.newest().node_id != first.node_id


def test_the_deadline_ends_a_run() -> None:
    world = JobWorld.of(2, parallelism=1, deadline=90.0)
    assert world.requeue_at == world.now + 90
    world.pass_time(89)
    assert world.states == [(1, JobState.RUNNING)]
    world.pass_time(1)
    run = world.runs[0]
    assert (run.state, run.message) == (
        JobState.FAILED,
        "not done within its deadline of 1m30s",
    )
    assert world.newest().desired_state is SHUTDOWN
    assert world.live() == [1], "no other begins"


def test_waiting_task_has_a_reason_and_ends_with_the_run() -> None:
    world = JobWorld.of(nodes=(node("a", shares=64),), deadline=10.0)
    assert world.newest().status.message.startswith("unschedulable: no node has enough capacity (")
    world.pass_time(10)
    ended = world.newest()
    assert (ended.status.state, ended.status.message) == (
        SHUTDOWN,
        "not done within its deadline of 10s",
    )


def test_a_job_of_no_completions_is_done() -> None:
    assert JobWorld.of(0).states == [(1, JobState.COMPLETE)]


def test_another_spec_is_another_run_once_the_first_has_stopped() -> None:
    world = JobWorld.of(2, parallelism=1)
    world.change(task=task_spec(image="web:2"))
    assert world.states == [(2, JobState.RUNNING), (1, JobState.STOPPED)]
    assert world.runs[1].message == "replaced by another run"
    assert world.live(run=2) == [], "it waits for the first to end"
    world.report(world.newest(), SHUTDOWN)
    world.settle()
    assert world.live(run=2) == [1]
    assert world.newest().spec.container.image == "web:2"
    assert world.newest().job_run == 2


def test_parallelism_and_labels_change_the_run_under_way() -> None:
    world = JobWorld.of(4, parallelism=1)
    world.change(job=JobSpec(parallelism=3), labels={"a": "b"})
    assert world.states == [(1, JobState.RUNNING)]
    assert world.live() == [1, 2, 3]


def test_runs_beyond_the_history_are_forgotten_with_their_tasks() -> None:
    world = JobWorld.of(history=2)
    for _ in range(4):
        world.end(1)
        world.put(job_runs.begin_run(world.job, world.now))
        world.settle()
    assert [run.number for run in world.runs] == [5, 4]
    assert {item.job_run for item in world.tasks()} == {5, 4}


def test_of_many_that_are_done_the_newest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MAX_COMPLETED_TASKS", 3)
    world = JobWorld.of(8, parallelism=1)
    for index in range(1, 9):
        world.end(index)
        world.now += 1
    assert world.runs[0].completed == "1-8"
    assert [item.slot for item in world.tasks()] == [6, 7, 8]


def test_everywhere_and_on_a_node_that_comes_later() -> None:
    world = JobWorld.of(everywhere=True)
    assert {item.node_id: item.slot for item in world.tasks()} == {"a": 1, "b": 2}
    world.end(1)
    world.end(2)
    assert world.states == [(1, JobState.COMPLETE)]
    world.put(node("c"))
    world.settle()
    assert world.states == [(1, JobState.RUNNING)]
    assert world.newest(3).node_id == "c"
    world.end(3)
    assert world.states == [(1, JobState.COMPLETE)]
    assert world.runs[0].nodes == ("a", "b", "c")


def test_everywhere_does_not_wait_for_a_node_that_is_down_but_for_its_return() -> None:
    world = JobWorld.of(everywhere=True)
    world.end(1)
    world.put(node("b", state=NodeState.DOWN))
    world.settle()
    assert world.states == [(1, JobState.COMPLETE)]
    world.put(node("b"))
    world.settle()
    assert (world.states, world.live()) == ([(1, JobState.RUNNING)], [2])


def test_global_job_stays_complete_when_nodes_leave() -> None:
    world = JobWorld.of(everywhere=True)
    world.end(1)
    world.end(2)
    for name in ("a", "b"):
        world.put(node(name, availability=Availability.DRAIN))
        world.settle()
        assert world.states == [(1, JobState.COMPLETE)]


def test_everywhere_is_nowhere_until_there_is_a_node() -> None:
    world = JobWorld.of(everywhere=True, nodes=(node("a", availability=Availability.DRAIN),))
    assert world.states == [(1, JobState.RUNNING)]
    world.put(node("a"))
    world.settle()
    assert world.live() == [1]


@pytest.mark.parametrize(
    ("numbers", "text"), [((), ""), ((3, 1, 2, 5), "1-3,5"), ((7, 9, 10), "7,9-10")]
)
def test_indexes_as_text(numbers: tuple[int, ...], text: str) -> None:
    assert format_indexes(numbers) == text
    assert parse_indexes(text) == set(numbers)


events = st.lists(
    st.tuples(
        st.sampled_from(["run", "done", "fail", "lose", "down", "up", "drain", "wait", "leader"]),
        st.integers(1, 7),
        st.sampled_from(["a", "b"]),
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(st.integers(1, 7), st.integers(0, 4), st.integers(0, 3), events)
def test_each_index_counts_once_despite_faults(
    completions: int, parallelism: int, retries: int, story: list[tuple[str, int, str]]
) -> None:
    world = JobWorld.of(completions, parallelism=parallelism, retries=retries)
    seen: set[int] = set()
    for what, index, where in story:
        found = [item for item in world.tasks() if item.slot == index]
        newest = max(found, key=lambda item: item.created_at) if found else None
        at_work = newest is not None and ASSIGNED <= newest.status.state <= RUNNING
        match what:
            case "wait":
                world.pass_time(100)
            case "down":
                world.put(node(where, state=NodeState.DOWN))
            case "up":
                world.put(node(where))
            case "drain":
                world.put(node(where, availability=Availability.DRAIN))
            case "leader":
                world.dirty |= replace(world.dirty, nodes_changed=True, timer=True)
            case _ if newest is not None and at_work:
                told = newest.desired_state > RUNNING
                state = SHUTDOWN if told else {"run": RUNNING, "done": COMPLETE}.get(what, FAILED)
                if newest.status.state is not state:
                    world.report(newest, state, lost=what == "lose")
        world.settle()
        run = world.runs[0]
        ends = [item.slot for item in world.tasks(COMPLETE)]
        assert len(ends) == len(set(ends)), "an index was done twice"
        assert world.done == set(ends) or run.state is not JobState.RUNNING
        assert seen <= world.done, "a completion was forgotten"
        seen = world.done
        live = [item for item in world.tasks() if not is_terminal(item.status.state)]
        assert not parallelism or len(live) <= parallelism
        assert all(item.status.message for item in live if item.status.state is PENDING)
    if world.runs[0].state is JobState.FAILED:
        return
    for name in ("a", "b"):
        world.put(node(name))
    for _ in range(100):
        world.settle()
        world.pass_time(400)
        for item in world.tasks():
            if ASSIGNED <= item.status.state <= RUNNING:
                told = item.desired_state > RUNNING
                world.report(item, SHUTDOWN if told else COMPLETE)
        if world.runs[0].state is JobState.COMPLETE:
            break
    assert world.done == set(range(1, completions + 1))


def test_a_run_is_forgotten_only_once_the_store_has_its_end() -> None:
    world = JobWorld.of(history=1, schedule="* * * * *", overlap=Overlap.ALLOW)
    world.pass_time(60)
    world.pass_time(60)
    assert [run.number for run in world.runs] == [2, 1], "one under way is remembered"
    [first] = [item for item in world.tasks() if item.job_run == 1]
    world.report(first, RUNNING)
    world.report(first, COMPLETE)
    (plan,) = world.plan()
    assert world.states == [(2, JobState.RUNNING), (1, JobState.COMPLETE)]
    assert all(change.after is not None for change in plan.changes)
    world.settle()
    assert world.states == [(2, JobState.RUNNING)]
