# SPDX-License-Identifier: Apache-2.0
"""How many more tasks fit, and how nodes compare for a task."""

from __future__ import annotations

from dataclasses import replace

from builders import MIB, NOW, World, node, service, task_spec

from orchestrator.manager.planning.scheduling.explanation import (
    Capacity,
    capacity,
    next_task,
    verdicts,
)
from orchestrator.model.nodes import Availability
from orchestrator.model.scheduling.affinities import Affinity
from orchestrator.model.services import Service
from orchestrator.model.specs import TaskSpec


def counted(world: World, of: Service | None, spec: TaskSpec | None = None) -> Capacity:
    return capacity(world.view, of, spec or task_spec(), NOW)


def by_node(found: Capacity) -> dict[str, int]:
    return {room.node.id: room.tasks for room in found.nodes}


def test_capacity_counts_what_the_scheduler_would_place() -> None:
    web = service("web", 2, spec=task_spec(shares=512, memory=64 * MIB))
    world = World(node("a", shares=1024), node("b", shares=4096, memory=256 * MIB), web)
    world.obey()
    found = counted(world, web)
    assert (found.tasks, by_node(found)) == (4, {"a": 1, "b": 3})
    assert (
        found.limit == "no suitable node (1 node: insufficient shares; 1 node: insufficient memory)"
    )
    assert [room.limit for room in found.nodes] == ["insufficient shares", "insufficient memory"]
    assert (found.largest is not None and found.largest.id, found.per_largest) == ("b", 4)
    more = service("web", 6, spec=web.spec.task)
    world.put(replace(web, spec=more.spec))
    world.obey()
    assert counted(world, web).tasks == 0
    assert not [item for item in world.view.pending.values()], "as many fit as were counted"


def test_capacity_counts_the_rules_of_the_service() -> None:
    rule = Affinity("service==web", anti=True)
    web = service("web", 1)
    web = replace(web, spec=replace(web.spec, affinities=(rule,)))
    world = World(node("a"), node("b"), node("c", availability=Availability.DRAIN), web)
    world.obey()
    found = counted(world, web)
    assert found.tasks == 1
    assert {room.node.id: room.if_active for room in found.nodes} == {"a": 0, "b": 0, "c": 1}


def test_capacity_of_containers() -> None:
    world = World(node("a", shares=1000, memory=512 * MIB))
    assert counted(world, None).tasks == 7
    assert counted(world, None, task_spec(memory=256 * MIB)).tasks == 2
    assert World().view.nodes == {}
    assert counted(World(), None).limit.startswith("no suitable node (the cluster has no nodes")


def test_counting_preempts_nothing() -> None:
    low, top = service("low", 1, spec=task_spec(shares=1024)), service("top", 0)
    top = replace(top, spec=replace(top.spec, priority=9, task=task_spec(shares=1024)))
    world = World(node("a", shares=1024), low, top)
    world.obey()
    assert counted(world, top).tasks == 0


def test_nodes_compare_as_the_scheduler_would_choose() -> None:
    web = service("web", 2)
    world = World(node("a"), node("b"), node("c", shares=64), web)
    world.obey()
    reason, found = verdicts(world.view, world.task(1), NOW)
    assert reason == ""
    where = world.task(1).node_id
    assert [(each.node.id, each.place) for each in found] == [
        (where, 1),
        ("b" if where == "a" else "a", 2),
        ("c", 0),
    ]
    assert found[0].tasks == 0
    assert found[1].tasks == 1
    assert found[2].refusals == ("insufficient shares",)
    _, further = verdicts(world.view, next_task(web), NOW)
    assert [each.tasks for each in further] == [1, 1, 0]


def test_what_no_node_can_take_says_why() -> None:
    web = service("web", 1, spec=task_spec(image="web:1"))
    web = replace(web, spec=replace(web.spec, constraints=("node.labels.zone==a",)))
    world = World(node("a"), node("b", availability=Availability.PAUSE), web)
    world.obey()
    _, found = verdicts(world.view, world.task(1), NOW)
    assert {each.node.id: each.refusals for each in found} == {
        "a": ("constraint node.labels.zone==a not met",),
        "b": ("paused", "constraint node.labels.zone==a not met"),
    }
