# SPDX-License-Identifier: Apache-2.0
"""Generic resources of nodes: counted, given by name, never twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from builders import World, node, service, task_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.manager.planning.scheduling.generic_pool import free_on_node
from orchestrator.model.nodes import Node
from orchestrator.model.placement import GenericResource
from orchestrator.model.services import Service
from orchestrator.model.specs import UpdateOrder, UpdatePolicy
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task


def having(of: Node, **kinds: str) -> Node:
    return replace(of, description=replace(of.description, generic_resources=kinds))


def needing(name: str, replicas: int, *wanted: tuple[str, int], **fields: object) -> Service:
    resources = tuple(GenericResource(*each) for each in wanted)
    return service(name, replicas, spec=task_spec(generic_resources=resources), **fields)  # type: ignore[arg-type]


def given_to(world: World, name: str = "web") -> list[str]:
    """Node and what was given, by slot."""
    return [
        f"{t.node_id} {t.generic_resources.get('gpu', '-')}" if t.node_id else t.status.message
        for t in world.tasks()
        if t.service_name == name
    ]


def test_names_are_allocated_and_missing_ones_are_waited_for() -> None:
    world = World(having(node("a"), gpu="/dev/a,/dev/b"), node("b"), needing("web", 3, ("gpu", 1)))
    world.settle()
    assert given_to(world) == [
        "a /dev/a",
        "a /dev/b",
        "no suitable node (2 nodes: insufficient gpu)",
    ]


def test_resource_beyond_every_node_never_fits() -> None:
    world = World(having(node("a"), gpu="2"), needing("web", 1, ("gpu", 3)))
    world.settle()
    assert given_to(world) == [
        "unschedulable: no node has enough capacity (1 node: insufficient gpu)"
    ]


def test_named_resources_are_allocated_or_waited_for() -> None:
    a = having(node("a"), gpu="/dev/dri/card0,/dev/dri/card1")
    b = having(node("b"), gpu="v.com/gpu=0,v.com/gpu=GPU-7")
    wanted = GenericResource("gpu", 2, ("GPU-7", "0"))
    web = service("web", 2, spec=task_spec(generic_resources=(wanted,)))
    one = service(
        "one", 2, spec=task_spec(generic_resources=(GenericResource("gpu", 1, ("card1",)),))
    )
    none = service(
        "none", 1, spec=task_spec(generic_resources=(GenericResource("gpu", 1, ("card7",)),))
    )
    world = World(a, b, web, one, none)
    world.settle()
    assert given_to(world) == [
        "b v.com/gpu=GPU-7,v.com/gpu=0",
        "no suitable node (2 nodes: no free gpu GPU-7, 0)",
    ]
    assert given_to(world, "one") == [
        "a /dev/dri/card1",
        "no suitable node (2 nodes: no free gpu card1)",
    ]
    assert given_to(world, "none") == [
        "unschedulable: no node has enough capacity (2 nodes: no free gpu card7)"
    ]


def test_all_of_a_node_are_given_when_none_of_them_is_taken() -> None:
    every = task_spec(generic_resources=(GenericResource("gpu", 1, every=True),))
    a, b = having(node("a"), gpu="/dev/a,/dev/b"), having(node("b"), gpu="3")
    world = World(a, b, node("c"), service("web", 3, spec=every))
    world.settle()
    assert sorted(given_to(world)) == [
        "a /dev/a,/dev/b",
        "b 3",
        "no suitable node (3 nodes: no gpu, or not all of them free)",
    ]


def test_a_number_is_counted() -> None:
    world = World(having(node("a"), gpu="5"), needing("web", 3, ("gpu", 2)))
    world.settle()
    assert given_to(world)[:2] == ["a 2", "a 2"]
    assert free_on_node(world.view, world.view.nodes["a"], "gpu") == ((), 1)


def test_ended_tasks_release_resources_and_stopping_ones_do_not_yet() -> None:
    world = World(having(node("a"), gpu="/dev/a"), needing("web", 1, ("gpu", 1)))
    world.obey()
    first = world.task()
    world.put(needing("other", 1, ("gpu", 1)))
    world.settle()
    assert given_to(world, "other") == ["no suitable node (1 node: insufficient gpu)"]
    gone = world.view.services["web-id"]
    world.put(replace(gone, removed=True))
    world.settle()
    assert given_to(world, "other") == ["no suitable node (1 node: insufficient gpu)"]
    world.report(world.view.tasks[first.id], TaskState.SHUTDOWN)
    world.settle()
    assert given_to(world, "other") == ["a /dev/a"]


def test_a_node_may_come_back_with_others() -> None:
    host = having(node("a"), gpu="/dev/a,/dev/b")
    world = World(host, needing("web", 2, ("gpu", 1)))
    world.obey()
    world.put(having(host, gpu="/dev/b,/dev/c"))
    assert free_on_node(world.view, world.view.nodes["a"], "gpu") == (("/dev/c",), 1)
    world.put(having(host, gpu="1"))
    assert free_on_node(world.view, world.view.nodes["a"], "gpu")[1] == -1
    world.put(having(host))
    assert free_on_node(world.view, world.view.nodes["a"], "gpu")[1] == -2


nodes = st.builds(
    lambda id, gpu, key: having(node(id), **{k: v for k, v in (("gpu", gpu), ("key", key)) if v}),
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(["", "/dev/a", "/dev/a,/dev/b,/dev/c", "3"]),
    st.sampled_from(["", "red,blue", "1"]),
)
services = st.builds(
    lambda name, replicas, gpu, key, order: needing(
        name,
        replicas,
        *(each for each in (("gpu", gpu), ("key", key)) if each[1]),
        update=UpdatePolicy(order=order),
    ),
    st.sampled_from(["x", "y", "z"]),
    st.integers(0, 5),
    st.integers(0, 2),
    st.integers(0, 1),
    st.sampled_from(UpdateOrder),
)


@given(
    st.lists(nodes, min_size=1, max_size=3, unique_by=lambda each: each.id),
    st.lists(services, min_size=1, max_size=3, unique_by=lambda each: each.id),
    st.sets(st.sampled_from(["x", "y", "z"])),
)
@settings(max_examples=150)
def test_nothing_is_given_twice(
    hosts: list[Node], declared: list[Service], changed: set[str]
) -> None:
    world = World(*hosts, *declared)
    world.obey()
    check(world)
    for of in declared:
        if of.spec.name in changed:
            spec = replace(of.spec, task=replace(of.spec.task, force=1))
            world.put(replace(of, spec=spec, spec_version=2))
    world.settle()
    check(world)
    world.obey()
    check(world)


def check(world: World) -> None:
    for host in world.view.nodes.values():
        has = host.description.generic_resources
        live = [
            t
            for t in world.view.tasks_of_node(host.id).values()
            if TaskState.ASSIGNED <= t.status.state <= TaskState.RUNNING
        ]
        for kind in ("gpu", "key"):
            texts = [t.generic_resources[kind] for t in live if kind in t.generic_resources]
            if has.get(kind, "").isdecimal():
                assert sum(map(int, texts)) <= int(has[kind])
            else:
                names = Counter(name for text in texts for name in text.split(","))
                assert all(count == 1 for count in names.values())
                assert names.keys() <= set(has.get(kind, "").split(","))
        for item in live:
            assert_given(item)


def assert_given(item: Task) -> None:
    for each in item.spec.generic_resources:
        text = item.generic_resources[each.kind]
        assert (int(text) if text.isdecimal() else len(text.split(","))) == each.count
