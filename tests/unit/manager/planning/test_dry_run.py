# SPDX-License-Identifier: Apache-2.0
"""A dry run predicts what then happens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from builders import GIB, MIB, World, node, service, task, task_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.manager.planning.dry_run import Action, Step, simulate
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.reconcile.spec_history import with_spec
from orchestrator.model.dependencies import Dependency, DependencyCondition
from orchestrator.model.nodes import Availability, Node
from orchestrator.model.objects import Image, Object
from orchestrator.model.placement import GenericResource, Strategy
from orchestrator.model.scheduling.affinities import parse_affinity
from orchestrator.model.services import Service
from orchestrator.model.specs import (
    RestartCondition,
    RestartPolicy,
    ServiceMode,
    UpdateOrder,
    UpdatePolicy,
)
from orchestrator.model.states import TaskState


def plan_of(world: World, *changes: Change) -> list[Step]:
    ids = (f"plan{number}" for number in range(10**6))
    return simulate(world.view, changes, world.now, lambda: next(ids))


def at_rest(*objects: Object) -> World:
    world = World(*objects)
    world.obey()
    return world


def scaled(of: Service, replicas: int) -> Service:
    return replace(of, spec=replace(of.spec, replicas=replicas))


def test_a_new_service_starts_tasks() -> None:
    world = at_rest(node("a"), node("b"))
    assert plan_of(world, Change(None, service(replicas=3))) == [
        Step(Action.START, "web", "web.1", "", "a"),
        Step(Action.START, "web", "web.2", "", "b"),
        Step(Action.START, "web", "web.3", "", "a"),
    ]
    assert world.view.services == {}


def test_task_that_does_not_fit_waits_with_a_reason() -> None:
    world = at_rest(node("a", memory=GIB))
    [first, second] = plan_of(
        world, Change(None, service(replicas=2, spec=task_spec(memory=600 * MIB)))
    )
    assert first.action is Action.START
    assert (second.action, second.target) == (Action.WAIT, "")
    assert "memory" in second.reason


def test_changed_tasks_are_replaced_and_surplus_ones_stop() -> None:
    web = service(replicas=3)
    world = at_rest(node("a"), web)
    changed = with_spec(web, replace(web.spec, replicas=2, task=task_spec(image="web:2")), "", 1.0)
    assert plan_of(world, Change(world.view.services["web-id"], changed)) == [
        Step(Action.REPLACE, "web", "web.1", "a", "a"),
        Step(Action.REPLACE, "web", "web.2", "a", "a"),
        Step(Action.STOP, "web", "web.3", "a"),
    ]


def test_awaited_dependency_completes_in_the_plan() -> None:
    setup = service("setup", spec=task_spec(restart=RestartPolicy(RestartCondition.NONE)))
    web = service("web")
    needs = (Dependency("setup", DependencyCondition.COMPLETED),)
    web = replace(web, spec=replace(web.spec, depends_on=needs))
    world = at_rest(node("a"))
    both = (Change(None, setup), Change(None, web))
    assert plan_of(world, *both) == [
        Step(Action.START, "setup", "setup.1", "", "a"),
        Step(Action.START, "web", "web.1", "", "a"),
    ]
    # Once it has, nothing changes, whatever happens to it.
    world = at_rest(node("a"), setup, web)
    (task,) = world.view.tasks_of_service("setup-id").values()
    world.report(task, TaskState.COMPLETE)
    world.obey()
    setup = world.view.services["setup-id"]
    assert plan_of(world, Change(setup, replace(setup, removed=True))) == []
    changed = with_spec(setup, replace(setup.spec, task=task_spec(image="s:2")), "", 1.0)
    assert plan_of(world, Change(setup, changed)) == [
        Step(Action.START, "setup", "setup.1", "", "a")
    ]


def test_a_drained_node_is_left() -> None:
    world = at_rest(node("a"), service(replicas=2), service("db"))
    world.put(node("b"))
    world.obey()
    drained = replace(world.view.nodes["a"], availability=Availability.DRAIN)
    steps = plan_of(world, Change(world.view.nodes["a"], drained))
    assert [(step.action, step.name, step.source, step.target) for step in steps] == [
        (Action.MOVE, "db.1", "a", "b"),
        (Action.MOVE, "web.1", "a", "b"),
        (Action.MOVE, "web.2", "a", "b"),
    ]


def test_tasks_that_a_drain_leaves_for_now_stay_in_the_plan() -> None:
    """With no room elsewhere, at most one of them stops, and waits; the other one stays."""
    world = at_rest(node("a"), service(replicas=2))
    drained = replace(world.view.nodes["a"], availability=Availability.DRAIN, drain_most=1)
    steps = plan_of(world, Change(world.view.nodes["a"], drained))
    assert [(step.action, step.name, step.source, step.target) for step in steps] == [
        (Action.WAIT, "web.1", "a", ""),
        (Action.WAIT, "web.2", "a", "a"),
    ]


def test_a_new_container_starts_or_waits() -> None:
    world = at_rest(node("a"), service("db"))
    box = replace(task("c1", TaskState.PENDING, run=1), service_id="", container_name="box", slot=0)
    box = replace(box, status=replace(box.status, run=1))
    assert plan_of(world, Change(None, box)) == [Step(Action.START, "", "box", "", "a")]
    nowhere = replace(box, constraints=("node.id==x",))
    [step] = plan_of(world, Change(None, nowhere))
    assert (step.action, step.name) == (Action.WAIT, "box")
    assert "constraint node.id==x not met" in step.reason
    assert "c1" not in world.view.tasks


def test_change_without_effect_has_an_empty_plan() -> None:
    web = service(replicas=2)
    world = at_rest(node("a"), web)
    labelled = replace(web, spec=replace(web.spec, labels={"a": "b"}))
    assert plan_of(world, Change(world.view.services["web-id"], labelled)) == []


nodes = st.builds(
    node,
    st.sampled_from(["n1", "n2", "n3"]),
    shares=st.sampled_from([256, 1024]),
    memory=st.sampled_from([256 * MIB, 1024 * MIB]),
    labels=st.sampled_from([{}, {"zone": "a"}]),
)
services = st.builds(
    service,
    st.sampled_from(["web", "db"]),
    st.integers(0, 5),
    spec=st.builds(
        task_spec,
        shares=st.sampled_from([64, 256]),
        memory=st.sampled_from([32 * MIB, 128 * MIB]),
        ports=st.sampled_from([(), (8080,)]),
    ),
    update=st.builds(
        UpdatePolicy, st.integers(0, 2), st.sampled_from([0.0, 1.0]), st.sampled_from(UpdateOrder)
    ),
    constraints=st.sampled_from([(), (), ("node.labels.zone==a",)]),
    mode=st.sampled_from([ServiceMode.REPLICATED, ServiceMode.REPLICATED, ServiceMode.GLOBAL]),
)
soft_affinities = st.lists(
    st.sampled_from(
        [
            parse_affinity("service==web", anti=True),
            parse_affinity("service==db,weight=2"),
            parse_affinity("node.labels.zone==a,weight=1", anti=True),
        ]
    ),
    max_size=2,
    unique=True,
)


@st.composite
def particular(draw: st.DrawFn) -> Service:
    """A service that is particular about where, and after whom, its tasks run."""
    made = draw(services)
    wanted = draw(st.sampled_from([(), (), (GenericResource("gpu", 1),)]))
    return replace(
        made,
        spec=replace(
            made.spec,
            strategy=draw(st.sampled_from(Strategy)),
            affinities=tuple(draw(soft_affinities)),
            depends_on=draw(st.sampled_from([(), (), (Dependency("db"),)]))
            if made.spec.name != "db"
            else (),
            task=replace(made.spec.task, generic_resources=wanted),
        ),
    )


def with_gpus(of: Node, gpus: str) -> Node:
    kinds = {"gpu": gpus} if gpus else {}
    return replace(of, description=replace(of.description, generic_resources=kinds))


hosts = st.builds(with_gpus, nodes, st.sampled_from(["", "1", "/dev/a,/dev/b"]))


@st.composite
def changes(draw: st.DrawFn, world: World) -> Change:
    """What a user may do to a cluster."""
    there = sorted(world.view.services.values(), key=lambda each: each.id)
    match draw(st.integers(0, 5)):
        case 0:
            made = draw(particular().filter(lambda each: each.id not in world.view.services))
            return Change(None, made)
        case 5:
            box = task("box-id", TaskState.PENDING, spec=draw(services).spec.task, run=1)
            status = replace(box.status, run=1)
            named = replace(box, service_id="", service_name="", container_name="box")
            rules = draw(st.sampled_from([(), ("node.labels.zone==a",)]))
            return Change(None, replace(named, slot=0, status=status, constraints=rules))
        case 1:
            some = draw(st.sampled_from(sorted(world.view.nodes.values(), key=lambda n: n.id)))
            most = draw(st.integers(0, 2))
            after = replace(some, availability=draw(st.sampled_from(Availability)))
            return Change(some, replace(after, drain_most=most))
        case 2:
            some = draw(st.sampled_from(there))
            return Change(some, scaled(some, draw(st.integers(0, 5))))
        case 3:
            some = draw(st.sampled_from(there))
            return Change(some, replace(some, removed=True))
        case _:
            some = draw(st.sampled_from(there))
            forced = replace(some.spec.task, force=some.spec.task.force + 1)
            spec = replace(some.spec, task=forced)
            return Change(some, with_spec(some, spec, "", world.now))


def lives(world: World) -> Iterable[tuple[str, str, str]]:
    """Task, its node, and why it waits."""
    for item in world.tasks():
        if item.status.state is TaskState.RUNNING:
            yield item.name, item.node_id, ""
        elif item.status.state is TaskState.PENDING:
            yield item.name, "", item.status.message


@given(st.data())
@settings(max_examples=150)
def test_plan_equals_run(data: st.DataObject) -> None:
    made = data.draw(st.lists(hosts, min_size=1, max_size=3, unique_by=lambda item: item.id))
    declared = data.draw(st.lists(particular(), min_size=1, max_size=1))
    world = at_rest(*made, *declared)
    before = {name: (where, why) for name, where, why in lives(world)}
    change = data.draw(changes(world))
    steps = plan_of(world, change)
    world.write(change)
    world.obey()
    while world.requeue_at is not None:
        world.pass_time(max(world.requeue_at - world.now, 0.0))
        world.obey()
    after = {name: (where, why) for name, where, why in lives(world)}
    foreseen = dict(before)
    for step in steps:
        match step.action:
            case Action.STOP:
                del foreseen[step.name]
            case Action.WAIT if not step.target:
                foreseen[step.name] = ("", step.reason)
            case _:
                foreseen[step.name] = (step.target, "")
    assert foreseen == after, steps


@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=6),
    st.lists(st.sampled_from([0, 100, 300, 700]), min_size=6, max_size=6),
    st.permutations(range(6)),
    st.permutations(range(6)),
)
@settings(max_examples=60, deadline=None)
def test_services_that_are_planned_together_go_where_they_go_one_after_the_other(
    counts: list[int], sizes: list[int], planned: list[int], deployed: list[int]
) -> None:
    """A stack is planned in one request, and deployed service by service, which then have other
    random ids."""
    nodes = [node(name, memory=2 * GIB) for name in "abc"]

    def services(ids: list[int]) -> list[Service]:
        return [
            replace(
                service(f"s{number}", count, spec=task_spec(memory=sizes[number] * MIB)),
                id=f"id{ids[number]}",
                created_at=1.0 + number,
            )
            for number, count in enumerate(counts)
        ]

    steps = plan_of(at_rest(*nodes), *(Change(None, each) for each in services(planned)))
    world = at_rest(*nodes)
    for each in services(deployed):
        world.put(each)
        world.settle()
        world.now += 0.01
    world.obey()
    names = {each.id: each.spec.name for each in services(deployed)}
    placed = {
        f"{names[task.service_id]}.{task.slot}": task.node_id
        for task in world.tasks(TaskState.RUNNING)
    }
    assert {step.name: step.target for step in steps if step.action is Action.START} == placed


def test_node_has_the_images_of_its_tasks() -> None:
    """So what starts later goes there, all else equal."""
    first, then = (
        service("first", spec=task_spec(image="app:1")),
        service("then", spec=task_spec(image="app:1")),
    )
    needs = (Dependency("first", DependencyCondition.STARTED),)
    then = replace(then, spec=replace(then.spec, depends_on=needs))
    image = Image(id="sha256:app", names=("app:1",), nodes=("c",))
    away = replace(node("c"), availability=Availability.DRAIN)
    world = at_rest(node("a", shares=1 << 20), node("b", shares=1 << 20), away, image)
    steps = plan_of(world, Change(None, first), Change(None, then))
    assert {step.name: step.target for step in steps} == {"first.1": "a", "then.1": "a"}
