# SPDX-License-Identifier: Apache-2.0
"""Draining nodes: at once, a few tasks at a time, and by a deadline."""

from __future__ import annotations

from dataclasses import replace

from builders import NOW, World, node, service
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.manager.planning.dry_run import Action, simulate
from orchestrator.manager.planning.plan import Change
from orchestrator.model.nodes import Availability, Node
from orchestrator.model.specs import ServiceMode, UpdateOrder, UpdatePolicy
from orchestrator.model.states import TaskState

START_FIRST = UpdatePolicy(order=UpdateOrder.START_FIRST)
RUNNING = TaskState.RUNNING


def drained(host: Node, most: int = 0, deadline: float = 0.0) -> Node:
    return replace(host, availability=Availability.DRAIN, drain_most=most, drain_deadline=deadline)


def full_node(*services: object) -> World:
    """A world whose services are all on node a, and b is empty."""
    world = World(node("a"), *services)  # type: ignore[arg-type]
    world.obey()
    world.put(node("b"))
    world.settle()
    return world


def working(world: World, name: str = "web") -> int:
    return sum(
        item.status.works and item.desired_state <= RUNNING and item.service_name == name
        for item in world.tasks()
    )


def test_drain_moves_all_tasks_at_once_by_default() -> None:
    world = full_node(service("web", 5))
    world.put(drained(world.view.nodes["a"]))
    world.settle()
    assert working(world) == 0


def test_a_drain_limits_unavailable_tasks_of_a_service() -> None:
    world = full_node(service("web", 5), service("db", 3))
    world.put(drained(world.view.nodes["a"], most=2))
    world.settle()
    assert (working(world), working(world, "db")) == (3, 1)
    least = 5
    for _ in range(100):
        todo = [
            item
            for item in world.tasks()
            if TaskState.ASSIGNED <= item.status.state <= RUNNING
            and (item.desired_state > RUNNING or item.status.state < RUNNING)
        ]
        if not todo:
            break
        item = todo[0]
        ends = item.desired_state > RUNNING
        world.report(item, TaskState.SHUTDOWN if ends else RUNNING)
        world.settle()
        least = min(least, working(world))
    assert least == 3
    assert {item.node_id for item in world.tasks(RUNNING)} == {"b"}


def test_failing_tasks_do_not_count_as_unavailable_in_a_drain() -> None:
    world = World(node("a"), service("web", 2))
    world.settle()
    world.report(world.task(1), RUNNING)
    world.settle()
    world.put(node("b"))
    world.put(drained(world.view.nodes["a"], most=1))
    world.settle()
    assert {item.slot: item.desired_state > RUNNING for item in world.tasks()} == {
        1: False,
        2: True,
    }


def test_start_first_task_is_kept_until_its_replacement_works_or_the_deadline() -> None:
    web = service("web", 2, update=START_FIRST)
    world = World(node("a"), web)
    world.obey()
    world.put(drained(world.view.nodes["a"], deadline=NOW + 60))
    world.obey()
    assert working(world) == 2, "there is nowhere to go"
    world.pass_time(59.0)
    assert working(world) == 2
    world.pass_time(1.0)
    assert working(world) == 0
    world.obey()
    assert not world.tasks(RUNNING)


def test_the_deadline_ends_a_drain_that_has_no_room_to_go_on() -> None:
    world = World(node("a"), service("web", 3))
    world.obey()
    world.put(drained(world.view.nodes["a"], most=1, deadline=NOW + 60))
    world.obey()
    assert working(world) == 2, "the first waits for a node, so the others stay"
    world.pass_time(60.0)
    assert working(world) == 0


def test_undrained_node_keeps_its_remaining_tasks() -> None:
    world = World(node("a"), service("web", 3))
    world.obey()
    world.put(drained(world.view.nodes["a"], most=1))
    world.obey()
    host = world.view.nodes["a"]
    world.put(replace(host, availability=Availability.ACTIVE, drain_most=0))
    world.obey()
    assert working(world) == 3


def test_a_global_service_leaves_too() -> None:
    world = full_node(service("each", mode=ServiceMode.GLOBAL))
    world.obey()
    world.put(drained(world.view.nodes["a"], most=1))
    world.obey()
    assert {item.node_id for item in world.tasks(RUNNING)} == {"b"}


def test_plan_shows_the_drain() -> None:
    world = full_node(service("web", 3))
    host = world.view.nodes["a"]
    steps = simulate(
        world.view, [Change(host, drained(host, most=1))], NOW, iter("abcdefgh").__next__
    )
    assert [(step.action, step.target) for step in steps] == [(Action.MOVE, "b")] * 3


@given(
    st.integers(1, 6),
    st.integers(1, 3),
    st.sampled_from(UpdateOrder),
    st.randoms(use_true_random=False),
)
@settings(max_examples=100)
def test_never_fewer_than_allowed_and_all_gone_at_the_end(
    replicas: int, most: int, order: UpdateOrder, random: object
) -> None:
    world = full_node(service("web", replicas, update=UpdatePolicy(order=order)))
    world.put(drained(world.view.nodes["a"], most=most))
    for _ in range(200):
        world.settle()
        assert working(world) >= replicas - most
        todo = [
            item
            for item in world.tasks()
            if TaskState.ASSIGNED <= item.status.state <= RUNNING
            and (item.desired_state > RUNNING or item.status.state < RUNNING)
        ]
        if not todo:
            break
        item = random.choice(todo)  # type: ignore[attr-defined]
        ends = item.desired_state > RUNNING
        world.report(item, TaskState.SHUTDOWN if ends else RUNNING)
    assert [item.node_id for item in world.tasks(RUNNING)] == ["b"] * replicas
