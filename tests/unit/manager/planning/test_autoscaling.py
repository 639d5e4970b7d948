# SPDX-License-Identifier: Apache-2.0
"""How many replicas a service needs, and when they are added or removed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import MIB, NOW, World, node, service, task_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.manager.planning.autoscaling import (
    Need,
    Usage,
    autoscaled,
    decide,
    measured_tasks,
    needed,
)
from orchestrator.manager.planning.reconcile.spec_history import with_spec
from orchestrator.model.scheduling.autoscaling import AutoscaleSpec, check_autoscale
from orchestrator.model.services import Service
from orchestrator.model.states import TaskState

SCALE = AutoscaleSpec(least=1, most=10, cpu=50)


def scaled(replicas: int = 2, scale: AutoscaleSpec = SCALE) -> Service:
    made = service("web", replicas, spec=task_spec(shares=1024, memory=100 * MIB))
    return replace(made, spec=replace(made.spec, autoscale=scale))


def need(of: Service, *cores: float | None, memory: int = 0) -> Need | None:
    """What the service needs if its tasks use so many cores; None: one is not measured."""
    world = World(node("a", shares=100_000), of)
    world.obey()
    tasks = measured_tasks(world.view, of)
    usages = {
        task.id: Usage(used, memory)
        for task, used in zip(tasks, cores, strict=True)
        if used is not None
    }
    return needed(of, tasks, usages)


@pytest.mark.parametrize(
    ("cores", "replicas"),
    [
        ((0.5, 0.5), 2),
        ((0.55, 0.5), 2),
        ((1.0, 1.0), 4),
        ((0.9, 0.4), 3),
        ((0.1, 0.1), 1),
        ((0.0, 0.0), 1),
        ((9.0, 9.0), 10),
        ((1.5, None), 3),
        ((0.0, None), 1),
        ((0.3, None), 2),
    ],
)
def test_replicas_follow_the_utilisation(cores: tuple[float | None, ...], replicas: int) -> None:
    found = need(scaled(), *cores)
    assert found is not None
    assert found.replicas == replicas


def test_the_target_that_needs_most_decides() -> None:
    both = replace(SCALE, memory=50)
    found = need(scaled(2, both), 0.5, 0.5, memory=100 * MIB)
    assert found == Need(4, "memory at 100% of 50%")


QUERY = AutoscaleSpec(least=1, most=10, query="sum(rate(requests[1m]))", per_replica=100)


@pytest.mark.parametrize(
    ("value", "replicas"),
    [(0.0, 1), (-5.0, 1), (195.0, 2), (219.0, 2), (221.0, 3), (1e300, 10), (100.0, 1)],
)
def test_replicas_follow_a_query(value: float, replicas: int) -> None:
    found = needed(scaled(2, QUERY), [], {}, {QUERY.query: value})
    assert found is not None
    assert found.replicas == replicas


def test_the_largest_value_needs_no_more_than_the_maximum() -> None:
    tiny = replace(QUERY, per_replica=1e-300)
    check_autoscale(tiny)
    found = needed(scaled(2, tiny), [], {}, {tiny.query: 1e300})
    assert found is not None
    assert found.replicas == 10


def test_without_a_querys_value_nothing_is_removed() -> None:
    web = scaled(2, replace(QUERY, cpu=50))
    assert needed(scaled(2, QUERY), [], {}, {}) is None
    assert need(web, 0.1, 0.1) is None
    found = need(web, 1.0, 1.0)
    assert found is not None
    assert found.replicas == 4


@pytest.mark.parametrize(
    "spec",
    [
        replace(QUERY, per_replica=0.0),
        replace(QUERY, per_replica=-1.0),
        replace(QUERY, per_replica=float("inf")),
        replace(QUERY, per_replica=float("nan")),
        replace(QUERY, query="", cpu=50),
        replace(QUERY, query="x" * 5000),
    ],
)
def test_query_without_a_value_per_replica_is_refused(spec: AutoscaleSpec) -> None:
    with pytest.raises(ValueError, match="query"):
        check_autoscale(spec)


def test_nothing_measured_decides_nothing() -> None:
    web = scaled()
    assert need(web, None, None) is None
    assert decide(web, None, NOW) is web


def test_more_are_added_after_the_up_window() -> None:
    web = scaled(2, replace(SCALE, up_window=60.0))
    web = decide(web, Need(6, "cpu at 150% of 50%"), NOW)
    assert web.replicas == 2
    web = decide(web, Need(4, "cpu at 100% of 50%"), NOW + 30)
    assert web.replicas == 2
    web = decide(web, Need(8, "cpu at 200% of 50%"), NOW + 60)
    assert web.replicas == 4, "the least that was needed"
    assert web.autoscale.message == "cpu at 200% of 50%"


def test_fewer_remain_after_the_down_window() -> None:
    web = scaled(8)
    for seconds, fewer in ((0, 4), (100, 5), (200, 4), (299, 4)):
        web = decide(web, Need(fewer, "cpu"), NOW + seconds)
        assert web.replicas == 8
    web = decide(web, Need(4, "cpu"), NOW + 300)
    assert web.replicas == 5, "the most that was needed"


def test_a_window_begins_anew_when_the_number_is_right_again() -> None:
    web = decide(scaled(4), Need(1, "cpu"), NOW)
    web = decide(web, Need(4, "cpu"), NOW + 200)
    web = decide(web, Need(1, "cpu"), NOW + 301)
    assert web.replicas == 4
    assert decide(web, Need(1, "cpu"), NOW + 602).replicas == 2


def test_one_decision_doubles_or_halves_at_most() -> None:
    web = decide(scaled(4, replace(SCALE, most=100)), Need(90, "cpu"), NOW)
    assert web.replicas == 8
    web = decide(scaled(1, replace(SCALE, most=100)), Need(90, "cpu"), NOW)
    assert web.replicas == 5
    web = decide(scaled(9, replace(SCALE, down_window=0.0)), Need(1, "cpu"), NOW)
    assert web.replicas == 5


def test_planning_follows_the_decision() -> None:
    world = World(node("a"), scaled(2))
    world.obey()
    web = world.view.services["web-id"]
    world.put(decide(web, Need(3, "cpu"), NOW))
    world.obey()
    assert len(world.tasks(TaskState.RUNNING)) == 3
    world.put(replace(web, spec=replace(web.spec, autoscale=AutoscaleSpec())))
    world.obey()
    assert len(world.tasks(TaskState.RUNNING)) == 2


def test_autoscaling_goes_on_from_the_number_that_a_user_sets() -> None:
    web = decide(scaled(2), Need(4, "cpu"), NOW)
    assert web.replicas == 4
    labelled = with_spec(web, replace(web.spec, labels={"a": "b"}), "", NOW)
    assert labelled.replicas == 4
    assert with_spec(web, replace(web.spec, replicas=7), "", NOW).replicas == 7


def test_services_that_are_updated_or_removed_are_left_alone() -> None:
    web, gone = scaled(), replace(scaled(), id="gone", removed=True)
    moved = with_spec(web, replace(web.spec, task=replace(web.spec.task, force=1)), "", NOW)
    assert autoscaled(World(web, gone).view) == [web]
    assert autoscaled(World(moved).view) == []


@pytest.mark.parametrize(
    "spec",
    [
        AutoscaleSpec(least=2),
        AutoscaleSpec(least=3, most=2, cpu=50),
        AutoscaleSpec(least=0, most=2, cpu=50),
        AutoscaleSpec(least=1, most=2),
        AutoscaleSpec(least=1, most=2, cpu=-1),
        AutoscaleSpec(least=1, most=2, cpu=50, up_window=-1.0),
    ],
)
def test_invalid_specs_are_refused(spec: AutoscaleSpec) -> None:
    with pytest.raises(ValueError, match=r"autoscaling|target|window"):
        check_autoscale(spec)


@given(
    st.integers(1, 5),
    st.integers(0, 20),
    st.integers(0, 30),
    st.sampled_from((0.0, 45.0)),
    st.sampled_from((0.0, 300.0)),
    st.lists(st.tuples(st.integers(0, 400), st.sampled_from((-20.0, 15.0, 100.0))), max_size=30),
)
@settings(max_examples=200, deadline=None)
def test_the_number_stays_within_its_bounds(
    least: int,
    room: int,
    replicas: int,
    up: float,
    down: float,
    measured: list[tuple[int, float]],
) -> None:
    scale = AutoscaleSpec(least, least + room, 50, 0, up, down)
    web, now = scaled(replicas, scale), NOW
    for percent, seconds in measured:
        now += seconds
        before = web.replicas
        wanted = min(max(-(-before * percent // 50), scale.least), scale.most)
        web = decide(web, Need(wanted, "cpu"), now)
        assert scale.least <= web.replicas <= scale.most
        assert before - before // 2 <= web.replicas <= max(2 * before, before + 4)
        # Between where it was and what is needed: it never goes the wrong way.
        assert min(before, wanted) <= web.replicas <= max(before, wanted)


def test_it_comes_to_rest_under_a_steady_load() -> None:
    web, now = scaled(1, replace(SCALE, down_window=60.0)), NOW
    seen = []
    for _ in range(60):
        now += 15
        mean = 3.0 / web.replicas * 100
        wanted = web.replicas
        if abs(mean / 50 - 1) > 0.1:
            wanted = min(max(int(-(-web.replicas * mean // 50)), 1), 10)
        web = decide(web, Need(wanted, "cpu"), now)
        seen.append(web.replicas)
    assert seen[-20:] == [6] * 20
