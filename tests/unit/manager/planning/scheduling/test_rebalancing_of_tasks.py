# SPDX-License-Identifier: Apache-2.0
"""Rebalancing: which moves are proposed, and how they are carried out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

from builders import MIB, NOW, World, node, service, task_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.scheduling.capacity import reserved
from orchestrator.manager.planning.scheduling.rebalancing import Move, improving_moves
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.mounts import MountSpec, MountType
from orchestrator.model.nodes import Availability
from orchestrator.model.objects import Cluster
from orchestrator.model.placement import Strategy
from orchestrator.model.scheduling.affinities import Affinity
from orchestrator.model.specs import ContainerSpec, ServiceMode
from orchestrator.model.states import TaskState

RUNNING = TaskState.RUNNING


def proposed(world: World, most: int = 100, service_id: str = "") -> list[Move]:
    return improving_moves(world.view, world.now, most, service_id)


def order(world: World, moves: list[Move]) -> None:
    world.write(*(Change(move.task, replace(move.task, move_to=move.target.id)) for move in moves))


def working(world: World) -> int:
    return sum(item.status.works and item.desired_state <= RUNNING for item in world.tasks())


def per_node(world: World, name: str = "") -> dict[str, int]:
    return dict(
        Counter(
            item.node_id
            for item in world.tasks(RUNNING)
            if item.desired_state <= RUNNING and (not name or item.service_name == name)
        )
    )


def test_a_new_node_gets_its_share() -> None:
    world = World(node("a"), node("b"), service("web", 6))
    world.obey()
    world.put(node("c"))
    world.obey()
    assert per_node(world) == {"a": 3, "b": 3}
    moves = proposed(world)
    assert sorted((move.source.id, move.target.id) for move in moves) == [("a", "c"), ("b", "c")]
    assert moves[0].reason == "web: 3 and 0 tasks"
    order(world, moves)
    least = 6
    for _ in range(30):
        world.settle()
        least = min(least, working(world))
        todo = [
            item
            for item in world.tasks()
            if TaskState.ASSIGNED <= item.status.state <= RUNNING
            and (item.desired_state > RUNNING or item.status.state < RUNNING)
        ]
        if not todo:
            break
        ends = todo[0].desired_state > RUNNING
        world.report(todo[0], TaskState.SHUTDOWN if ends else RUNNING)
    assert per_node(world) == {"a": 2, "b": 2, "c": 2}
    assert least == 6
    assert proposed(world) == []


def test_moves_are_limited_in_number_and_to_a_service() -> None:
    world = World(node("a"), service("web", 4), service("db", 4))
    world.obey()
    world.put(node("b"))
    world.obey()
    assert len(proposed(world, most=1)) == 1
    assert {move.task.service_name for move in proposed(world, 10, "db-id")} == {"db"}


def test_loads_are_evened_out_above_the_threshold() -> None:
    names = ("one", "two", "three", "four")
    world = World(
        node("a", shares=4000),
        *(service(name, 1, spec=task_spec(shares=800)) for name in names),
    )
    world.obey()
    world.put(node("b", shares=4000))
    world.obey()
    moves = proposed(world)
    assert len(moves) == 2
    assert moves[0].reason == "loads of the nodes: 80% and 20%"
    order(world, moves)
    world.obey()
    assert per_node(world) == {"a": 2, "b": 2}
    assert proposed(world) == []


def test_what_cannot_be_moved_stays() -> None:
    tied = ContainerSpec(
        image="db:1", mounts=(MountSpec(MountType.VOLUME, source="data", target="/data"),)
    )
    packed = service("packed", 3)
    packed = replace(packed, spec=replace(packed.spec, strategy=Strategy.BINPACK))
    world = World(
        node("a"),
        service("db", 3, spec=replace(task_spec(), container=tied)),
        service("each", mode=ServiceMode.GLOBAL),
        packed,
    )
    world.obey()
    world.put(node("b"))
    world.obey()
    assert proposed(world) == []


def test_rules_of_the_service_hold_for_moves() -> None:
    web = service("web", 2, constraints=("node.labels.zone==a",))
    world = World(node("a", labels={"zone": "a"}), web)
    world.obey()
    world.put(node("b"))
    world.obey()
    assert proposed(world) == []
    world.put(node("c", labels={"zone": "a"}, availability=Availability.PAUSE))
    world.settle()
    assert proposed(world) == []
    world.put(node("d", labels={"zone": "a"}))
    world.settle()
    assert [move.target.id for move in proposed(world)] == ["d"]


def test_preferred_nodes_keep_more_tasks() -> None:
    web = service("web", 4)
    liking = Affinity("node.labels.disk==ssd", weight=2)
    web = replace(web, spec=replace(web.spec, affinities=(liking,)))
    world = World(node("a", labels={"disk": "ssd"}), web)
    world.obey()
    world.put(node("b"))
    world.obey()
    order(world, proposed(world))
    world.obey()
    assert per_node(world) == {"a": 3, "b": 1}
    assert proposed(world) == []


def test_a_move_is_given_up_when_the_new_task_fails() -> None:
    world = World(node("a"), service("web", 2))
    world.obey()
    world.put(node("b"))
    world.obey()
    order(world, proposed(world))
    world.settle()
    [new] = [item for item in world.tasks() if item.moved_from]
    assert (new.node_id, new.moved_from) == ("b", "a")
    world.report(new, TaskState.REJECTED, message="no such image")
    world.obey()
    assert per_node(world) == {"a": 2}
    assert not any(item.move_to for item in world.tasks(RUNNING))
    assert proposed(world) == [], "it is not tried again at once"


def test_a_move_is_given_up_when_its_node_is_drained_or_full() -> None:
    world = World(node("a"), service("web", 2))
    world.obey()
    world.put(node("b"))
    world.obey()
    moves = proposed(world)
    order(world, moves)
    world.settle()
    world.put(replace(world.view.nodes["b"], availability=Availability.DRAIN))
    world.obey()
    assert per_node(world) == {"a": 2}
    world.put(replace(world.view.nodes["b"], availability=Availability.ACTIVE))
    world.put(service("big", 1, spec=task_spec(memory=8190 * MIB), constraints=("node.id==b",)))
    world.obey()
    [task] = [item for item in world.tasks(RUNNING) if item.id == moves[0].task.id]
    world.write(Change(task, replace(task, move_to="b")))
    world.obey()
    assert per_node(world, "web") == {"a": 2}
    assert not any(item.move_to for item in world.tasks(RUNNING))


def test_an_update_goes_before_a_move() -> None:
    web = service("web", 2)
    world = World(node("a"), web)
    world.obey()
    world.put(node("b"))
    world.obey()
    order(world, proposed(world))
    world.settle()
    changed = replace(web.spec, task=replace(web.spec.task, force=1))
    world.put(replace(world.view.services[web.id], spec=changed, spec_version=2))
    world.obey()
    running = world.tasks(RUNNING)
    assert [item.slot for item in running] == [1, 2]
    assert {item.spec.force for item in running} == {1}


def test_automatic_moves_come_one_at_a_time() -> None:
    world = World(Cluster(id="cluster", rebalance_every=60.0), node("a"), service("web", 4))
    world.obey()
    world.put(node("b", created_at=NOW))
    world.obey()
    seen = []
    for _ in range(40):
        world.pass_time(10.0)
        world.obey()
        seen.append(per_node(world).get("b", 0))
    assert seen[:5] == [0] * 5, "a period passes after a node has joined"
    assert max(later - earlier for earlier, later in pairwise(seen)) == 1
    assert seen[-1] == 2


services = st.lists(
    st.tuples(st.integers(0, 6), st.sampled_from((64, 256, 700))), min_size=1, max_size=4
)


@given(services, st.integers(1, 3), st.integers(1, 3), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_moves_make_the_measures_smaller_and_end(
    wanted: list[tuple[int, int]], nodes: int, more: int, random: Any
) -> None:
    world = World(*(node(f"n{each}", shares=2048) for each in range(nodes)))
    for number, (replicas, shares) in enumerate(wanted):
        world.put(service(f"s{number}", replicas, spec=task_spec(shares=shares)))
    world.obey()
    for each in range(more):
        world.put(node(f"m{each}", shares=random.choice((1024, 4096))))
    world.obey()
    for _ in range(50):
        # A task that waited may start where a moved one has made room: it is not counted.
        names = {item.name for item in world.tasks(RUNNING)}
        before = measure(world.view, names)
        moves = proposed(world, most=random.randrange(1, 4))
        if not moves:
            break
        order(world, moves)
        world.obey()
        assert measure(world.view, names) < before
        for host in world.view.nodes.values():
            taken = reserved(world.view.tasks_of_node(host.id).values())
            assert taken.shares <= host.description.resources.shares
    else:
        raise AssertionError("moves go on and on")


def test_a_move_makes_room_for_a_task_that_waits() -> None:
    """So more tasks run afterwards, and the nodes' loads are higher."""
    world = World(node("a", shares=2048), service("small", 3, spec=task_spec(shares=256)))
    world.obey()
    world.put(service("big", 3, spec=task_spec(shares=700)))
    world.put(node("b", shares=1024))
    world.obey()
    assert per_node(world, "big") == {"a": 1, "b": 1}
    order(world, proposed(world))
    world.obey()
    assert per_node(world, "small") == {"a": 2, "b": 1}
    assert per_node(world, "big") == {"a": 2, "b": 1}
    assert proposed(world) == []


def measure(view: ClusterView, names: set[str]) -> tuple[int, list[float]]:
    """Of the tasks of these names: the sum of the squares of each service's tasks per node, and the
    loads in descending order."""
    live = [item for item in view.tasks.values() if item.status.state is RUNNING]
    counts = Counter((item.service_id, item.node_id) for item in live if item.name in names)
    loads = []
    for host in view.nodes.values():
        there = view.tasks_of_node(host.id).values()
        taken = reserved(item for item in there if item.name in names)
        size = host.description.resources
        loads.append(max(taken.shares / size.shares, taken.memory / size.memory))
    return sum(count * count for count in counts.values()), sorted(loads, reverse=True)


def test_moves_in_progress_are_counted() -> None:
    world = World(node("a"), service("web", 6))
    world.obey()
    world.put(node("b"))
    world.obey()
    order(world, proposed(world, most=2))
    assert len(proposed(world)) == 1
    world.settle()
    assert len(proposed(world)) == 1, "the new tasks are there, the former ones are not gone"
    order(world, proposed(world))
    world.settle()
    assert proposed(world) == []
    world.obey()
    assert per_node(world) == {"a": 3, "b": 3}
