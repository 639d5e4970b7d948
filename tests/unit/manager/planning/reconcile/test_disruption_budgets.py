# SPDX-License-Identifier: Apache-2.0
"""Disruption budgets: how many tasks of a service a drain stops at a time."""

from __future__ import annotations

from dataclasses import replace

from builders import NOW, World, node, service
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.manager.planning.dry_run import Action, simulate
from orchestrator.manager.planning.plan import Change
from orchestrator.model.nodes import Availability, Node
from orchestrator.model.scheduling.disruptions import DisruptionBudget, most_unavailable
from orchestrator.model.services import Service
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task

RUNNING = TaskState.RUNNING


def budgeted(replicas: int, *, least: str = "", most: str = "") -> Service:
    web = service("web", replicas)
    return replace(web, spec=replace(web.spec, disruption=DisruptionBudget(least, most)))


def drained(host: Node, most: int = 0, deadline: float = 0.0) -> Node:
    return replace(host, availability=Availability.DRAIN, drain_most=most, drain_deadline=deadline)


def on_one_node(*services: Service) -> World:
    """A world whose services are all on node a, and b is empty."""
    world = World(node("a"), *services)
    world.obey()
    world.put(node("b"))
    world.settle()
    return world


def working(world: World) -> int:
    return sum(item.status.works and item.desired_state <= RUNNING for item in world.tasks())


def unfinished(world: World) -> list[Task]:
    return [
        item
        for item in world.tasks()
        if TaskState.ASSIGNED <= item.status.state <= RUNNING
        and (item.desired_state > RUNNING or item.status.state < RUNNING)
    ]


def test_drain_stops_no_more_tasks_than_the_budget_allows() -> None:
    world = on_one_node(budgeted(5, least="4"))
    world.put(drained(world.view.nodes["a"]))
    world.settle()
    assert working(world) == 4
    world.obey()
    assert {item.node_id for item in world.tasks(RUNNING)} == {"b"}


def test_stricter_of_drain_and_budget_applies() -> None:
    world = on_one_node(budgeted(5, most="3"))
    world.put(drained(world.view.nodes["a"], most=2))
    world.settle()
    assert working(world) == 3
    world = on_one_node(budgeted(5, most="1"))
    world.put(drained(world.view.nodes["a"], most=2))
    world.settle()
    assert working(world) == 4


def test_deadline_of_a_drain_overrides_the_budget() -> None:
    world = on_one_node(budgeted(2, most="0"))
    world.put(drained(world.view.nodes["a"], deadline=NOW + 60))
    world.obey()
    assert working(world) == 2
    assert {item.node_id for item in world.tasks(RUNNING)} == {"a"}
    world.pass_time(60.0)
    world.obey()
    assert {item.node_id for item in world.tasks(RUNNING)} == {"b"}


def test_budget_holds_when_nodes_no_longer_meet_a_constraint() -> None:
    web = budgeted(3, least="2")
    web = replace(web, spec=replace(web.spec, constraints=("node.labels.zone==a",)))
    world = World(node("a", labels={"zone": "a"}), web)
    world.obey()
    world.put(node("b", labels={"zone": "a"}))
    world.put(replace(world.view.nodes["a"], labels={"zone": "b"}))
    world.settle()
    assert working(world) == 2


def test_percentages_are_rounded_up() -> None:
    assert most_unavailable(DisruptionBudget(min_available="50%"), 5) == 2
    assert most_unavailable(DisruptionBudget(max_unavailable="30%"), 5) == 2
    assert most_unavailable(DisruptionBudget(min_available="9"), 5) == 0
    assert most_unavailable(DisruptionBudget("1", "3"), 3) == 2


@given(
    st.integers(1, 6),
    st.sampled_from(("0", "1", "3", "50%", "80%")),
    st.sampled_from(("", "1", "2", "34%")),
    st.randoms(use_true_random=False),
)
@settings(max_examples=100, deadline=None)
def test_drain_never_breaks_a_budget(replicas: int, least: str, most: str, random: object) -> None:
    web = budgeted(replicas, least=least, most=most)
    world = on_one_node(web)
    allowed = most_unavailable(web.spec.disruption, replicas)
    world.put(drained(world.view.nodes["a"]))
    for _ in range(200):
        world.settle()
        assert working(world) >= replicas - allowed
        if not (todo := unfinished(world)):
            break
        item = random.choice(todo)  # type: ignore[attr-defined]
        ends = item.desired_state > RUNNING
        world.report(item, TaskState.SHUTDOWN if ends else RUNNING)
    where = {item.node_id for item in world.tasks(RUNNING)}
    assert where == ({"b"} if allowed else {"a"})


def test_plan_names_the_tasks_that_a_budget_keeps() -> None:
    world = on_one_node(budgeted(2, most="0"))
    host = world.view.nodes["a"]
    steps = simulate(world.view, [Change(host, drained(host))], NOW, iter("abcdefgh").__next__)
    assert [(step.action, step.name, step.source, step.target) for step in steps] == [
        (Action.WAIT, "web.1", "a", "a"),
        (Action.WAIT, "web.2", "a", "a"),
    ]
    assert {step.reason for step in steps} == {
        "no more of its service may be unavailable; it stays on its node"
    }
