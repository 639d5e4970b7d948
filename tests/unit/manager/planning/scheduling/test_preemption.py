# SPDX-License-Identifier: Apache-2.0
"""Priorities: who chooses first, and which tasks are stopped to make room."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from builders import NOW, World, node, service, task_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.manager.planning.disruptions import unavailable
from orchestrator.manager.planning.dry_run import Action, simulate
from orchestrator.manager.planning.node_load import occupies
from orchestrator.manager.planning.pipeline import dirty_of
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.scheduling.capacity import reserved
from orchestrator.manager.planning.slots import slots_of
from orchestrator.model.scheduling.disruptions import (
    DisruptionBudget,
    most_unavailable,
    parse_priority,
)
from orchestrator.model.services import Service
from orchestrator.model.specs import RestartPolicy
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus

RUNNING = TaskState.RUNNING


def prioritised(
    name: str, replicas: int, priority: int, shares: int = 1024, least: str = "", **fields: Any
) -> Service:
    made = service(name, replicas, spec=task_spec(shares=shares, **fields))
    budget = DisruptionBudget(min_available=least)
    return replace(made, spec=replace(made.spec, priority=priority, disruption=budget))


def running(world: World) -> list[str]:
    return [
        item.name
        for item in world.tasks(RUNNING)
        if item.desired_state <= RUNNING and item.service_name
    ]


def victims(world: World) -> list[str]:
    return sorted(
        item.name for item in world.tasks() if item.preempted_by and item.desired_state > RUNNING
    )


def test_tasks_of_higher_priority_choose_first() -> None:
    world = World(node("a", shares=2048), prioritised("low", 2, -5), prioritised("top", 1, 5))
    world.obey()
    assert running(world) == ["low.1", "top.1"]


def test_room_is_made_for_a_task_that_fits_nowhere() -> None:
    world = World(node("a", shares=2048), prioritised("low", 2, 0))
    world.obey()
    world.now += 10
    world.put(prioritised("top", 1, 100))
    world.settle()
    [waiting] = world.tasks(TaskState.PENDING)
    assert waiting.name == "top.1"
    assert waiting.status.message == "waiting for room on host-a, where tasks are stopping"
    assert victims(world) == ["low.2"]
    world.obey()
    assert running(world) == ["low.1", "top.1"]
    [again] = world.tasks(TaskState.PENDING)
    assert (again.name, again.preempted_by) == ("low.2", "top.1")
    world.put(node("b", shares=1024))
    world.obey()
    assert running(world) == ["low.1", "low.2", "top.1"]


def test_equal_priority_does_not_preempt() -> None:
    world = World(node("a", shares=1024), prioritised("old", 1, 7))
    world.obey()
    world.put(prioritised("new", 1, 7))
    world.obey()
    assert running(world) == ["old.1"]


def test_fewest_then_lowest_then_youngest_go() -> None:
    world = World(node("a", shares=2048), prioritised("many", 4, 0, shares=512))
    world.obey()
    world.put(node("b", shares=2048))
    world.put(prioritised("mid", 1, 5, shares=1024))
    world.put(prioritised("low", 1, 1, shares=1024))
    world.obey()
    assert running(world) == ["low.1", "many.1", "many.2", "many.3", "many.4", "mid.1"]
    world.put(prioritised("top", 1, 9, shares=1024))
    world.obey()
    assert running(world) == ["many.1", "many.2", "many.3", "many.4", "mid.1", "top.1"]


def test_youngest_of_equal_priority_goes() -> None:
    world = World(node("a", shares=2048), prioritised("old", 1, 0))
    world.obey()
    world.now += 100
    world.put(prioritised("new", 1, 0))
    world.obey()
    world.put(prioritised("top", 1, 1))
    world.obey()
    assert running(world) == ["old.1", "top.1"]


def test_no_service_falls_below_its_budget() -> None:
    world = World(node("a", shares=3072), prioritised("low", 3, 0, least="2"))
    world.obey()
    world.put(prioritised("top", 2, 100))
    world.obey()
    assert running(world) == ["low.1", "low.2", "top.1"]


def test_standalone_containers_are_not_preempted() -> None:
    alone = Task(
        id="alone",
        container_name="alone",
        spec=task_spec(shares=1024),
        status=TaskStatus(TaskState.PENDING, run=1),
        run=1,
        desired_state=RUNNING,
        priority=-50,
    )
    world = World(node("a", shares=1024), alone)
    world.obey()
    world.put(prioritised("top", 1, 100))
    world.obey()
    assert world.view.tasks["alone"].status.state is RUNNING
    assert world.view.tasks["alone"].desired_state is RUNNING


def test_a_published_port_is_taken_over() -> None:
    world = World(node("a"), prioritised("low", 1, 0, ports=(80,)), prioritised("other", 1, 0))
    world.obey()
    world.put(prioritised("top", 1, 100, ports=(80,)))
    world.obey()
    assert running(world) == ["other.1", "top.1"]


def test_a_replacement_of_a_preempted_task_does_not_preempt_in_turn() -> None:
    world = World(node("a", shares=1024), prioritised("mid", 1, 5))
    world.obey()
    world.put(replace(node("b", shares=1024), labels={"x": "y"}))
    world.put(prioritised("low", 1, 0))
    world.obey()
    top = prioritised("top", 1, 9)
    top = replace(top, spec=replace(top.spec, constraints=("node.id==a",)))
    world.put(top)
    world.obey()
    assert running(world) == ["low.1", "top.1"]


def test_room_is_held_against_lower_priorities() -> None:
    world = World(node("a", shares=2048), prioritised("low", 1, 0))
    world.obey()
    world.put(prioritised("top", 1, 9, shares=2048))
    world.settle()
    world.put(prioritised("mid", 1, 5))
    world.settle()
    assert [item.name for item in world.tasks(TaskState.PENDING)] == ["mid.1", "top.1"]
    world.obey()
    assert running(world) == ["top.1"]


def test_a_crashing_task_and_its_victim_do_not_take_turns() -> None:
    world = World(node("a", shares=1024), prioritised("low", 1, 0))
    world.obey()
    top = prioritised("top", 1, 9, restart=RestartPolicy(delay=5.0))
    world.put(top)
    world.obey()
    assert running(world) == ["top.1"]
    for _ in range(3):
        [live] = world.tasks(RUNNING)
        world.report(live, TaskState.FAILED, exit_code=1)
        world.settle()
        assert running(world) == []
        world.pass_time(60.0)
        world.obey()
        assert running(world) == ["top.1"]
    assert sum(item.name == "low.1" for item in world.tasks()) == 2


def test_plan_shows_who_must_go() -> None:
    world = World(node("a", shares=1024), prioritised("low", 1, 0))
    world.obey()
    steps = simulate(
        world.view, [Change(None, prioritised("top", 1, 9))], NOW, iter("abcdefgh").__next__
    )
    found = {step.name: (step.action, step.reason.partition(";")[0]) for step in steps}
    assert found == {
        "low.1": (Action.WAIT, "preempted by top.1"),
        "top.1": (Action.START, ""),
    }


services = st.lists(
    st.tuples(
        st.integers(1, 4),
        st.integers(0, 3),
        st.sampled_from((256, 512, 1024)),
        st.sampled_from(("", "1", "50%", "100%")),
    ),
    min_size=1,
    max_size=5,
)


@given(services, st.integers(1, 3), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_preemption_ends_and_keeps_budgets(
    wanted: list[tuple[int, int, int, str]], nodes: int, random: Any
) -> None:
    world = World(*(node(f"n{each}", shares=2048) for each in range(nodes)))
    for number, (replicas, priority, shares, least) in enumerate(wanted):
        world.put(prioritised(f"s{number}", replicas, priority, shares, least))
        for _ in range(random.randrange(12)):
            world.settle()
            check(world)
            todo = [
                item
                for item in world.tasks()
                if TaskState.ASSIGNED <= item.status.state <= RUNNING
                and (item.desired_state > RUNNING or item.status.state < RUNNING)
            ]
            if not todo:
                break
            item = random.choice(todo)
            ends = item.desired_state > RUNNING
            world.report(item, TaskState.SHUTDOWN if ends else RUNNING)
            check_budgets(world)
    world.obey()
    check(world)
    stopped = [item for item in world.tasks() if item.preempted_by and item.node_id]
    total = sum(replicas for replicas, *_ in wanted)
    assert len(stopped) <= total * len(wanted), "preemption goes on and on"


def check(world: World) -> None:
    view = world.view
    for host in view.nodes.values():
        tasks = view.tasks_of_node(host.id).values()
        taken = reserved(task for task in tasks if occupies(task))
        assert taken.shares <= host.description.resources.shares
    for item in view.tasks.values():
        if not item.preempted_by or item.desired_state <= RUNNING:
            continue
        own = view.services[item.service_id]
        by = view.service_by_name(item.preempted_by.rpartition(".")[0])
        assert by is not None
        assert by.spec.priority > own.spec.priority


def check_budgets(world: World) -> None:
    """One pass stops no more working tasks than the budgets allow."""
    before = world.view
    world.plan()
    for own in world.view.services.values():
        old, new = (
            [slot for slot in slots_of(view.tasks_of_service(own.id)).values() if slot.kept]
            for view in (before, world.view)
        )
        most = most_unavailable(own.spec.disruption, len(new))
        assert unavailable(new) <= max(most, unavailable(old))


@pytest.mark.parametrize("text", ["", "highest", "1e3", "2000000", "--5"])
def test_invalid_priorities_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"priority|not a whole number"):
        parse_priority(text)


def test_room_that_is_no_longer_held_is_given_to_others() -> None:
    top = prioritised("top", 1, 9, shares=2048)
    world = World(node("a", shares=2048), prioritised("low", 1, 0))
    world.obey()
    world.put(top)
    world.settle()
    world.put(prioritised("mid", 1, 5))
    world.settle()
    assert sorted(item.name for item in world.view.pending.values()) == ["mid.1", "top.1"]
    # A node comes on which the first fits: what was held for it is free.
    world.put(node("b", shares=2048))
    world.settle()
    placed = {item.name: item.node_id for item in world.tasks(TaskState.ASSIGNED)}
    assert placed == {"top.1": "b", "mid.1": "a"}


def test_room_that_a_pass_gives_up_is_offered_to_services_at_rest() -> None:
    world = World(node("a", shares=2048))
    for name in ("one", "two"):
        world.put(prioritised(name, 1, 0, shares=256))
        world.settle()
        world.report(world.task(), RUNNING)
        world.settle()
    world.put(prioritised("mid", 2, 1, shares=1024))
    world.settle()
    [two] = [item for item in world.tasks(RUNNING) if item.service_name == "two"]
    world.report(two, TaskState.SHUTDOWN)
    world.plan()
    # It takes the room that is held for mid.2, and leaves enough for two.1.
    world.put(prioritised("top", 1, 2, shares=256))
    world.obey()
    assert running(world) == ["mid.1", "one.1", "top.1", "two.1"]


def test_pending_tasks_are_tried_when_a_holder_gives_up_its_node() -> None:
    web = service("web")
    holder = Task(
        id="t1",
        service_id=web.id,
        service_name="web",
        slot=1,
        status=TaskStatus(TaskState.PENDING),
        nominated_node="a",
    )
    released = replace(holder, nominated_node="")
    assert dirty_of([Change(holder, released)]).capacity_freed
    assert not dirty_of([Change(released, holder)]).capacity_freed
