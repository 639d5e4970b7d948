# SPDX-License-Identifier: Apache-2.0
"""Job queues: fair shares, quotas, backfill, all or nothing, and many queued jobs."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from itertools import combinations

from builders import MIB, NOW, World, node, service, task_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.manager.planning.reconcile import job_runs
from orchestrator.manager.planning.reconcile.job_queues import JOB_WINDOW, QUEUE_WINDOW
from orchestrator.model.jobs import JobSpec
from orchestrator.model.objects import Cluster
from orchestrator.model.scheduling.queues import Queue
from orchestrator.model.services import JobState, Service
from orchestrator.model.specs import (
    Resources,
    RestartCondition,
    RestartPolicy,
    ServiceMode,
)
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task

NODE = {"shares": 10_000, "memory": 10_000 * MIB}


def queues(*made: Queue) -> Cluster:
    return Cluster(id="cluster", queues=made)


def job(
    name: str,
    queue: str,
    completions: int = 100,
    *,
    shares: int = 1000,
    memory: int = 100,
    together: bool = False,
    at: float = NOW,
    priority: int = 0,
) -> Service:
    restart = RestartPolicy(RestartCondition.ON_FAILURE)
    spec = task_spec(shares=shares, memory=memory * MIB, restart=restart)
    made = service(name, completions, spec=spec, mode=ServiceMode.REPLICATED_JOB, created_at=at)
    queued = JobSpec(queue=queue, all_or_nothing=together)
    made = replace(made, spec=replace(made.spec, job=queued, priority=priority))
    run = replace(made.job, runs=job_runs.begin_run(made, at).job.runs)
    return replace(made, job=run)


def running(world: World) -> dict[str, int]:
    """Job → tasks that have a node and have not ended."""
    live = (TaskState.ASSIGNED, TaskState.RUNNING)
    return dict(Counter(item.service_name for item in world.tasks() if item.status.state in live))


def complete(world: World, item: Task) -> None:
    if item.status.state is TaskState.ASSIGNED:
        world.report(item, TaskState.RUNNING)
    world.report(world.view.tasks[item.id], TaskState.COMPLETE)


def test_queues_share_by_weight() -> None:
    cluster = queues(Queue("a"), Queue("b", weight=3))
    world = World(cluster, node("n", **NODE), job("one", "a"), job("two", "b"))
    world.settle()
    assert running(world) == {"one": 2, "two": 8} or running(world) == {"one": 3, "two": 7}


def test_the_dominant_resource_counts() -> None:
    cluster = queues(Queue("a"), Queue("b"))
    # As in the paper: 9 cores and 18 GB; <1 core, 4 GB> and <3 cores, 1 GB> get 3 and 2 tasks.
    world = World(
        cluster,
        node("n", shares=9 * 1024, memory=18_000 * MIB),
        job("one", "a", shares=1024, memory=4000),
        job("two", "b", shares=3 * 1024, memory=1000),
    )
    world.settle()
    assert running(world) == {"one": 3, "two": 2}


def test_a_queue_alone_has_all_and_gives_room_as_tasks_end() -> None:
    cluster = queues(Queue("a"), Queue("b"))
    world = World(cluster, node("n", **NODE), job("one", "a"))
    world.settle()
    assert running(world) == {"one": 10}
    world.put(job("two", "b", at=NOW + 1))
    world.settle()
    for _ in range(5):
        item = next(each for each in world.tasks() if each.status.state is TaskState.ASSIGNED)
        complete(world, item)
        world.settle()
    assert running(world) == {"one": 5, "two": 5}


def test_quotas_bound_what_a_queue_reserves() -> None:
    cluster = queues(
        Queue("a", quota=Resources(3000, 0)), Queue("b", quota=Resources(0, 200 * MIB))
    )
    world = World(cluster, node("n", **NODE), job("one", "a"), job("two", "b"))
    world.settle()
    assert running(world) == {"one": 3, "two": 2}
    reasons = {item.status.message for item in world.view.pending.values()}
    assert reasons == {
        "queue a has reached its quota of 2.93 cores",
        "queue b has reached its quota of 200MiB of memory",
    }


def test_small_jobs_are_placed_beside_one_that_waits_for_room() -> None:
    world = World(
        queues(Queue("a")),
        node("n", **NODE),
        job("large", "a", 2, shares=6000, at=NOW),
        job("small", "a", 3, shares=1000, at=NOW + 1),
    )
    world.settle()
    assert running(world) == {"large": 1, "small": 3}


def test_all_or_nothing() -> None:
    world = World(
        queues(Queue("a")),
        node("n", **NODE),
        job("first", "a", 4, at=NOW),
        job("gang", "a", 8, together=True, at=NOW + 1),
    )
    world.settle()
    assert running(world) == {"first": 4}
    reasons = {item.status.message for item in world.view.pending.values()}
    [reason] = reasons
    assert reason.startswith("all or nothing: 6 of 8 tasks fit; no suitable node")
    for item in world.tasks(TaskState.ASSIGNED)[:2]:
        complete(world, item)
        world.settle()
    assert running(world) == {"first": 2, "gang": 8}


def test_a_task_of_a_gang_that_fails_is_retried_alone() -> None:
    world = World(queues(Queue("a")), node("n", **NODE), job("gang", "a", 10, together=True))
    world.settle()
    item = world.tasks()[0]
    world.report(item, TaskState.RUNNING)
    world.report(world.view.tasks[item.id], TaskState.FAILED, exit_code=1)
    world.settle()
    world.pass_time(60.0)
    assert running(world) == {"gang": 10}


def test_jobs_of_higher_priority_and_older_ones_come_first() -> None:
    world = World(
        queues(Queue("a")),
        node("n", shares=1000, memory=1000 * MIB),
        job("late", "a", 1, at=NOW + 2),
        job("early", "a", 1, at=NOW + 1),
        job("urgent", "a", 1, at=NOW + 3, priority=5),
    )
    order = []
    for _ in range(3):
        world.settle()
        [item] = world.tasks(TaskState.ASSIGNED)
        order.append(item.service_name)
        complete(world, item)
    assert order == ["urgent", "early", "late"]


def test_only_the_first_tasks_of_a_queue_exist() -> None:
    jobs = [job(f"j{number:03}", "a", 50, at=NOW + number) for number in range(40)]
    world = World(queues(Queue("a")), node("n", **NODE), *jobs)
    world.settle()
    assert sum(running(world).values()) == 10
    waiting = Counter(item.service_name for item in world.view.pending.values())
    assert sum(waiting.values()) <= QUEUE_WINDOW
    assert max(waiting.values()) <= JOB_WINDOW


def test_all_queued_jobs_complete_in_the_end() -> None:
    jobs = [job(f"j{number:02}", "ab"[number % 2], 5, at=NOW + number) for number in range(30)]
    world = World(queues(Queue("a"), Queue("b", weight=2)), node("n", **NODE), *jobs)
    for _ in range(400):
        world.settle()
        live = world.tasks(TaskState.ASSIGNED)
        if not live:
            break
        complete(world, live[0])
    states = {each.job.runs[0].state for each in world.view.services.values()}
    assert states == {JobState.COMPLETE}


def test_thousands_of_queued_jobs_cost_little() -> None:
    jobs = [job(f"j{number:05}", "a", 10, at=NOW + number) for number in range(10_000)]
    world = World(queues(Queue("a")), node("n", **NODE), *jobs)
    world.limit = 1000
    world.settle()
    assert len(world.tasks()) <= 10 + QUEUE_WINDOW + JOB_WINDOW
    item = world.tasks(TaskState.ASSIGNED)[0]
    began = time.process_time()
    complete(world, item)
    world.settle()
    assert sum(running(world).values()) == 10
    assert time.process_time() - began < 10, "one task's end costs passes over all jobs"


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 60)), min_size=2, max_size=4),
    st.sampled_from(((500, 100), (100, 500))),
    st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_shares_are_within_one_task_of_the_ideal(
    wanted: list[tuple[int, int]], size: tuple[int, int], nodes: int
) -> None:
    made = [Queue(f"q{number}", weight) for number, (weight, _) in enumerate(wanted)]
    jobs = [
        job(f"j{number}", f"q{number}", count, shares=size[0], memory=size[1])
        for number, (_, count) in enumerate(wanted)
    ]
    hosts = [node(f"n{each}", shares=5000, memory=5000 * MIB) for each in range(nodes)]
    world = World(queues(*made), *hosts, *jobs)
    world.settle()
    got = running(world)
    assert sum(got.values()) == min(10 * nodes, sum(count for _, count in wanted))
    for (one, (weight, count)), (other, (of_other, _)) in combinations(enumerate(wanted), 2):
        for a, b, w, v, most in (
            (one, other, weight, of_other, count),
            (other, one, of_other, weight, wanted[other][1]),
        ):
            have, has = got.get(f"j{a}", 0), got.get(f"j{b}", 0)
            if have < most:  # it could use more, so nobody has more than a task beyond its share
                assert (has - 1) / v <= have / w + 1e-9
